"""What goes out: JSON, nothing, or a stream."""

from __future__ import annotations

from coterie_server.store_api.requests import Call


async def send_json(call: Call, body: bytes) -> None:
    """Answer with JSON."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await call.send({"type": "http.response.start", "status": 200, "headers": headers})
    await call.send({"type": "http.response.body", "body": body, "more_body": False})


async def send_empty(call: Call) -> None:
    """Answer that it is done."""
    await call.send({"type": "http.response.start", "status": 204, "headers": []})
    await call.send({"type": "http.response.body", "body": b"", "more_body": False})


async def start_stream(call: Call, media_type: bytes) -> None:
    """Begin an answer that comes in pieces."""
    headers = [(b"content-type", media_type), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
    await call.send({"type": "http.response.start", "status": 200, "headers": headers})


async def send_piece(call: Call, piece: bytes, *, last: bool = False) -> None:
    """Send a piece of an answer. Returns when the client can take more."""
    await call.send({"type": "http.response.body", "body": piece, "more_body": not last})
