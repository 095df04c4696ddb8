"""Honest selection: who wins among the finalists, whether its gain is shown, and what is suspicious about its texts."""

from __future__ import annotations

from coterie_trainers.prompts.selection.flags import Flag, FlagKind, flags_of
from coterie_trainers.prompts.selection.gate import Gain, gain_shown
from coterie_trainers.prompts.selection.racing import Dropped, Race, Round, race

__all__ = ["Dropped", "Flag", "FlagKind", "Gain", "Race", "Round", "flags_of", "gain_shown", "race"]
