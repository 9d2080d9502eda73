"""The SDK's session managers without a gate: a test attaches to the ASGI scope what the gate would."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from mcp.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from starlette.types import ASGIApp, Receive, Scope, Send

from gatehouse.resourceserver.bearer import verified_request
from gatehouse.resourceserver.bearer.verified_request import VerifiedRequest
from gatehouse.shared.protocol.claims import AccessClaims
from support.resourceserver import RESOURCE, modern_request

Attach = Callable[[Scope], None]
"""Puts into the ASGI scope of a request what a test wants dispatch to find there."""


def nothing(_: Scope) -> None:
    """Attach nothing."""


def claims_of(*scopes: str, **static: str) -> AccessClaims:
    """Return the claims of a token that does not expire during a test, with static claims such as workspace_id."""
    return AccessClaims("iss", "agent_1", "agent_1", RESOURCE, 0, 2**40, "jti-1", frozenset(scopes), static=static)


def proven(*scopes: str, **static: str) -> Attach:
    """Attach what the gate attaches when it has verified a token."""
    return lambda scope: verified_request.attach(scope, VerifiedRequest(claims_of(*scopes, **static), "req_1"))


def attaching(app: ASGIApp, attach: Attach) -> ASGIApp:
    """Return an application that attaches something to each request."""

    async def attached(scope: Scope, receive: Receive, send: Send) -> None:
        attach(scope)
        await app(scope, receive, send)

    return attached


@asynccontextmanager
async def without_gate(server: Server[Any], attach: Attach = nothing) -> AsyncIterator[httpx2.AsyncClient]:
    """Serve dispatch alone, without any other part of the resource server."""
    sessions = StreamableHTTPSessionManager(server, json_response=True, stateless=True)
    app = attaching(StreamableHTTPASGIApp(sessions), attach)
    async with sessions.run(), httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as http:
        yield http


async def ask(http: httpx2.AsyncClient, version: str, method: str, **params: Any) -> dict[str, Any]:
    """Send one request in a protocol version, and return the JSON-RPC response."""
    body, headers = modern_request(method, **params)
    if version != "2026-07-28":
        body, headers = {**body, "params": params}, {"MCP-Protocol-Version": version}
    headers["Accept"] = "application/json, text/event-stream"
    answer: dict[str, Any] = (await http.post(RESOURCE, json=body, headers=headers)).json()
    return answer
