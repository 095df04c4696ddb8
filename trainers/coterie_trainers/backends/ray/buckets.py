"""Weights on their way through Ray's object store: many tensors in one array of bytes, which other nodes can fetch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

SMALLEST_BYTES = 64 << 20
_ALIGNMENT = 16
"""Bytes; no tensor's type is wider."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Some weights."""

    tensors: tuple[tuple[str, tuple[int, ...], str, int], ...]
    """Name, shape, type (such as ``bfloat16``) and first byte of each."""
    content: NDArray[np.uint8]

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and tensor, over the same memory: not to be written to."""
        for name, shape, dtype_name, start in self.tensors:
            dtype = getattr(torch, dtype_name)
            size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            yield name, torch.from_numpy(self.content[start : start + size]).view(dtype).view(shape)


def buckets(weights: Iterable[tuple[str, torch.Tensor]], limit: int) -> Iterator[Bucket]:
    """The weights in buckets of at most ``limit`` bytes; a larger tensor has one of its own."""
    group: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, tensor in weights:
        flat = tensor.detach().to("cpu").contiguous()
        if group and size + flat.nbytes + _ALIGNMENT > limit:
            yield _packed(group)
            group, size = [], 0
        group.append((name, flat))
        size += flat.nbytes + _ALIGNMENT
    if group:
        yield _packed(group)


def _packed(group: list[tuple[str, torch.Tensor]]) -> Bucket:
    starts, end = [], 0
    for _, tensor in group:
        starts.append(end)
        end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    content = np.zeros(end, dtype=np.uint8)
    for (_, tensor), start in zip(group, starts, strict=True):
        content[start : start + tensor.nbytes] = tensor.reshape(-1).view(torch.uint8).numpy()
    described = [
        (name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), start)
        for (name, tensor), start in zip(group, starts, strict=True)
    ]
    return Bucket(tuple(described), content)
