"""The report of a run: computed from its store alone, shown on a terminal, as a page, and as JSON for machines."""

from __future__ import annotations

from coterie_trainers.report.figures import Figures as Figures
from coterie_trainers.report.figures import compute_figures as compute_figures
from coterie_trainers.report.making import find_store as find_store
from coterie_trainers.report.making import make_report as make_report

__all__ = ["Figures", "compute_figures", "find_store", "make_report"]
