"""Reads the body of an MCP request with a limit, and replays it to the SDK."""

from typing import Final

from starlette.requests import Request
from starlette.types import Message, Receive

MAX_BODY: Final = 1024 * 1024
"""Bytes of one request with a valid token."""

MAX_UNPROVEN_BODY: Final = 64 * 1024
"""Bytes that are read of a request without a valid token. Larger bodies would let anyone fill the memory."""


async def read_body(request: Request, limit: int) -> bytes | None:
    """Return the body of a request; None if it is larger than `limit` bytes, of which no more are read.

    Raises:
        ClientDisconnect: the client closed the connection before the end of the body.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limit:
        return None
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            return None
    return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a receive function that replays the body once, then passes on messages such as a disconnect."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message
