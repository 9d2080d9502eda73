"""The gate before the MCP endpoint: who calls, with which rights, in a request that can be read in one way only.

It answers with the status and challenge that each refusal has in HTTP (RFC 6750 3.1; MCP 2026-07-28,
"Error Handling"). What it lets through carries the verified claims to dispatch, which decides again.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gatehouse.resource import policy, verified_request
from gatehouse.resource.bearer.challenge import Challenge
from gatehouse.resource.bearer.jwks import KeysUnavailable
from gatehouse.resource.bearer.verifier import TokenRefused, Verifier
from gatehouse.resource.catalogue import Catalogue
from gatehouse.resource.verified_request import VerifiedRequest
from gatehouse.shared import strict_json
from gatehouse.shared.audit import AuditEvent, AuditUnavailable, AuditWriter
from gatehouse.shared.claims import AccessClaims
from gatehouse.shared.scopes import format_scope

MAX_BODY: Final = 1024 * 1024
"""Bytes of one request."""

METHODS: Final = frozenset({"initialize", "ping", "server/discover", "tools/list", "tools/call"})
"""The closed table of requests. What is not in it is refused, even if the SDK would have a handler."""

NOTIFICATIONS: Final = frozenset(
    f"notifications/{name}" for name in ("initialized", "cancelled", "progress", "roots/list_changed")
)
"""Notifications are acknowledged and have no effect: every request stands for itself."""

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32600, -32601, -32602

_BEARER = re.compile(r"bearer +([A-Za-z0-9\-._~+/]+=*) *", re.ASCII | re.IGNORECASE)
_RETRY_AFTER = {"Retry-After": "2"}

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Rpc:
    """What a JSON-RPC body asks for."""

    id: str | int | None
    method: str
    tool_name: str | None


class _Refused(Exception):
    """The request goes no further. `response` is for the caller, `reason` for the audit trail."""

    def __init__(self, response: Response, reason: str) -> None:
        super().__init__(reason)
        self.response = response
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Gate:
    """An ASGI application around the MCP endpoint."""

    app: ASGIApp
    catalogue: Catalogue
    verifier: Verifier
    challenge: Challenge
    baseline: frozenset[str]
    """Scopes that every 401 names beside the operation's."""
    audit: AuditWriter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request."""
        request = Request(scope, receive)
        request_id: str = scope["gatehouse.request_id"]
        rpc: _Rpc | None = None
        claims: AccessClaims | None = None
        try:
            body = await _read_body(request)
            rpc, malformed = _peek(body)
            claims = await self._authenticate(request.headers, rpc, request_id)
            structlog.contextvars.bind_contextvars(client_id=claims.client_id, jti=claims.jti)
            _check_http(request)
            if malformed is not None:
                raise malformed
            assert rpc is not None  # noqa: S101 - a body is read or malformed
            self._authorize(rpc, claims, request_id)
        except _Refused as refused:
            response = await self._record(refused, rpc, claims, request_id)
            await response(scope, receive, send)
            return
        verified_request.attach(scope, VerifiedRequest(claims, request_id))
        await self.app(scope, _replay(body, receive), send)

    async def _authenticate(self, headers: Headers, rpc: _Rpc | None, request_id: str) -> AccessClaims:
        operation = policy.required_scope(self.catalogue, rpc.tool_name) if rpc and rpc.tool_name else frozenset()
        scope = self.baseline | operation
        sent = headers.getlist("authorization")
        if not sent:
            challenge = {"WWW-Authenticate": self.challenge.no_token(scope)}
            raise _Refused(_problem(401, "unauthorized", "Send an access token.", request_id, challenge), "no token")
        challenge = {"WWW-Authenticate": self.challenge.invalid_token(scope)}
        invalid = _problem(
            401, "invalid_token", "The access token is not valid here. Obtain a new one.", request_id, challenge
        )
        match = _BEARER.fullmatch(sent[0]) if len(sent) == 1 else None
        if match is None:
            raise _Refused(invalid, "not one bearer token")
        try:
            return await self.verifier.verify(match[1])
        except TokenRefused as error:
            raise _Refused(invalid, error.reason) from None
        except KeysUnavailable:
            raise _Refused(
                _problem(
                    503,
                    "temporarily_unavailable",
                    "Tokens cannot be verified now. Try again after the seconds in Retry-After.",
                    request_id,
                    _RETRY_AFTER,
                ),
                "no key of the issuer is known",
            ) from None

    def _authorize(self, rpc: _Rpc, claims: AccessClaims, request_id: str) -> None:
        if rpc.method not in (METHODS if rpc.id is not None else NOTIFICATIONS):
            raise _rpc_refused(404, METHOD_NOT_FOUND, "This server does not have the method.", rpc.id)
        if rpc.method != "tools/call":
            return
        if rpc.tool_name is None:
            raise _rpc_refused(400, INVALID_PARAMS, "params.name must be the name of a tool.", rpc.id)
        match policy.decide(self.catalogue, claims, rpc.tool_name):
            case policy.UnknownTool():
                raise _rpc_refused(
                    400, INVALID_PARAMS, "There is no such tool. Call tools/list for those that you may call.", rpc.id
                )
            case policy.Forbidden(_, scope):
                text = format_scope(scope)
                response = _problem(
                    403,
                    "insufficient_scope",
                    f"This tool needs the scope {text}. Ask the client's admin for the grant.",
                    request_id,
                    {"WWW-Authenticate": self.challenge.insufficient_scope(scope)},
                )
                raise _Refused(response, f"needs {text}")
            case policy.Allowed():
                return

    async def _record(
        self, refused: _Refused, rpc: _Rpc | None, claims: AccessClaims | None, request_id: str
    ) -> Response:
        """Record a refusal, and return its response when that is on disk."""
        tool_call = rpc is not None and rpc.method == "tools/call"
        name = rpc.tool_name if rpc is not None and tool_call else rpc.method if rpc is not None else None
        structlog.contextvars.bind_contextvars(reason=refused.reason)
        event = AuditEvent(
            "tool.call" if tool_call else "mcp.request",
            "refused",
            actor=claims.client_id if claims else None,
            object=name,
            jti=claims.jti if claims else None,
            request_id=request_id,
            reason=refused.reason,
            detail={"status": refused.response.status_code},
        )
        try:
            await asyncio.wrap_future(self.audit.commit(event))
        except AuditUnavailable as error:
            log.error("a refusal cannot be recorded", error=str(error))
            return _problem(
                503, "temporarily_unavailable", "The server cannot answer now. Try again.", request_id, _RETRY_AFTER
            )
        return refused.response


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise _rpc_refused(413, INVALID_REQUEST, f"A request is at most {MAX_BODY // 1024} KiB.", None)
    return bytes(body)


def _check_http(request: Request) -> None:
    """Refuse what is no JSON POST. GET and DELETE belong to sessions, which this server does not have."""
    if request.method != "POST":
        raise _rpc_refused(405, INVALID_REQUEST, "Send JSON-RPC by POST.", None, {"Allow": "POST"})
    content_type, _, parameters = request.headers.get("content-type", "").partition(";")
    if content_type.strip().lower() != "application/json":
        raise _rpc_refused(415, INVALID_REQUEST, "Send Content-Type: application/json.", None)
    if "charset" in parameters.lower() and "utf-8" not in parameters.lower():
        raise _rpc_refused(415, INVALID_REQUEST, "JSON is UTF-8.", None)


def _peek(body: bytes) -> tuple[_Rpc | None, _Refused | None]:
    """Read what a body asks for: before the caller is known, because a 401 names the operation's scopes.

    Returns either the request, or why it cannot be read; that is told only to a caller with a valid token.
    """
    try:
        message = strict_json.loads(body)
    except strict_json.InvalidJson as error:
        return None, _rpc_refused(400, PARSE_ERROR, f"The body cannot be read. {error}", None)
    if not isinstance(message, dict):
        return None, _rpc_refused(400, INVALID_REQUEST, "Send one JSON-RPC object; batches are not served.", None)
    method, request_id = message.get("method"), message.get("id")
    if isinstance(request_id, bool) or not isinstance(request_id, str | int | None):
        return None, _rpc_refused(400, INVALID_REQUEST, "id must be a string or a whole number.", None)
    if not isinstance(method, str) or ("id" in message and request_id is None):
        return None, _rpc_refused(400, INVALID_REQUEST, "Send a JSON-RPC request: a method, and an id.", request_id)
    params = message.get("params")
    name = params.get("name") if isinstance(params, dict) and method == "tools/call" else None
    return _Rpc(request_id, method, name if isinstance(name, str) else None), None


def _problem(status: int, error: str, description: str, request_id: str, headers: Mapping[str, str]) -> Response:
    content = {"error": error, "error_description": description, "request_id": request_id}
    return JSONResponse(content, status, {"Cache-Control": "no-store", **headers})


def _rpc_refused(
    status: int, code: int, message: str, rpc_id: str | int | None, headers: Mapping[str, str] | None = None
) -> _Refused:
    content: dict[str, Any] = {"jsonrpc": "2.0", "id": rpc_id, "error": {"code": code, "message": message}}
    body = json.dumps(content)
    response = Response(body, status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")
    return _Refused(response, message)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body to the next reader once; after it, the server's own messages, such as a disconnect."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
