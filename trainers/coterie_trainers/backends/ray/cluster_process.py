"""The one process of a run that talks to Ray: starts or joins the cluster, and does there what the driver asks for.

Run as ``python -m coterie_trainers.backends.ray.cluster_process FD PLAN``. The first message on the descriptor says that the
cluster is there; it ends when that descriptor closes. Calls come over the socket ``PLAN.calls``, a connection a part and
each in a thread of its own, because ranks send weights while replicas take them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from coterie.errors import CoterieError
from coterie_trainers.backends.local import channel
from coterie_trainers.backends.ray.cluster import ClusterPlan


def main(arguments: Sequence[str]) -> None:
    """Have a cluster, say so, then do what is asked until the driver is gone."""
    descriptor, plan_text = arguments
    driver = socket.socket(fileno=int(descriptor))
    plan = ClusterPlan.from_json(plan_text)
    try:
        from coterie_trainers.backends.ray.placed import PlacedPolicies

        policies = PlacedPolicies(plan)
    except Exception as error:  # noqa: BLE001 - whatever it was, the driver must be told
        channel.send(driver, _told(error))
        return
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(plan.calls)
    listener.listen()
    threading.Thread(target=_accept, args=(listener, policies), daemon=True).start()
    channel.send(driver, {"ready": True})
    with contextlib.suppress(EOFError, OSError):
        channel.receive(driver)
    policies.close()
    with contextlib.suppress(OSError):
        channel.send(driver, {"closed": True})
    # Threads may still wait for actors that are gone.
    os._exit(0)


def _accept(listener: socket.socket, policies: Any) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve, args=(connection, policies), daemon=True).start()


def _serve(connection: socket.socket, policies: Any) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            request = channel.receive(connection)
            channel.send(connection, _answer(policies, request["operation"], request["arguments"]))


def _answer(policies: Any, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        if operation.startswith("_") or not hasattr(policies, operation):
            return {"error": f"no such operation: {operation}"}
        return {"result": getattr(policies, operation)(**arguments)}
    except Exception as error:  # noqa: BLE001 - whatever it was, the driver must be told
        return _told(error)


def _told(error: Exception) -> dict[str, Any]:
    if isinstance(error, CoterieError):
        return {"error": str(error), "kind": type(error).__name__}
    traceback.print_exc()
    return {"error": f"{type(error).__name__}: {error}", "kind": None}


if __name__ == "__main__":
    main(sys.argv[1:])
