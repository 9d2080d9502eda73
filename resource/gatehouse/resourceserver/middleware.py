"""The outermost layer of the server: it handles every request first, and every response last.

Its refusals are plain JSON, because no JSON-RPC message has been read yet. As at the gate, the audit event of a refusal
is on disk before the response is sent, so an operator can find the reason by the request id.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gatehouse.resourceserver.health import PATHS as HEALTH_PATHS
from gatehouse.resourceserver.metadata import metadata_paths
from gatehouse.resourceserver.settings import Settings
from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.service import deadline
from gatehouse.shared.service.audit import AuditAction, AuditEvent
from gatehouse.shared.service.audit_writer import AuditUnavailable, AuditWriter
from gatehouse.shared.service.cors import CorsPolicy
from gatehouse.shared.service.request_log import RequestLog, add_to_log
from gatehouse.shared.service.responses import (
    RETRY_AFTER,
    UNAVAILABLE,
    UNKNOWN_PATH,
    common_headers,
    new_request_id,
)

log = structlog.stdlib.get_logger(__name__)


class RequestMiddleware:
    """Checks Host and Origin, answers preflights, and adds the request id, the common headers and the log line."""

    def __init__(self, app: ASGIApp, settings: Settings, refusals: "Refusals") -> None:
        self._app = app
        self._hosts = settings.hosts
        self._origins = settings.origins
        self._cors = CorsPolicy(settings.origins, _cross_origin_methods(settings))
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # As it was sent: a proxy may decide by a path that it decodes differently, or not at all.
        if (raw_path := scope.get("raw_path")) is not None:
            scope["path"] = raw_path.decode("latin-1")
        request_id = scope["gatehouse.request_id"] = new_request_id()
        request_log, status = RequestLog(request_id), 0
        deadline.begin()
        origin = ",".join(Headers(scope=scope).getlist("origin"))

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                path = scope["path"]
                message["headers"] = [
                    *message["headers"],
                    *common_headers(request_id),
                    *(self._cors.response_headers(path, origin) if origin else self._cors.without_origin.get(path, ())),
                ]
            await send(message)

        try:
            respond = await self._refuse_foreign(scope) or self._answer_preflight(scope) or self._app
            await respond(scope, receive, send_with_headers)
        except Exception:
            # Starlette has answered with `Refusals.failed`, and raised the exception again.
            log.exception("request failed")
        finally:
            request_log.finish(scope["method"], self._refusals.known_path(scope), status)

    def record(self, event: AuditEvent) -> None:
        """Queue an event of the worker, which refuses requests that are not valid HTTP. Raises AuditUnavailable."""
        self._refusals.audit.record(event)

    async def _refuse_foreign(self, scope: Scope) -> Response | None:
        """Prevent DNS rebinding: a web page must not reach this server under its own host name (CVE-2025-66416)."""
        if scope["path"] in HEALTH_PATHS:
            return None
        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if not _single_in(hosts, self._hosts):
            error = HttpError(421, "invalid_request", "This server does not answer for that Host.")
            reason = _explain("Host", hosts, self._hosts, "RESOURCESERVER_RESOURCE")
            return await self._refusals.refuse(scope, error, *reason)
        if origins and not _single_in(origins, self._origins):
            error = HttpError(403, "invalid_request", "Pages of that Origin may not call.")
            reason = _explain("Origin", origins, self._origins, "RESOURCESERVER_ALLOWED_ORIGINS")
            return await self._refusals.refuse(scope, error, *reason)
        return None

    def _answer_preflight(self, scope: Scope) -> Response | None:
        """Answer a browser that asks what a page of an allowed origin may send. It has no token yet."""
        headers = Headers(scope=scope)
        if not self._cors.is_preflight(scope["method"], scope["path"], headers):
            return None
        return Response(status_code=204, headers=self._cors.preflight_headers(scope["path"], headers))


def _cross_origin_methods(settings: Settings) -> dict[str, str]:
    """Return the paths that web pages may call, with their methods."""
    # Clients of 2025-11-25 also send GET and DELETE. A page can read the 405 only if it may send them.
    return dict.fromkeys(metadata_paths(settings), "GET") | {settings.endpoint_path: "POST, GET, DELETE"}


def _single_in(values: list[str], allowed: frozenset[str]) -> bool:
    return len(values) == 1 and values[0].lower() in allowed


def _explain(header: str, values: list[str], allowed: frozenset[str], setting: str) -> tuple[str, str]:
    """Return the private reason and the remediation."""
    sent = quoted(", ".join(values))
    return (
        f"{header}: {sent or 'none'}",
        f"Send one {header} of: {', '.join(sorted(allowed))}. The setting is {setting}.",
    )


@dataclass(frozen=True, slots=True)
class HttpError:
    """A refusal as the client sees it. The description is a constant text."""

    status: int
    error: str
    description: str
    headers: Mapping[str, str] | None = None

    def response(self, request_id: str) -> Response:
        """Return the response."""
        content = {"error": self.error, "error_description": self.description, "request_id": request_id}
        return JSONResponse(content, self.status, {"Cache-Control": "no-store", **(self.headers or {})})


class Refusals:
    """Records and answers requests that are refused before a message is read, or that fail unexpectedly."""

    def __init__(self, settings: Settings, audit: AuditWriter) -> None:
        self._paths = {settings.endpoint_path, *metadata_paths(settings), *HEALTH_PATHS}
        self._resource = settings.resource
        self.audit = audit

    def known_path(self, scope: Scope) -> str:
        """Return the path of a request as it may be logged."""
        return scope["path"] if scope["path"] in self._paths else UNKNOWN_PATH

    async def refuse(
        self, scope: Scope, error: HttpError, reason: str | None = None, remediation: str | None = None
    ) -> Response:
        """Record a refusal and return its response, or a 503 if the audit event cannot be written to disk."""
        request_id = scope["gatehouse.request_id"]
        add_to_log(reason=reason or error.description)
        event = AuditEvent(
            AuditAction.HTTP_REQUEST,
            "refused" if error.status < 500 else "failed",
            object=self.known_path(scope),
            request_id=request_id,
            reason=reason or error.description,
            detail={"status": error.status, **({"remediation": remediation} if remediation else {})},
        )
        try:
            await self.audit.commit_async(event)
        except AuditUnavailable as unavailable:
            log.error("a refusal cannot be recorded", error=str(unavailable))
            error = HttpError(503, "temporarily_unavailable", UNAVAILABLE, RETRY_AFTER)
        return error.response(request_id)

    async def failed(self, request: Request, _: Exception) -> Response:
        """Answer an unexpected exception. Starlette raises it again, and RequestMiddleware logs it."""
        error = HttpError(500, "server_error", "The server failed. Report the request id.")
        return await self.refuse(request.scope, error, "internal error; the log has its traceback")

    async def no_such_endpoint(self, request: Request, error: Exception) -> Response:
        """Answer 404 and 405."""
        status, headers = getattr(error, "status_code", 404), getattr(error, "headers", None)
        text = "No such endpoint or method. The MCP endpoint is the resource's own URL."
        return await self.refuse(
            request.scope,
            HttpError(status, "invalid_request", text, headers),
            remediation=f"Send JSON-RPC by POST to {self._resource}.",
        )
