"""The parts of ``learning.py``: what is run, what came out, tables and plots."""
