"""One HTTP/1.1 connection of the worker.

gunicorn's protocol parses requests and calls the application. The subclass here adds what gunicorn does not have:
deadlines for whatever the client must do next, constant refusals, and an orderly close.
"""

import array
import asyncio
import fcntl
import termios
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final, Protocol

from gunicorn.asgi import protocol
from gunicorn.asgi.parser import UnsupportedTransferCoding
from gunicorn.asgi.protocol import ASGIProtocol

from gatehouse.shared.service.connections import WRITE_TIMEOUT, Connections, Wait
from gatehouse.shared.service.requests import new_request_id
from gatehouse.shared.service.transport_refusals import TransportRefusal

READ_AHEAD: Final = 64 * 1024
"""Bytes of a body, or of further requests, that wait for the application before reading from the connection pauses."""

_STATUSES: Final = {
    "LimitRequestLine": 414,
    "LimitRequestHeaders": 431,
    "UnsupportedTransferCoding": 501,
}
"""Statuses of parse errors by name, because both parsers have classes of their own. Any other error is 400."""


# gunicorn writes whether the parser in C is installed to the class that asks, but reads it from its own. It would ask
# at the first connection, when there may be no file descriptor to import the parser with.
ASGIProtocol._check_h1c_protocol_available()  # noqa: SLF001 - of gunicorn


# Python looks up a member of an Enum by way of a function of its class, and one request takes six of them.
_REQUEST, _HEADER, _BODY, _NEXT_REQUEST = Wait.REQUEST, Wait.HEADER, Wait.BODY, Wait.NEXT_REQUEST

Scanned = tuple[bool, bytes | None, bool]
"""Whether response headers have a Content-Length, its value, and whether they have a Transfer-Encoding."""

_ORDINARY: Final[Scanned] = (False, None, False)

gunicorn_scan: Final[Callable[[Iterable[tuple[bytes, bytes]]], Scanned]] = protocol._scan_response_headers  # noqa: SLF001 - of gunicorn
"""gunicorn's function, which matches each name and each value against an expression."""


# Most headers are those of an earlier response. An exception is not cached.
@lru_cache(maxsize=1024)
def _scan_one(name: bytes, value: bytes) -> Scanned:
    return gunicorn_scan([(name, value)])


def scan_response_headers(headers: Iterable[tuple[bytes, bytes]]) -> Scanned:
    """Validate response headers, and find those that frame the body, as gunicorn's function does, which this replaces.

    Raises:
        InvalidResponseHeader, InvalidResponseHeaderName: a name or a value has a character that it must not have.
    """
    result = _ORDINARY
    for name, value in headers:
        scanned = _scan_one(name, value)
        if scanned != _ORDINARY:
            has_length, length, has_encoding = scanned
            result = result[0] or has_length, length if has_length else result[1], result[2] or has_encoding
    return result


protocol._scan_response_headers = scan_response_headers  # noqa: SLF001 - of gunicorn


class ConnectionOwner(Protocol):
    """What a connection needs of its worker, in addition to what gunicorn's protocol needs."""

    connections: Connections
    loop: asyncio.AbstractEventLoop


class Connection(ASGIProtocol):
    """One connection. Overrides methods of gunicorn's protocol by their private names; gunicorn is pinned exactly."""

    _closed: bool
    _callback_parser: Any

    def __init__(self, worker: ConnectionOwner) -> None:
        super().__init__(worker)
        self._connections = worker.connections
        self.waits_for: Wait | None = None
        self.since = 0.0
        """Monotonic seconds at which the client's time began."""
        self._max_buffer_size = READ_AHEAD
        self._known = False
        """Whether the client has sent a whole request."""
        self._responding = False
        self._unparsed = b""
        """What follows the READ_AHEAD bytes of further requests that the parser keeps until the response is sent."""

    def _wait(self, wait: Wait | None) -> None:
        """Begin to wait for the client, or stop."""
        self.waits_for = wait
        self._connections.strangers.pop(self, None)
        self._connections.known.pop(self, None)
        if wait is not None:
            self.since = self._connections.monotonic()
            queue = self._connections.known if self._known else self._connections.strangers
            queue[self] = None

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serve the connection."""
        self._connections.open.add(self)
        super().connection_made(transport)
        self._wait(_REQUEST)

    def data_received(self, data: bytes) -> None:
        """Parse data, or discard it if the connection has been closed on this side."""
        if self._closed:
            return
        if self.waits_for is _REQUEST:
            self.waits_for = _HEADER
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._forget()
        super().connection_lost(exc)
        self._drop_received()
        self._wake()

    def pause_writing(self) -> None:
        """Limit the time in which the client must read."""
        super().pause_writing()
        if self.waits_for is None:
            self._wait(Wait.READ)

    def resume_writing(self) -> None:
        """End that limit."""
        super().resume_writing()
        if self.waits_for is Wait.READ:
            self._wait(None)

    # Called by gunicorn's protocol

    def _feed_callback_parser(self, data: bytes) -> bool:
        """Parse data. Return False if it was malformed and the connection is closed.

        The parser in C drops what exceeds READ_AHEAD bytes after a request, and gunicorn then closes the connection.
        """
        parser = self._callback_parser
        # When the next request begins, gunicorn passes what the parser has kept, which came first.
        data = self._unparsed + data if parser.is_complete else data + self._unparsed
        start = 0
        try:
            while start < len(data) and (room := READ_AHEAD - len(parser.remaining())) > 0:
                parser.feed(data[start : start + room])
                start += room
        except Exception as error:  # noqa: BLE001 - a parser in C, and code for every malformed request
            name = type(error).__name__
            self._refuse(_STATUSES.get(name, 400), name)
            return False
        self._unparsed = data[start:]
        if self._unparsed:
            self._pause_reading()
        if self._current_request is None and self.waits_for is not _HEADER:
            self._wait(_HEADER)
        return True

    def _http1_buffered(self) -> int:
        """Return how many bytes wait for the application: more than READ_AHEAD while some are not parsed."""
        buffered: int = super()._http1_buffered()
        return buffered + READ_AHEAD + len(self._unparsed) if self._unparsed else buffered

    def _on_headers_complete(self) -> bool:
        self._responding = False
        for name, value in self._callback_parser.headers:
            # gunicorn accepts compression as well, which it does not undo: a proxy would read another body.
            if name.lower() == b"transfer-encoding" and value.strip().lower() != b"chunked":
                raise UnsupportedTransferCoding
        skips_body: bool = super()._on_headers_complete()
        self._wait(_BODY)
        return skips_body

    def _on_message_complete(self) -> None:
        super()._on_message_complete()
        self._known = True
        if self.waits_for is _BODY:
            self._wait(None)

    def _arm_keepalive_timer(self) -> None:
        """Wait for the next request, unless a part of it was received together with the previous one."""
        if self.waits_for is None:
            self._wait(_NEXT_REQUEST)

    def _is_websocket_upgrade(self, request: Any) -> bool:
        """Treat a WebSocket handshake as the request that it also is (RFC 9110 7.8): the application answers it."""
        return False

    def _will_close(self, request: Any, response_requires_close: bool) -> bool:
        """Decide whether a response closes the connection, which it then announces."""
        receiver = self._body_receiver
        unread = receiver is not None and not receiver._complete  # noqa: SLF001 - of gunicorn
        return unread or self._connections.draining or bool(super()._will_close(request, response_requires_close))

    def _send_response_start(self, *args: Any, **kwargs: Any) -> None:
        self._responding = True
        if self.waits_for is _BODY:
            # The response closes the connection, so nothing more is expected of the client.
            self._wait(None)
        super()._send_response_start(*args, **kwargs)

    def _send_error_response(self, status: int, message: str, extra_headers: object = ()) -> None:
        """Answer for an application that failed. gunicorn's message is not sent."""
        self._refuse(status, "the application did not answer")

    def _close_transport(self) -> None:
        """Close this side, and discard what arrives until the client closes its own.

        A close with unread data would reset the connection, and the client could lose the response.
        """
        if self._closed:
            return
        self._closed = True
        self._drop_received()
        self._resume_reading()
        self._wait(Wait.CLOSE)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            # TLS: sends what is written and the alert that announces the close, and waits for that of the client.
            self.transport.close()
        self._wake()

    def _drop_received(self) -> None:
        """Let the application see a disconnect, and free what it has not read: this object is in reference cycles."""
        self._callback_parser = None
        self._unparsed = b""
        if self._body_receiver is not None:
            self._body_receiver.signal_disconnect()
            self._body_receiver._chunks.clear()  # noqa: SLF001 - of gunicorn

    # Called by Connections

    def expire(self, now: float) -> None:
        """Close the connection if its client has not done in time what it must do next."""
        wait = self.waits_for
        if wait is None or now - self.since < self._allowed(wait):
            return
        if wait in {_HEADER, _BODY}:
            self._refuse(408, f"{wait.value[0]} incomplete after {wait.seconds:.0f} s")
        elif wait in {_REQUEST, _NEXT_REQUEST}:
            self.close_unless_received()
        else:
            self.abort()

    def _allowed(self, wait: Wait) -> float:
        if wait is Wait.CLOSE and self.transport.get_write_buffer_size():
            return WRITE_TIMEOUT
        if wait is _BODY and self._reading_paused:
            # The application has not read what was received: the client is not late.
            return float("inf")
        return wait.seconds

    def close_unless_received(self) -> None:
        """Close an idle connection, unless a request has reached this machine and waits to be read."""
        if not has_unread_data(self):
            self._close_transport()

    def abort(self) -> None:
        """Close both sides at once."""
        self._forget()
        self.transport.abort()

    def _refuse(self, status: int, reason: str) -> None:
        if self._closed:
            return
        refusal = TransportRefusal(status, reason, new_request_id())
        self._connections.refusals.record(refusal)
        if self._current_request is None or not self._responding:
            self._safe_write(refusal.response())
        self._close_transport()

    def _forget(self) -> None:
        self._wait(None)
        self._connections.open.discard(self)

    def _wake(self) -> None:
        """Let the task that waits for the next request see that the connection is closed."""
        self._request_ready.set()


def has_unread_data(connection: Connection) -> bool:
    """Tell whether the socket of a connection has received data that the event loop has not read yet."""
    sock = connection.transport.get_extra_info("socket")
    if sock is None:
        # A TLS connection that is lost, of which uvloop tells the protocol in its next turn.
        return False
    unread = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, unread)
    return bool(unread[0])
