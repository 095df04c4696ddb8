"""Health: how each role fares while it is trained.

::

    role_figures.py   the figures of each role at one step, made of
    signal.py         reward, spread of the advantages, groups that teach nothing
    answers.py        length, failed calls
    diversity.py      how different the answers to one task are
    staleness.py      how old the policy was that gave them
"""
