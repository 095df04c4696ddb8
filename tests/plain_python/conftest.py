"""Capture switched on for one test, a model that repeats what it was told, and the attempt's spans."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from docs_pages import play_page

from coterie.capture import faults, instrument, uninstrument
from coterie.scope import attempt_scope
from coterie.testing import ListSink, ScriptedModel, scope_for_test

__all__ = ["model", "play_page", "sink"]


@pytest.fixture
def sink() -> Iterator[ListSink]:
    """An attempt of capture switched on."""
    faults._noted.clear()
    instrument()
    sink = ListSink()
    with attempt_scope(scope_for_test(sink)):
        yield sink
    uninstrument()


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(lambda body: "said: " + str(body["messages"][-1]["content"])) as server:
        yield server
