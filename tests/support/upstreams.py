"""An upstream on a real socket that answers exactly what a test scripts, and calls for it."""

import asyncio
import contextlib
import json
import ssl
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from gatehouse.resourceserver.catalogue.policy_file import (
    ClientCredential,
    HeaderCredential,
    HttpTransport,
    UpstreamSettings,
)
from gatehouse.resourceserver.upstream.upstream import Notify, ToolCall
from gatehouse.shared.protocol.claims import AccessClaims

MODERN, LEGACY = "2026-07-28", "2025-11-25"


def upstream_settings(
    url: str,
    *,
    credential: HeaderCredential | ClientCredential | None = None,
    ca_file: Path | None = None,
    **changes: Any,
) -> UpstreamSettings:
    """Return the settings of an upstream over HTTP."""
    defaults: dict[str, Any] = {
        "timeout": 20.0,
        "max_result": 64 * 1024,
        "max_sessions": 10,
        "idle_timeout": 600.0,
        "caller_identity": False,
    }
    return UpstreamSettings(HttpTransport(url, ca_file, credential), **{**defaults, **changes})


def claims_of(client_id: str = "agent_1") -> AccessClaims:
    """Return the claims of a caller."""
    return AccessClaims("https://as.example.com", client_id, client_id, "https://x/mcp", 1, 2, "jti", frozenset())


def call_of(
    tool: str | Mapping[str, Any] = "echo",
    *,
    client_id: str = "agent_1",
    notify: Notify | None = None,
    meta: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> ToolCall:
    """Return a call of a tool, by its name or its description."""
    described = {"name": tool, "inputSchema": {"type": "object"}} if isinstance(tool, str) else tool
    return ToolCall(claims_of(client_id), described, arguments, meta or {}, notify)


@dataclass(frozen=True)
class Received:
    """A request that the scripted server received."""

    http_method: str
    headers: Mapping[str, str]
    """By name in lower case."""
    body: Any
    """The message; None if there is none."""
    connection: int
    """Which connection it came on, counted from 1."""

    @property
    def method(self) -> str:
        """The JSON-RPC method; the HTTP method of a request without body, and `answer` for an answer."""
        return self.body.get("method", "answer") if self.body else self.http_method

    @property
    def session(self) -> str | None:
        return self.headers.get("mcp-session-id")


Respond = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


def http_response(
    body: bytes, status: int = 200, content_type: str | None = "application/json", **headers: str
) -> bytes:
    """Return a response as it is sent. Underscores in the names of header fields become hyphens."""
    fields = {"content-length": str(len(body)), **({"content-type": content_type} if content_type else {}), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + body


def raw(document: bytes) -> Respond:
    """Send these bytes."""

    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(document)

    return respond


def status(code: int, body: bytes = b"", content_type: str | None = None, **headers: str) -> Respond:
    """Send a response with a status."""
    return raw(http_response(body, code, content_type, **headers))


def message(**members: Any) -> Respond:
    """Send a JSON-RPC message with these members. Its id is that of the request, unless it is given."""
    return body_of(lambda request: {"jsonrpc": "2.0", "id": request["id"], **members})


def result(value: Any = None, **headers: str) -> Respond:
    """Send a result."""
    return body_of(lambda request: {"jsonrpc": "2.0", "id": request["id"], "result": value or {}}, **headers)


def error(code: Any, http_status: int = 200, **members: Any) -> Respond:
    """Send a JSON-RPC error."""
    return body_of(
        lambda request: {
            "jsonrpc": "2.0",
            "id": request["id"],
            "error": {"code": code, "message": "secret"},
            **members,
        },
        http_status,
    )


def body_of(make: Callable[[Any], Any], http_status: int = 200, **headers: str) -> Respond:
    """Send what a function makes of the request, as JSON."""

    async def respond(received: Received, writer: asyncio.StreamWriter) -> None:
        document = json.dumps(make(received.body)).encode()
        writer.write(http_response(document, http_status, **headers))

    return respond


def events(*parts: Any, end: bool = True) -> Respond:
    """Send an event stream, chunked. A part that is a function makes a message of the request; bytes are sent as such.

    Without `end`, the stream stays open.
    """

    async def respond(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for part in parts:
            data = part if isinstance(part, bytes) else b"data: " + json.dumps(part(received.body)).encode() + b"\n\n"
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            await writer.drain()
        if not end:
            await asyncio.Event().wait()
        writer.write(b"0\r\n\r\n")

    return respond


def slow_events(*parts: Callable[[Any], Any], pause: float) -> Respond:
    """Send an event stream with a pause, in seconds, before each part."""

    async def respond(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\n\r\n")
        for part in parts:
            await asyncio.sleep(pause)
            writer.write(b"data: " + json.dumps(part(received.body)).encode() + b"\n\n")
            await writer.drain()
        writer.close()

    return respond


def answered(value: Any = None) -> Callable[[Any], Any]:
    """Return a part of `events`: the answer."""
    return lambda request: {"jsonrpc": "2.0", "id": request["id"], "result": value or {}}


def progressed(progress: Any, total: Any = None, text: Any = None, token: Any = None) -> Callable[[Any], Any]:
    """Return a part of `events`: a progress notification."""

    def make(request: Any) -> Any:
        params = {"progressToken": request["id"] if token is None else token, "progress": progress}
        more = {name: value for name, value in (("total", total), ("message", text)) if value is not None}
        return {"jsonrpc": "2.0", "method": "notifications/progress", "params": {**params, **more}}

    return make


async def hang(received: Received, writer: asyncio.StreamWriter) -> None:
    """Send nothing, and keep the connection open."""
    await asyncio.Event().wait()


async def hang_up(received: Received, writer: asyncio.StreamWriter) -> None:
    """Close the connection without a response."""
    writer.close()


def forever(start: bytes, more: bytes) -> Respond:
    """Send a start, and then the same bytes again and again until the connection is closed."""

    async def respond(received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(more)
            await writer.drain()
            await asyncio.sleep(0)

    return respond


TOOL = {"name": "echo", "inputSchema": {"type": "object"}}
RESULT = {"content": [{"type": "text", "text": "done"}], "isError": False}


@dataclass
class ScriptedUpstream:
    """Answers faultlessly, unless a test has scripted the next answer to a method."""

    port: int
    version: str = MODERN
    stateful: bool = False
    received: list[Received] = field(default_factory=list)
    script: dict[str, deque[Respond]] = field(default_factory=lambda: defaultdict(deque))
    sessions: set[str] = field(default_factory=set)
    """Those that the server knows."""
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client has closed a connection."""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a request has come."""
    unknown_session: Respond = field(default_factory=lambda: status(404))
    scheme: str = "http"
    _connections: int = 0
    _opened: int = 0
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/mcp"

    def answer(self, method: str, *responds: Respond) -> None:
        """Script the next answers to a JSON-RPC method, or to DELETE."""
        self.script[method].extend(responds)

    def of(self, method: str) -> list[Received]:
        """Return the requests of a method."""
        return [received for received in self.received if received.method == method]

    async def until(self, method: str, count: int = 1) -> list[Received]:
        """Wait until requests of a method have come, and return them."""
        with anyio.fail_after(20):
            while len(found := self.of(method)) < count:
                self.arrived.clear()
                await self.arrived.wait()
        return found

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        connection = self._connections
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")[:-2]
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            received = Received(first.split(" ")[0], headers, json.loads(body) if body else None, connection)
            self.received.append(received)
            self.arrived.set()
            scripted = self.script[received.method]
            await self._watched(
                reader, (scripted.popleft() if scripted else self._faultless(received))(received, writer)
            )
            await writer.drain()

    async def _watched(self, reader: asyncio.StreamReader, responding: Awaitable[None]) -> None:
        """Respond until the client closes the connection. It sends nothing before it has the response."""
        task = asyncio.ensure_future(responding)
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ConnectionError
            task.result()
        finally:
            if gone.done() and not task.done():
                self.closed.set()
            task.cancel()
            if gone.done():
                await asyncio.gather(task, return_exceptions=True)
            else:
                gone.cancel()
                await asyncio.gather(task, gone, return_exceptions=True)

    def _faultless(self, received: Received) -> Respond:
        method = received.method
        modern = received.headers.get("mcp-protocol-version") == MODERN
        if modern != (self.version == MODERN) and method != "initialize":
            return status(400)
        if self.version == MODERN and method == "initialize":
            return error(-32601, 404)
        if received.http_method == "DELETE":
            self.sessions.discard(received.session or "")
            return status(204)
        if method == "initialize":
            return self._initialized()
        if self.stateful and not modern and received.session not in self.sessions:
            return self.unknown_session
        if received.body is None or "id" not in received.body or method == "answer":
            return status(202)
        return result(
            {
                "server/discover": {"supportedVersions": [MODERN], "capabilities": {}},
                "tools/list": {"tools": [TOOL]},
                "tools/call": RESULT,
            }.get(method, {})
        )

    def _initialized(self) -> Respond:
        value = {"protocolVersion": self.version, "capabilities": {}, "serverInfo": {"name": "x", "version": "1"}}
        if not self.stateful:
            return result(value)
        self._opened += 1
        session = f"session-{self._opened}"
        self.sessions.add(session)
        return result(value, mcp_session_id=session)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self.serve(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def scripted_upstream(
    version: str = MODERN, *, stateful: bool = False, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ScriptedUpstream]:
    """Serve until the end of the block."""
    upstream = ScriptedUpstream(0, version, stateful, scheme="http" if tls is None else "https")
    server = await asyncio.start_server(upstream.accept, "127.0.0.1", 0, limit=1024 * 1024, ssl=tls)
    upstream.port = server.sockets[0].getsockname()[1]
    try:
        yield upstream
    finally:
        server.close()
        await upstream.close()
        await server.wait_closed()
