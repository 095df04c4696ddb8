"""Audits: what would have come of a rollout without a role, or had it said something else at one turn?

Rewards tell that a team lost, not who lost it. An audit takes a sample of a run's finished rollouts and plays them again,
changed at one place (``coterie.replays``); what that does to the outcome is the credit of the place::

    mask.py         without a role                (SHARP)
    replay.py       another message at one turn   (C3)
    outcomes.py     what rollouts and replays came to
    sampling.py     which rollouts are audited
    playing.py      plays replays, each once, however often the audit is cut off
    findings.py     figures with intervals, and how they stand in the store
    audit.py        an audit from its sample to its decision
    audited_run.py  serves the policies of a run of ``coterie train`` again and audits it: ``coterie audit``

Replays cost rollouts, so an audit is of a sample. They are rollouts of mode ``audit``: no trainer takes them and no figure
of success counts them.
"""

from __future__ import annotations

from coterie_trainers.audits.audit import Audit, audit
from coterie_trainers.audits.findings import Finding, Method

__all__ = ["Audit", "Finding", "Method", "audit"]
