"""The parts of ``benchmarks/store.py``; ``benchmarks/runner.py`` starts its servers with ``served`` too."""
