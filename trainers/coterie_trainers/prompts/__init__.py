"""Prompts that improve themselves, per role: an optimiser proposes texts, rollouts say what they are worth.

::

    study.py           what an optimiser sees: candidates, trials, and how to ask for more of them
    optimisers/        the optimisers, one a file
"""
