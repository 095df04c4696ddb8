"""Fixtures: a server that many tests share."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from server_parts import ServerProcess

_NEEDED = ("aiohttp", "fastapi", "grpc", "prometheus_client", "uvicorn", "opentelemetry.exporter.otlp")
collect_ignore_glob: list[str] = []
try:
    collect_ignore_glob += [] if all(map(find_spec, _NEEDED)) else ["test_*.py"]
except ModuleNotFoundError:  # of a parent package
    collect_ignore_glob += ["test_*.py"]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with default limits, OTLP over gRPC, and a SQLite store, in a process of its own."""
    from server_parts import ServerProcess

    with ServerProcess(tmp_path_factory.mktemp("server"), "--grpc-port", "0") as running:
        yield running
