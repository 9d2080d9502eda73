"""A third-party MCP server built with the SDK, on a real socket: tools, a resource, a prompt, and broken responses."""

from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from local_stack import free_port
from mcp import Client
from mcp.client._transport import TransportStreams
from mcp.server import Server
from mcp.server.mcpserver import Context, MCPServer
from mcp.shared.memory import create_client_server_memory_streams
from mcp_types import Implementation, ToolAnnotations
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gatehouse.bridge.bearer_auth import BearerAuth
from gatehouse.bridge.http_client import create_http
from gatehouse.bridge.remote import RemoteServer
from gatehouse.bridge.server import Bridge, create_server, initialization
from gatehouse.bridge.tokens import TokenSource
from support.asgi_server import listening
from support.fake_servers import CLIENT

OWN = Implementation(name="gatehouse-bridge", version="1")

Disturbance = Callable[[ASGIApp, Scope, Receive, Send], Any]
"""Answers a request instead of the application, or breaks the application's response."""


def break_after_running(content_type: str = "application/json") -> Disturbance:
    """Execute the request and lose the response, like a server that is killed in between."""

    async def break_off(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        async def discard(_: Any) -> None:
            pass

        await app(scope, receive, discard)
        headers = [(b"content-type", content_type.encode()), (b"content-length", b"9")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        # Returning now closes the connection eight bytes early.
        await send({"type": "http.response.body", "body": b"{", "more_body": True})

    return break_off


async def garble(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Execute the request, and answer with malformed JSON."""

    async def discard(_: Any) -> None:
        pass

    await app(scope, receive, discard)
    await Response(b'{"jsonrpc"', media_type="application/json")(scope, receive, send)


def refuse(status: int) -> Disturbance:
    """Answer with a status and execute nothing."""

    async def answer(_: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse({}, status)(scope, receive, send)

    return answer


@dataclass
class NotesServer:
    """The server, the calls it executed, and the disturbances of the next calls."""

    url: str
    calls: Counter[str] = field(default_factory=Counter)
    disturb: deque[Disturbance] = field(default_factory=deque)
    """One for each of the next tool calls."""
    scope: str = "notes:read"
    started: anyio.Event = field(default_factory=anyio.Event)
    cancelled: anyio.Event = field(default_factory=anyio.Event)

    def build(self) -> ASGIApp:
        server = MCPServer("notes", version="9", instructions="Read before you write.")
        reading = ToolAnnotations(read_only_hint=True)

        @server.tool(annotations=reading)
        async def read() -> int:
            self.calls["read"] += 1
            return self.calls["read"]

        @server.tool()
        async def write(idempotency_key: str = "", note: str = "") -> int:
            self.calls["write"] += 1
            return self.calls["write"]

        @server.tool()
        async def erase(note: str = "") -> int:
            self.calls["erase"] += 1
            return self.calls["erase"]

        @server.tool()
        async def count(ctx: Context) -> str:
            for step in (1, 2, 3):
                await ctx.report_progress(step, 3, f"step {step}")
            return "counted"

        @server.tool()
        async def wait() -> str:
            self.started.set()
            try:
                await anyio.sleep_forever()
            finally:
                self.cancelled.set()
            return "never"

        @server.resource("note://one")
        def one() -> str:
            return "the first note"

        @server.prompt()
        def summarize() -> str:
            return "Summarize the notes."

        return server.streamable_http_app(stateless_http=True)

    def around(self, app: ASGIApp) -> ASGIApp:
        """Add the issuer's endpoints and the disturbances."""

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            headers = dict(scope.get("headers", ()))
            if scope["type"] == "http" and scope["path"] != "/mcp":
                await JSONResponse(self._document(scope["path"]))(scope, receive, send)
            elif self.disturb and headers.get(b"mcp-method") == b"tools/call":
                await self.disturb.popleft()(app, scope, receive, send)
            else:
                await app(scope, receive, send)

        return serve

    def _document(self, path: str) -> dict[str, Any]:
        origin = self.url.removesuffix("/mcp")
        if path == "/token":
            return {"access_token": "t", "token_type": "Bearer", "expires_in": 300, "scope": self.scope}
        if path.startswith("/.well-known/oauth-protected-resource"):
            return {"resource": self.url, "authorization_servers": [origin]}
        return {"issuer": origin, "token_endpoint": f"{origin}/token"}


@asynccontextmanager
async def running() -> AsyncIterator[NotesServer]:
    """Serve until the end of the context."""
    port = free_port()
    notes = NotesServer(f"http://127.0.0.1:{port}/mcp")
    async with listening(notes.around(notes.build()), port):
        yield notes


@asynccontextmanager
async def bridged(notes: NotesServer, mode: str) -> AsyncIterator[Client]:
    """Yield a client of a bridge to the server, all in this process."""
    async with create_http() as to_issuer:
        tokens = TokenSource(to_issuer, notes.url, None, lambda: CLIENT)
        async with create_http(BearerAuth(tokens)) as to_remote:
            remote = RemoteServer(notes.url, to_remote, OWN, pauses=(0.0, 0.0))
            server = create_server(Bridge(remote, tokens), await remote.discover(), OWN)
            async with connect(server, mode) as client:
                yield client


@asynccontextmanager
async def connect(server: Server[Any], mode: str) -> AsyncIterator[Client]:
    """Yield a client that exchanges stdio messages with a server in memory."""

    @asynccontextmanager
    async def transport() -> AsyncIterator[TransportStreams]:
        async with create_client_server_memory_streams() as (ours, theirs), anyio.create_task_group() as group:
            group.start_soon(server.run, *theirs, initialization(server))
            yield ours
            group.cancel_scope.cancel()

    async with Client(transport(), mode=mode, cache=None) as client:
        yield client
