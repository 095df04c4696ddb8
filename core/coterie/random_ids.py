"""Random ids, from a generator apart from the one that programs seed: ids must differ between processes that are seeded
alike, and a seeded program must run as it would without us.
"""

from __future__ import annotations

import os
import random

_generator = random.Random()
os.register_at_fork(after_in_child=_generator.seed)


def random_id(bits: int) -> int:
    """A random number of so many bits, never 0."""
    return _generator.getrandbits(bits) or 1
