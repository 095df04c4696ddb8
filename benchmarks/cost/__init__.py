"""The parts of ``benchmarks/overhead.py``: what is run, what listens, what its spans say, and the process for it."""
