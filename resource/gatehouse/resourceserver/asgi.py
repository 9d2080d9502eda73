"""The ASGI entry: it handles every request first, and every response last.

It compares the path byte by byte, checks Host and Origin, calls the endpoint, and writes one log line. Its refusals are
plain JSON, because no JSON-RPC message has been read yet. As at the gate, the audit event of a refusal is on disk
before the response is sent, so an operator can find the reason by the request id.
"""

import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final

import structlog

from gatehouse.resourceserver.health import PATHS as HEALTH_PATHS
from gatehouse.resourceserver.http import (
    ClientDisconnected,
    Endpoint,
    Headers,
    Receive,
    Request,
    Response,
    Scope,
    Send,
    json_response,
)
from gatehouse.resourceserver.metadata import metadata_paths
from gatehouse.resourceserver.settings import Settings
from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.service import deadline
from gatehouse.shared.service.audit.events import AuditAction, AuditEvent
from gatehouse.shared.service.audit.writer import AuditUnavailable, AuditWriter
from gatehouse.shared.service.cors import CorsPolicy, Header
from gatehouse.shared.service.requests import (
    RETRY_AFTER,
    UNAVAILABLE,
    UNKNOWN_PATH,
    RequestLog,
    add_to_log,
    common_headers,
    new_request_id,
    raw_headers,
)

Lifespan = Callable[[], AbstractAsyncContextManager[None]]

_READ: Final = ("GET", "HEAD")

log = structlog.stdlib.get_logger(__name__)


class HttpError(Exception):
    """A refusal. The description is a constant text for the client; `reason` and `remediation` are for the operator."""

    def __init__(
        self,
        status: int,
        error: str,
        description: str,
        *,
        reason: str | None = None,
        remediation: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(description)
        self.status = status
        self.error = error
        self.description = description
        self.reason = reason or description
        self.remediation = remediation
        self.headers = headers or {}

    def response(self, request_id: str) -> Response:
        """Return the response."""
        content = {"error": self.error, "error_description": self.description, "request_id": request_id}
        return json_response(content, self.status, {"Cache-Control": "no-store", **self.headers})


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint. Without methods, it decides about them itself."""

    endpoint: Endpoint
    methods: tuple[str, ...] = _READ


class Application:
    """The ASGI application of one process."""

    def __init__(self, settings: Settings, routes: Mapping[str, Route], audit: AuditWriter, lifespan: Lifespan) -> None:
        """Create the application. `routes` are by path; `lifespan` is entered before the first request."""
        self._routes = routes
        self._audit = audit
        self._lifespan = lifespan
        self._hosts = settings.hosts
        self._origins = settings.origins
        self._cors = CorsPolicy(settings.origins, _cross_origin_methods(settings))
        self._resource = settings.resource

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or the lifespan of the process (ASGI 3)."""
        if scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
            return
        request_id = new_request_id()
        request_log = RequestLog(request_id)
        deadline.begin()
        request = self._read_request(scope, receive, send, request_id)
        try:
            response = await self._answer(request)
            if response is not None:
                await self._send(request, response)
        finally:
            if request.on_end is not None:
                request.on_end()
            request_log.finish(request.method, self._known_path(request), request.status)

    def record(self, event: AuditEvent) -> None:
        """Queue an event of the worker, which refuses requests that are not valid HTTP. Raises AuditUnavailable."""
        self._audit.record(event)

    def _read_request(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> Request:
        # As it was sent: a proxy may decide by a path that it decodes differently, or not at all.
        raw_path = scope.get("raw_path")
        path = raw_path.decode("latin-1") if raw_path is not None else scope["path"]
        headers = Headers(list(scope["headers"]))
        return Request(scope, receive, send, scope["method"], path, headers, request_id, self._common_headers)

    async def _answer(self, request: Request) -> Response | None:
        """Return the response; None if it has been sent, or the client has disconnected."""
        try:
            try:
                return await self._find(request)(request)
            except HttpError as error:
                return await self._refuse(request, error)
            except ClientDisconnected:
                return None
        except Exception:
            log.exception("request failed")
            if request.status:
                return None
            failure = HttpError(
                500,
                "server_error",
                "The server failed. Report the request id.",
                reason="internal error; the log has its traceback",
            )
            return await self._refuse(request, failure)

    def _find(self, request: Request) -> Endpoint:
        """Return the endpoint of a request. Raises HttpError."""
        if request.path not in HEALTH_PATHS:
            self._check_host_and_origin(request.headers)
        if request.method == "OPTIONS" and self._cors.is_preflight(request.path, request.headers.joined()):
            return self._answer_preflight
        route = self._routes.get(request.path)
        if route is None:
            raise self._no_such_endpoint(404)
        if route.methods and request.method not in route.methods:
            raise self._no_such_endpoint(405, {"Allow": ", ".join(route.methods)})
        return route.endpoint

    def _check_host_and_origin(self, headers: Headers) -> None:
        """Prevent DNS rebinding: a web page must not reach this server under its own host name (CVE-2025-66416).

        Raises:
            HttpError: the request does not have exactly one allowed Host, or has another Origin than one allowed.
        """
        hosts, origins = headers.lines(b"host"), headers.lines(b"origin")
        if not _single_in(hosts, self._hosts):
            reason, remediation = _explain("Host", hosts, self._hosts, "RESOURCESERVER_RESOURCE")
            text = "This server does not answer for that Host."
            raise HttpError(421, "invalid_request", text, reason=reason, remediation=remediation)
        if origins and not _single_in(origins, self._origins):
            reason, remediation = _explain("Origin", origins, self._origins, "RESOURCESERVER_ALLOWED_ORIGINS")
            text = "Pages of that Origin may not call."
            raise HttpError(403, "invalid_request", text, reason=reason, remediation=remediation)

    def _no_such_endpoint(self, status: int, headers: Mapping[str, str] | None = None) -> HttpError:
        return HttpError(
            status,
            "invalid_request",
            "No such endpoint or method. The MCP endpoint is the resource's own URL.",
            remediation=f"Send JSON-RPC by POST to {self._resource}.",
            headers=headers,
        )

    async def _answer_preflight(self, request: Request) -> Response:
        """Answer a browser that asks what a page of an allowed origin may send. It has no token yet."""
        headers = self._cors.preflight_headers(request.path, request.headers.joined())
        return Response(204, headers=raw_headers(headers))

    async def _refuse(self, request: Request, error: HttpError) -> Response:
        """Record a refusal and return its response, or a 503 if the audit event cannot be written to disk."""
        add_to_log(reason=error.reason)
        event = AuditEvent(
            AuditAction.HTTP_REQUEST,
            "refused" if error.status < 500 else "failed",
            object=self._known_path(request),
            request_id=request.request_id,
            reason=error.reason,
            detail={"status": error.status, **({"remediation": error.remediation} if error.remediation else {})},
        )
        try:
            await self._audit.commit_async(event)
        except AuditUnavailable as unavailable:
            log.error("a refusal cannot be recorded", error=str(unavailable))
            error = HttpError(503, "temporarily_unavailable", UNAVAILABLE, headers=RETRY_AFTER)
        return error.response(request.request_id)

    async def _send(self, request: Request, response: Response) -> None:
        request.status = response.status
        headers = [*response.headers, *self._common_headers(request)]
        if response.status != 204:
            headers.append((b"content-length", str(len(response.body)).encode()))
        await request.raw_send({"type": "http.response.start", "status": response.status, "headers": headers})
        await request.raw_send(
            {"type": "http.response.body", "body": b"" if request.method == "HEAD" else response.body}
        )

    def _common_headers(self, request: Request) -> Sequence[Header]:
        """Return the headers that every response to a request has."""
        cors: Sequence[Header] = self._cors.without_origin.get(request.path, ())
        if origins := request.headers.lines(b"origin"):
            cors = self._cors.response_headers(request.path, b",".join(origins).decode("latin-1"))
        return [*common_headers(request.request_id), *cors]

    def _known_path(self, request: Request) -> str:
        """Return the path of a request as it may be logged."""
        return request.path if request.path in self._routes else UNKNOWN_PATH

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
        """Run the background work between the start and the end of the process (ASGI's lifespan protocol)."""
        phase = "startup"
        try:
            await receive()
            async with self._lifespan():
                await send({"type": "lifespan.startup.complete"})
                phase = "shutdown"
                await receive()
        except BaseException:
            # Without the message, some ASGI servers would serve without the lifespan.
            await send({"type": f"lifespan.{phase}.failed", "message": traceback.format_exc()})
            raise
        await send({"type": "lifespan.shutdown.complete"})


def _cross_origin_methods(settings: Settings) -> dict[str, str]:
    """Return the paths that web pages may call, with their methods."""
    # Clients of 2025-11-25 also send GET and DELETE. A page can read the 405 only if it may send them.
    return dict.fromkeys(metadata_paths(settings), "GET") | {settings.endpoint_path: "POST, GET, DELETE"}


def _single_in(values: Sequence[bytes], allowed: frozenset[str]) -> bool:
    return len(values) == 1 and values[0].decode("latin-1").lower() in allowed


def _explain(header: str, values: Sequence[bytes], allowed: frozenset[str], setting: str) -> tuple[str, str]:
    """Return the private reason and the remediation."""
    sent = quoted(b", ".join(values).decode("latin-1"))
    return (
        f"{header}: {sent or 'none'}",
        f"Send one {header} of: {', '.join(sorted(allowed))}. The setting is {setting}.",
    )
