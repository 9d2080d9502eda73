"""The map of the resource server: every part, how they are wired, every path."""

import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

import anyio
import httpx2
import structlog
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gatehouse.resource.bearer.challenge import Challenge
from gatehouse.resource.bearer.gate import MAX_BODY, Gate
from gatehouse.resource.bearer.jwks import Fetch, KeySource, http_fetch
from gatehouse.resource.bearer.verifier import Verifier
from gatehouse.resource.catalogue import Catalogue
from gatehouse.resource.dispatch import Dispatch
from gatehouse.resource.metadata import metadata_paths, metadata_url, protected_resource_metadata
from gatehouse.resource.settings import Settings
from gatehouse.resource.store.database import AdminDatabase, Database
from gatehouse.resource.store.models import audit_event
from gatehouse.shared.audit import AuditWriter
from gatehouse.shared.clock import Clock, system_clock
from gatehouse.shared.request_ids import new_request_id
from gatehouse.shared.scopes import parse_scope
from gatehouse.shared.settings import InvalidSettings

_HEALTH_PATHS = frozenset({"/livez", "/readyz"})
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a running resource server."""

    settings: Settings
    catalogue: Catalogue
    database: Database
    audit_database: AdminDatabase
    audit: AuditWriter
    http_client: httpx2.AsyncClient
    keys: KeySource
    sessions: StreamableHTTPSessionManager


def baseline_scopes(settings: Settings, catalogue: Catalogue) -> frozenset[str]:
    """Return the scopes that every 401 names.

    Raises:
        InvalidSettings: one of them is not in the catalogue.
    """
    if settings.baseline_scopes is None:
        return frozenset(catalogue.scopes)
    baseline = parse_scope(settings.baseline_scopes)
    if unknown := sorted(baseline - catalogue.scopes.keys()):
        raise InvalidSettings(
            f"RESOURCESERVER_BASELINE_SCOPES: {unknown[0]} is not a scope of the catalogue. "
            f"There are: {', '.join(catalogue.scopes)}."
        )
    return baseline


def create_services(
    settings: Settings, catalogue: Catalogue, clock: Clock = system_clock, fetch_keys: Fetch | None = None
) -> Services:
    """Make the parts of the server. `fetch_keys` replaces the fetch of the issuer's key set over HTTP."""
    # The environment's proxies are not asked: they would see whom this server trusts.
    http_client = httpx2.AsyncClient(trust_env=False)
    database = Database(settings.database)
    audit_database = AdminDatabase(settings.database)
    audit = AuditWriter(audit_database.engine, audit_event, clock=clock)
    fetch = fetch_keys or http_fetch(http_client, f"{settings.issuer}/.well-known/jwks.json")
    return Services(
        settings=settings,
        catalogue=catalogue,
        database=database,
        audit_database=audit_database,
        audit=audit,
        http_client=http_client,
        keys=KeySource(fetch),
        sessions=StreamableHTTPSessionManager(
            Dispatch(catalogue, database, audit, clock).build_server(),
            json_response=True,
            stateless=True,
            max_request_body_size=MAX_BODY,
            # Host and Origin were checked by our own outermost layer, before anything else was read.
            security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        ),
    )


def create_app(
    settings: Settings, catalogue: Catalogue, clock: Clock = system_clock, fetch_keys: Fetch | None = None
) -> ASGIApp:
    """Return the ASGI application of one process.

    Raises:
        InvalidSettings: a baseline scope is not in the catalogue.
    """
    services = create_services(settings, catalogue, clock, fetch_keys)
    gate = Gate(
        app=StreamableHTTPASGIApp(services.sessions),
        catalogue=catalogue,
        verifier=Verifier(settings.issuer, settings.resource, services.keys, clock),
        challenge=Challenge(metadata_url(settings)),
        baseline=baseline_scopes(settings, catalogue),
        audit=services.audit,
    )
    metadata = JSONResponse(
        protected_resource_metadata(settings, catalogue), headers={"Cache-Control": "public, max-age=300"}
    )
    app = Starlette(
        routes=[
            Route(settings.endpoint_path, gate),
            *(Route(path, _constant(metadata), methods=["GET"]) for path in metadata_paths(settings)),
            Route("/livez", _constant(JSONResponse({"status": "ok"})), methods=["GET"]),
            Route("/readyz", _readyz(services), methods=["GET"]),
        ],
        lifespan=lambda _: _lifespan(services),
        exception_handlers={404: _no_such_endpoint, 405: _no_such_endpoint, Exception: _failed},
    )
    # A redirect to the path with or without a slash would send a client, and its token, to another resource.
    app.router.redirect_slashes = False
    return _Outermost(app, settings)


@contextlib.asynccontextmanager
async def _lifespan(services: Services) -> AsyncIterator[None]:
    async with services.http_client, services.sessions.run(), anyio.create_task_group() as tasks:
        tasks.start_soon(services.keys.poll)
        try:
            yield
        finally:
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(services.audit.close)
                services.audit_database.close()
                await services.database.close()


def _constant(response: Response):  # type: ignore[no-untyped-def]  # noqa: ANN202
    async def endpoint(_: Request) -> Response:
        return response

    return endpoint


def _readyz(services: Services):  # type: ignore[no-untyped-def]  # noqa: ANN202
    async def readyz(_: Request) -> Response:
        """Answer whether calls can be served: 200 when every check is `ok`, else 503."""
        checks = {"database": "ok", "issuer_keys": "ok" if services.keys.ready else "none is known"}
        try:
            await services.database.ping()
        except SQLAlchemyError:
            checks["database"] = "does not answer"
        ready = set(checks.values()) == {"ok"}
        content = {"status": "ok" if ready else "unavailable", **checks}
        return JSONResponse(content, 200 if ready else 503, {"Cache-Control": "no-store"})

    return readyz


async def _failed(request: Request, _: Exception) -> Response:
    request_id = request.scope["gatehouse.request_id"]
    return _plain_problem(500, "server_error", "The server failed. Report the request id.", request_id)


async def _no_such_endpoint(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    headers: dict[str, str] = getattr(error, "headers", None) or {}
    content = {
        "error": "invalid_request",
        "error_description": "No such endpoint or method. The MCP endpoint is the resource's own URL.",
        "request_id": request.scope["gatehouse.request_id"],
    }
    return JSONResponse(content, status, headers)


class _Outermost:
    """What every request meets first, and every response gets last: Host and Origin, request id, headers, log line."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = settings.hosts
        self._origins = settings.origins
        self._paths = {settings.endpoint_path, *metadata_paths(settings), *_HEALTH_PATHS}

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
                for name, value in {**_SECURITY_HEADERS, "X-Request-Id": request_id}.items():
                    headers[name] = value
            await send(message)

        refusal = None if scope["path"] in _HEALTH_PATHS else self._refuse_foreign(Headers(scope=scope), request_id)
        try:
            await (refusal or self._app)(scope, receive, send_with_headers)
        except Exception:
            # Starlette has answered by `_failed`, and hands the exception on to be logged.
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
            return _plain_problem(421, "invalid_request", "This server does not answer for that Host.", request_id)
        origins = headers.getlist("origin")
        if origins and not _single_in(origins, self._origins):
            return _plain_problem(403, "invalid_request", "Pages of that Origin may not call.", request_id)
        return None


def _single_in(values: list[str], allowed: Iterable[str]) -> bool:
    return len(values) == 1 and values[0].lower() in allowed


def _plain_problem(status: int, error: str, description: str, request_id: str) -> Response:
    content = {"error": error, "error_description": description, "request_id": request_id}
    return JSONResponse(content, status, {"Cache-Control": "no-store"})
