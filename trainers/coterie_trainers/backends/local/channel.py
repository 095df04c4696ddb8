"""Messages between the driver and a trainer process: JSON objects with their length in front, over a socket."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

_LENGTH = struct.Struct(">I")


def send(channel: socket.socket, message: dict[str, Any]) -> None:
    """Send one message whole."""
    body = json.dumps(message, separators=(",", ":")).encode()
    channel.sendall(_LENGTH.pack(len(body)) + body)


def receive(channel: socket.socket) -> dict[str, Any]:
    """Wait for one message.

    Raises:
        EOFError: the other side is gone.
        TimeoutError: the socket's time limit passed.
    """
    (length,) = _LENGTH.unpack(_receive_exactly(channel, _LENGTH.size))
    message: dict[str, Any] = json.loads(_receive_exactly(channel, length))
    return message


def _receive_exactly(channel: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = channel.recv(min(size, 1 << 20))
        if not part:
            raise EOFError("the other side of the channel is gone")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
