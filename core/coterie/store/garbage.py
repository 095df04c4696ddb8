"""Making very many objects at once, without Python looking through all of them for garbage again and again.

Nothing in a list of records that is being read is garbage, and looking for it takes longer than reading: a rollout of ten
thousand spans holds two million objects.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock


@contextmanager
def no_search_for_garbage() -> Iterator[None]:
    """Put it off for the time of the block, in the whole process. Blocks may overlap, in several threads."""
    with _lock:
        if _state.blocks == 0:
            _state.was_on = gc.isenabled()
            gc.disable()
        _state.blocks += 1
    try:
        yield
    finally:
        with _lock:
            _state.blocks -= 1
            if _state.blocks == 0 and _state.was_on:
                gc.enable()


class _State:
    blocks = 0
    was_on = False


_state = _State()
_lock = Lock()
