"""The parts of ``benchmarks/credit.py``: small team tasks, their true policy gradient, and estimates of it."""
