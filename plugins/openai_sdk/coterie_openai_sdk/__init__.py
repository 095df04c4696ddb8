"""A team of agents records itself: the OpenAI Agents SDK plugin."""
