"""The report of a run that tuned prompts: what each prompt said before and after, why, what it gained, and what it cost."""

from __future__ import annotations

from coterie_trainers.report.tuning.figures import TuningFigures as TuningFigures
from coterie_trainers.report.tuning.figures import compute_tuning as compute_tuning

__all__ = ["TuningFigures", "compute_tuning"]
