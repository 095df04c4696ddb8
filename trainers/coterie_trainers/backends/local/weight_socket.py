"""The addresses at which a server's workers are sent their weights."""

from __future__ import annotations


def worker_socket(address: str, worker: int) -> str:
    """That of one of the processes that a server's model is spread over, from the address of the first."""
    return address if worker == 0 else f"{address}-{worker}"
