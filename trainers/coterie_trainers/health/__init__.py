"""Health: how each role fares while it is trained, and a guard that ends a run before it does harm.

::

    role_figures.py   the figures of each role at one step, made of
    signal.py         reward, spread of the advantages, groups that teach nothing
    answers.py        length, failed calls
    diversity.py      how different the answers to one task are
    staleness.py      how old the policy was that gave them

    reverify.py       stored rollouts scored again by a held-out verifier
    history.py        the figures of a run so far
    rules/            what the guard looks for, a rule a file
    guard.py          history → verdict
    verdict.py        ok, warn or stop, with written reasons
    good_version.py   which version is good enough to go back to

What happens at a verdict is the loop's: ``coterie_trainers/loop/watching.py``.
"""
