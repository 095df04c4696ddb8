"""A team of agents records itself: the AutoGen plugin."""
