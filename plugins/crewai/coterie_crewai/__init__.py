"""A team of agents records itself: the CrewAI plugin."""
