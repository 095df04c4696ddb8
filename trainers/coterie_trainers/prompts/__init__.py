"""Prompts that improve themselves, per role: an optimiser proposes texts, rollouts say what they are worth.

::

    study.py           what an optimiser works with: candidates, trials, and how to ask for more of them
    optimisers/        the optimisers, one a file
    feedback.py        what a reflecting model should read about one role in one trial
    reach.py           which later turns saw what a role said
    blame.py           which role most likely lost a task
    proposing.py       a new text from the reflecting model, checked
    at_once.py         many evaluations or reflections at once, and what is had when the budget ends
    settings.py        an optimiser's settings, checked
    gepa_search.py     the package gepa over a study
    run.py             one run from its opening to its finish: the way in is ``optimise``
    config.py          the settings of ``coterie optimize``, and of tuning between training steps
    beginning.py       which prompts are tuned, and what they say now
    search.py          the study of a run: a store, a runner and a model behind it
    playing.py         plays rollouts of candidates, as many at once as the budget allows
    scoring.py         what a rollout was worth, to the team and to each role
    candidates.py      candidates as versions of prompts in the store
    reflecting.py      asks the reflecting model
    budget.py          what a run may spend, and has spent
    costs.py           what rollouts cost
    journal.py         what a killed run goes on from, besides the store
    choosing.py        the winner on validation, its gain on test, and the gate
    ablation.py        what each changed prompt adds to the winner
    best.py            the prompts of a finished run in one line
    result.py          the result of a finished run, for people and machines
    commands.py        the command ``coterie optimize``
"""

from __future__ import annotations

from coterie_trainers.prompts.best import best, find_best
from coterie_trainers.prompts.config import OptimizeConfig
from coterie_trainers.prompts.run import optimise

__all__ = ["OptimizeConfig", "best", "find_best", "optimise"]
