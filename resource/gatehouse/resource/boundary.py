"""What every request meets first, and every response gets last, whichever part of the server makes it."""

import time
from collections.abc import Iterable, Mapping

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gatehouse.resource.health import PATHS as HEALTH_PATHS
from gatehouse.resource.metadata import metadata_paths
from gatehouse.resource.settings import Settings
from gatehouse.shared.responses import REQUEST_ID_HEADER, SECURITY_HEADERS, new_request_id

log = structlog.stdlib.get_logger(__name__)


class Boundary:
    """What every request meets first, and every response gets last: Host and Origin, request id, headers, log line."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = settings.hosts
        self._origins = settings.origins
        self._paths = {settings.endpoint_path, *metadata_paths(settings), *HEALTH_PATHS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope["gatehouse.request_id"] = new_request_id()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started, statuses = time.perf_counter(), [500]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses[:] = [message["status"]]
                headers = MutableHeaders(scope=message)
                for name, value in {**SECURITY_HEADERS, REQUEST_ID_HEADER: request_id}.items():
                    headers[name] = value
            await send(message)

        refusal = None if scope["path"] in HEALTH_PATHS else self._refuse_foreign(Headers(scope=scope), request_id)
        try:
            await (refusal or self._app)(scope, receive, send_with_headers)
        except Exception:
            # Starlette has answered by `failed`, and hands the exception on to be logged.
            log.exception("request failed")
        finally:
            milliseconds = round((time.perf_counter() - started) * 1000, 1)
            # A path that is not ours may hold anything, credentials included.
            path = scope["path"] if scope["path"] in self._paths else "(other)"
            log.info("request", method=scope["method"], path=path, status=statuses[0], ms=milliseconds)
            structlog.contextvars.clear_contextvars()

    def _refuse_foreign(self, headers: Headers, request_id: str) -> Response | None:
        """Stop DNS rebinding: a page elsewhere must not reach this server by a name of its own (CVE-2025-66416)."""
        if not _single_in(headers.getlist("host"), self._hosts):
            return problem(421, "invalid_request", "This server does not answer for that Host.", request_id)
        origins = headers.getlist("origin")
        if origins and not _single_in(origins, self._origins):
            return problem(403, "invalid_request", "Pages of that Origin may not call.", request_id)
        return None


def _single_in(values: list[str], allowed: Iterable[str]) -> bool:
    return len(values) == 1 and values[0].lower() in allowed


def problem(
    status: int, error: str, description: str, request_id: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a refusal in plain JSON: no JSON-RPC message is known here that it could answer."""
    content = {"error": error, "error_description": description, "request_id": request_id}
    return JSONResponse(content, status, {"Cache-Control": "no-store", **(headers or {})})


async def failed(request: Request, _: Exception) -> Response:
    """Answer what nobody planned for. Starlette hands the exception on, and the boundary logs it."""
    request_id = request.scope["gatehouse.request_id"]
    return problem(500, "server_error", "The server failed. Report the request id.", request_id)


async def no_such_endpoint(request: Request, error: Exception) -> Response:
    """Answer 404 and 405."""
    return problem(
        getattr(error, "status_code", 404),
        "invalid_request",
        "No such endpoint or method. The MCP endpoint is the resource's own URL.",
        request.scope["gatehouse.request_id"],
        getattr(error, "headers", None),
    )
