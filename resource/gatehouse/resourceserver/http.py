"""HTTP without a framework: the request that every endpoint reads, and the response that it returns."""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from gatehouse.shared.protocol.encoding import compact_json
from gatehouse.shared.service.cors import Header
from gatehouse.shared.service.requests import raw_headers

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
"""ASGI's function that returns the next message of a request."""
Send = Callable[[Message], Awaitable[None]]
"""ASGI's function that sends a message of a response."""

JSON: Final = "application/json"

_MAX_LENGTH_DIGITS: Final = 20


class ClientDisconnected(Exception):
    """The client closed the connection before the end of its body."""


class Headers:
    """The header lines of a request, as bytes. Names are in lower case (ASGI 3)."""

    __slots__ = ("_by_name", "_lines", "repeated")

    def __init__(self, lines: Sequence[Header]) -> None:
        self._lines = lines
        self._by_name = dict(lines)
        self.repeated = len(self._by_name) != len(lines)
        """Whether any name has more than one line."""

    def get(self, name: bytes) -> bytes | None:
        """Return the last line of a name; None without one."""
        return self._by_name.get(name)

    def lines(self, name: bytes) -> list[bytes]:
        """Return every line of a name, in the order in which they were sent."""
        if (last := self._by_name.get(name)) is None:
            return []
        return [value for each, value in self._lines if each == name] if self.repeated else [last]

    def names(self) -> list[bytes]:
        """Return the name of each line."""
        return [name for name, _ in self._lines]

    def joined(self) -> dict[str, str]:
        """Return all headers as text, with the lines of one name joined by commas (RFC 9110 5.3)."""
        return {name.decode("latin-1"): b",".join(self.lines(name)).decode("latin-1") for name in self._by_name}


@dataclass(slots=True)
class Request:
    """One HTTP request, whose body may not have been received yet."""

    scope: Scope
    receive: Receive
    raw_send: Send
    """ASGI's function, which adds no header."""
    method: str
    path: str
    """As it was sent, percent-encoded."""
    headers: Headers
    request_id: str
    common_headers: Callable[["Request"], Sequence[Header]]
    """Returns the headers that every response has. A closure over the request would be a reference cycle."""
    status: int = field(default=0, init=False)
    """The status of the response; 0 until its start is sent."""
    on_end: Callable[[], None] | None = field(default=None, init=False)
    """Called when the response has been sent, or cannot be."""

    async def send(self, message: Message) -> None:
        """Send a message of the response for an application behind this server. An endpoint returns its response."""
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            message["headers"] = [*message["headers"], *self.common_headers(self)]
        await self.raw_send(message)

    async def read_body(self, limit: int) -> bytes | None:
        """Return the body; None if it is larger than `limit` bytes, of which no more are read.

        Raises:
            ClientDisconnected: the client closed the connection before the end of the body.
        """
        length = self.headers.get(b"content-length") or b""
        if length.isdigit() and int(length[:_MAX_LENGTH_DIGITS]) > limit:
            return None
        body, more = bytearray(), True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            body += message.get("body", b"")
            if len(body) > limit:
                return None
            more = message.get("more_body", False)
        return bytes(body)


class Response(NamedTuple):
    """A response without the headers that every response has."""

    status: int
    body: bytes = b""
    headers: Sequence[Header] = ()


Endpoint = Callable[[Request], Awaitable[Response | None]]
"""Answers a request. None if the response has been sent by `Request.send`, or the client has disconnected."""


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with a JSON body."""
    body = compact_json(content).encode()
    return Response(status, body, [(b"content-type", JSON.encode()), *raw_headers(headers or {})])
