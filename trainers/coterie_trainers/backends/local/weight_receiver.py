"""vLLM's worker extension: takes new weights from the trainer, with verl's receiver and a time limit.

verl's receiver waits for ever when the trainer dies in the middle; this one raises after ``seconds``.
"""

from __future__ import annotations

import os
from typing import Any

from verl.workers.rollout.vllm_rollout import bucketed_weight_transfer
from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension
from zmq.constants import SocketOption

from coterie_trainers.backends.local.weight_socket import worker_socket

SOCKET_VARIABLE = "COTERIE_WEIGHT_SOCKET"
"""Environment variable with the address that the trainer's sender binds."""


class WeightReceiver(vLLMColocateWorkerExtension):  # type: ignore[misc]
    """Adds ``receive_weights`` to a vLLM worker; the gate calls it while generation is paused."""

    def receive_weights(self, seconds: float) -> None:
        """Load the weights that the trainer sends.

        Raises:
            zmq.Again: the trainer sent nothing for ``seconds``.
        """
        milliseconds = int(seconds * 1000)

        class Receiver(bucketed_weight_transfer.BucketedWeightReceiver):  # type: ignore[misc]
            def _init_socket(self) -> None:
                super()._init_socket()
                self.socket.setsockopt(SocketOption.RCVTIMEO, milliseconds)
                self.socket.setsockopt(SocketOption.SNDTIMEO, milliseconds)
                self.socket.setsockopt(SocketOption.LINGER, 0)

        # verl's method looks the class up in its module at each call.
        original = bucketed_weight_transfer.BucketedWeightReceiver
        bucketed_weight_transfer.BucketedWeightReceiver = Receiver
        try:
            self.update_weights_from_ipc(use_shm=os.environ.get("VERL_PLATFORM") == "cpu")
        finally:
            bucketed_weight_transfer.BucketedWeightReceiver = original

    def _get_zmq_handle(self) -> Any:
        return worker_socket(os.environ[SOCKET_VARIABLE], self.rank)
