"""A model for agents whose answers do not matter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from coterie.testing import ScriptedModel


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(lambda request: "fine") as served:
        yield served
