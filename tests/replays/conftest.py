"""Capture switched on for one test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from coterie.capture import faults, instrument, uninstrument


@pytest.fixture
def captured() -> Iterator[None]:
    faults._noted.clear()
    instrument()
    yield
    uninstrument()
