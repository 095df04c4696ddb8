"""Sinks: a run's figures in TensorBoard, Weights & Biases, MLflow or trackio, beside the store and the console.

Each library is an extra, imported only where ``metrics`` in the configuration names it.

::

    sinks.py    all sinks of a run
    outlet.py   one of them at work, in a thread of its own
    sink.py     what a sink is
    to_*.py     one library each
"""
