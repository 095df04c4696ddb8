"""The parts of ``prompts.py``: teams with planted lessons, the model that reflects on them, what is run, tables."""
