"""The trainer process of one policy, or of several adapters: does what the driver asks over a socket, one request after the other.

Run as ``python -m coterie_trainers.backends.local.trainer_process FD PLAN``; it ends when the driver's side closes.
"""

from __future__ import annotations

import json
import socket
import sys
import traceback
from collections.abc import Sequence

from coterie_trainers.backends.local import channel
from coterie_trainers.backends.local.trainer import TrainerPlan

OPERATIONS = frozenset({"update", "values", "send_weights", "write_adapter", "save", "load"})
"""Methods of ``PolicyTrainer`` and ``AdapterTrainer`` that the driver may call."""


def main(arguments: Sequence[str]) -> None:
    """Load the model, say so, then serve requests until the driver is gone."""
    descriptor, plan_text = arguments
    driver = socket.socket(fileno=int(descriptor))
    plan = TrainerPlan(**json.loads(plan_text))

    from coterie_trainers.backends.local.adapter_trainer import AdapterTrainer
    from coterie_trainers.backends.local.verl_engine import PolicyTrainer

    trainer = AdapterTrainer(plan) if plan.adapter else PolicyTrainer(plan)
    channel.send(driver, {"ready": True})
    while True:
        try:
            request = channel.receive(driver)
        except (EOFError, OSError):
            return
        channel.send(driver, _answer(trainer, request["operation"], request["arguments"]))


def _answer(trainer: object, operation: str, arguments: dict[str, object]) -> dict[str, object]:
    try:
        if operation not in OPERATIONS:
            return {"error": f"no such operation: {operation}"}
        answer: dict[str, object] = getattr(trainer, operation)(**arguments)
    except Exception as error:  # noqa: BLE001 - whatever it was, the driver must be told
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
    return answer


if __name__ == "__main__":
    main(sys.argv[1:])
