"""The heap while attempts run: what was there before is not searched for garbage again and again.

Frameworks leave hundreds of thousands of objects behind when they are imported. Python's collector goes through all of them every
so often, and whoever waits for a model's answer waits for that too. ``gc.freeze`` sets them aside, ``gc.unfreeze`` gives them back.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

PYTHONS_OWN = 1000
"""Python sets some hundred objects aside by itself when it starts; more than this a program has set aside."""

_lock = Lock()
_holders = 0


@contextmanager
def heap_set_aside() -> Iterator[None]:
    """Set aside what there is now, until the last of those who asked has left. A heap that the program itself has frozen is left
    as it is.
    """
    global _holders
    with _lock:
        ours = _holders > 0 or gc.get_freeze_count() < PYTHONS_OWN
        if ours:
            _holders += 1
            if _holders == 1:
                gc.freeze()
    try:
        yield
    finally:
        with _lock:
            if ours:
                _holders -= 1
                if _holders == 0:
                    gc.unfreeze()
