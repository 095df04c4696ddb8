"""These tests need a server, which its extra brings."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = (
    [] if all(map(find_spec, ("aiohttp", "fastapi", "httpx", "prometheus_client", "uvicorn"))) else ["test_*.py"]
)
