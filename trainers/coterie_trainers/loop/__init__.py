"""The training loop: run the team, give credit, update the policies, publish, measure.

    tasks → rollouts (agents, over HTTP) → episodes → credited turns → advantages → rows → update → publish → …

::

    run.py             one run from its opening to its finish: the way in is ``train``
    opening.py         the backend that the configuration names
    job.py             what all rooms share: one run and what it works with
    steps.py           the training steps, one after the other, each with its figures and checkpoint
    collecting.py      draws tasks, enqueues rollouts, waits for them
    carrying_over.py   the same, asynchronously: groups that are not whole in time carry over to a later step
    window.py          which groups are in flight then, and which of them a step may train on
    filling.py         more groups for a step, until enough of them teach
    auditing.py        replays of some of a step's rollouts, whose credit trains
    learning.py        episodes → credit → batch → updates
    unfinished.py      what answers that were cut off and rollouts that failed teach
    valuing.py         what the critics say of a step's turns
    publishing.py      the endpoints of the policies, as agents find them
    tuning.py          searches for better prompts between the steps
    watching.py        the guard: what it sees, says, and does when it stops a run
    validating.py      looks at the validation split, and the promotion of the best checkpoint
"""
