"""A team of agents records itself: the LangChain and LangGraph plugin."""
