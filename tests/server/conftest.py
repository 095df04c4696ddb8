"""Fixtures: a server that many tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("coterie_server")
pytest.importorskip("uvicorn")
pytest.importorskip("grpc")

from server_parts import ServerProcess


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with default limits, OTLP over gRPC, and a SQLite store, in a process of its own."""
    with ServerProcess(tmp_path_factory.mktemp("server"), "--grpc-port", "0") as running:
        yield running
