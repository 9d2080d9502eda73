"""A worker without processes or sockets: connections on fake transports, on a fake clock."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from gunicorn.config import Config
from gunicorn.glogging import Logger

from gatehouse.shared.service.audit.events import AuditEvent
from gatehouse.shared.service.connection import Connection
from gatehouse.shared.service.connections import Connections
from gatehouse.shared.service.transport_refusals import TransportRefusals
from support.clock import FakeClock

App = Callable[[dict[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]
GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"


class Events:
    """Keeps what the worker records."""

    def __init__(self) -> None:
        self.recorded: list[AuditEvent] = []

    def record(self, event: AuditEvent) -> None:
        self.recorded.append(event)


class FakeTransport(asyncio.Transport):
    """Keeps what is written, and delivers no data by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.unsent = 0
        """Bytes that the client has not read."""
        self.half_closed = self.closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("192.0.2.1", 4321), "sockname": ("192.0.2.2", 80)}.get(name, default)

    def write(self, data: Any) -> None:
        assert not self.half_closed
        self.written += bytes(data)

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        self.half_closed = True

    def can_write_eof(self) -> bool:
        return True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    abort = close


class FakeWorker:
    """What a connection needs of gunicorn's worker and of ours."""

    def __init__(self, app: App, clock: FakeClock, limit: int = 10) -> None:
        self.cfg = Config()
        for name, value in {"http_parser": "fast", "keepalive": 75, "limit_request_line": 4094}.items():
            self.cfg.set(name, value)
        self.log = Logger(self.cfg)
        self.log.error_log.setLevel(logging.CRITICAL)
        self.asgi = app
        self.loop = asyncio.get_running_loop()
        self.state: dict[str, Any] = {}
        self.alive = True
        self.nr = self.nr_conns = 0
        self.max_requests = sys.maxsize
        self.events = Events()
        self.connections = Connections(limit, TransportRefusals(self.events, clock), clock)

    def connect(self) -> "Client":
        return Client(self)


class Client:
    """The client of one connection."""

    def __init__(self, worker: FakeWorker) -> None:
        self.transport = FakeTransport()
        self.connection = Connection(worker)
        self.connection.connection_made(self.transport)

    async def send(self, data: bytes) -> bytes:
        """Send data, let the application run, and return what was received since the last call."""
        if data:
            self.connection.data_received(data)
        for _ in range(20):
            await asyncio.sleep(0)
        received, self.transport.written = self.transport.written, b""
        return received

    async def leave(self) -> None:
        """Close the connection, and let its task end."""
        self.connection.connection_lost(None)
        await self.send(b"")

    @property
    def state(self) -> str:
        """`open`, `half-closed` (by the server) or `closed`."""
        return "closed" if self.transport.closed else "half-closed" if self.transport.half_closed else "open"


MakeWorker = Callable[..., FakeWorker]


async def answering(_scope: Any, receive: Any, send: Any) -> None:
    """Read the whole body, and answer with its length."""
    length, message = 0, {"more_body": True}
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length += len(message["body"])
    await respond(send, str(length).encode())


async def refusing(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer without reading the body."""
    await respond(send, b"no")


async def respond(send: Callable[[Any], Awaitable[None]], body: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def answering_after(finish: asyncio.Event) -> App:
    """Return an application that waits for an event before it reads the body and answers."""

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await finish.wait()
        await answering(scope, receive, send)

    return slow
