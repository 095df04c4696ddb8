"""The trainer's side of a change of weights: verl's sender with a time limit and memory that can be found again.

verl's sender waits for ever when the server dies in the middle; this one raises after its time limit.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable
from multiprocessing.shared_memory import SharedMemory

import torch
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightSender
from zmq.constants import SocketOption

_SMALLEST_BUCKET_MB = 16


def send_weights(
    weights: Iterable[tuple[str, torch.Tensor]],
    *,
    largest: int,
    address: str,
    prefix: str,
    over_ipc: bool,
    seconds: float,
) -> None:
    """Send named tensors to the ``WeightReceiver`` that connects.

    Args:
        weights: Name and tensor, under the names of the Hugging Face folder.
        largest: Bytes of the largest tensor; one must fit into the buffer whole.
        address: The ZeroMQ address to listen at.
        prefix: First part of the name of the shared memory, so that whoever cleans up finds it.
        over_ipc: CUDA IPC instead of shared memory.
        seconds: The longest silence.

    Raises:
        zmq.Again: the receiver was silent for longer.
    """
    bucket_mb = max(_SMALLEST_BUCKET_MB, (largest >> 20) + 1)
    sender = _Sender(zmq_handle=address, bucket_size_mb=bucket_mb, use_shm=not over_ipc)
    sender.milliseconds, sender.prefix = int(seconds * 1000), prefix
    asyncio.run(sender.async_send_weights(weights))


class _Sender(BucketedWeightSender):  # type: ignore[misc]
    milliseconds: int
    prefix: str

    def _init_socket(self) -> None:
        super()._init_socket()
        self.socket.setsockopt(SocketOption.RCVTIMEO, self.milliseconds)
        self.socket.setsockopt(SocketOption.SNDTIMEO, self.milliseconds)
        self.socket.setsockopt(SocketOption.LINGER, 0)

    def _init_buffer(self) -> None:
        if not self.use_shm:
            super()._init_buffer()
            return
        self.shm = SharedMemory(name=f"{self.prefix}-{uuid.uuid4().hex}", create=True, size=self.bucket_size)
        self.buffer = torch.frombuffer(self.shm.buf, dtype=torch.uint8)
        self.socket.send_pyobj({"name": self.shm.name, "size": self.bucket_size})
        self.socket.recv()
