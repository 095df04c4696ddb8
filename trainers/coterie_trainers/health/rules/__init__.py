"""The rules of the guard, a file each: from the history of a run and the rule's limits to what it finds.

Thresholds are settings (``coterie_trainers.config.Guard``). A rule speaks only when what it sees holds for so many steps
in a row: a single step is noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from coterie_trainers.health.history import History
from coterie_trainers.health.rules.clipping import clipping
from coterie_trainers.health.rules.diversity import diversity
from coterie_trainers.health.rules.entropy import entropy
from coterie_trainers.health.rules.errors import errors
from coterie_trainers.health.rules.gradient import gradient
from coterie_trainers.health.rules.length import length
from coterie_trainers.health.rules.mismatch import mismatch
from coterie_trainers.health.rules.staleness import staleness
from coterie_trainers.health.rules.success import success
from coterie_trainers.health.rules.validation import validation
from coterie_trainers.health.rules.verifier_gap import verifier_gap
from coterie_trainers.health.verdict import Finding

Rule = Callable[[History, Any], Iterator[Finding]]
"""History and the rule's own section of limits → findings about the last step."""

RULES: Mapping[str, Rule] = {
    "entropy": entropy,
    "diversity": diversity,
    "gradient": gradient,
    "mismatch": mismatch,
    "clipping": clipping,
    "length": length,
    "staleness": staleness,
    "errors": errors,
    "success": success,
    "validation": validation,
    "verifier_gap": verifier_gap,
}
"""Name in the configuration → rule."""
