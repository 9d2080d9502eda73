"""The ASGI entry: it handles every request first, and every response last.

It compares the path byte by byte, reads the body, calls the endpoint, records and renders every refusal, and writes one
log line. It waits only for the client and the audit log; what else must be waited for is up to the endpoints.
"""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from gatehouse.authserver.clients.authentication import read_claimed_client
from gatehouse.authserver.endpoints.metadata import PATH as METADATA
from gatehouse.authserver.errors import (
    AuthFailure,
    OAuthError,
    invalid_request,
    refuse,
    report_outage,
    too_many_requests,
)
from gatehouse.authserver.http import (
    BadRequest,
    Endpoint,
    Receive,
    Request,
    RequestBody,
    Response,
    Scope,
    read_request,
)
from gatehouse.authserver.keys.sealed_keys import NoUsableKey
from gatehouse.authserver.metrics import Metrics
from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.service import deadline
from gatehouse.shared.service.audit.events import AuditAction, AuditEvent
from gatehouse.shared.service.audit.writer import AuditUnavailable, AuditWriter
from gatehouse.shared.service.cors import CorsPolicy, Header
from gatehouse.shared.service.limits import Limit
from gatehouse.shared.service.refusals import RefusalRecorder
from gatehouse.shared.service.requests import UNKNOWN_PATH, RequestLog, common_headers, new_request_id, raw_headers
from gatehouse.shared.service.source_address import SourceAddresses

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OUTAGES = (SQLAlchemyError, NoUsableKey, AuditUnavailable, deadline.DeadlineExceeded)
"""During one of these, a request can neither be granted nor refused."""

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint, and the audit action of its refusals; None records them as `http.request` for the path."""

    method: str
    endpoint: Endpoint
    action: AuditAction | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that the endpoint answers."""
        return ("GET", "HEAD") if self.method == "GET" else (self.method,)


class Routes:
    """Every path of the server. A last segment in angle brackets stands for any text without a slash."""

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self._known: dict[bytes, tuple[str, Route]] = {}
        self._parents: dict[bytes, tuple[str, Route]] = {}
        for path, route in routes.items():
            parent, _, last = path.rpartition("/")
            if last.startswith("<"):
                self._parents[parent.encode()] = path, route
            else:
                self._known[path.encode()] = path, route

    def find(self, raw_path: bytes) -> tuple[str, Route | None]:
        """Return the path as it may be logged, and its route. The path is as it was sent: nothing is decoded."""
        if (known := self._known.get(raw_path)) is not None:
            return known
        parent, _, last = raw_path.rpartition(b"/")
        return (self._parents.get(parent) if last else None) or (UNKNOWN_PATH, None)


@dataclass(frozen=True, slots=True)
class Refusing:
    """What decides about refused requests."""

    recorder: RefusalRecorder
    failures: Limit
    """Of authentication, per client and source address."""
    addresses: SourceAddresses


class Application:
    """The ASGI application of one process."""

    def __init__(
        self,
        routes: Mapping[str, Route],
        audit: AuditWriter,
        pool: Executor,
        cors: CorsPolicy,
        refusing: Refusing,
        metrics: Metrics,
        *,
        start: Callable[[], None],
        close: Callable[[], Awaitable[None]],
    ) -> None:
        """Create the application. `pool` is for `Request.in_thread`; its lifespan calls `start` and `close`."""
        self._routes = Routes(routes)
        self._audit = audit
        self._refusing = refusing
        self._pool = pool
        self._cors = cors
        self._metrics = metrics
        self._preflight = Route("OPTIONS", self._answer_preflight)
        self._start = start
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or the lifespan of the process (ASGI 3)."""
        if scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
            return
        request_id = new_request_id()
        request_log = RequestLog(request_id)
        path, route = self._routes.find(scope["raw_path"])
        request = read_request(scope, request_id)
        body = RequestBody(request.headers, receive)
        response = None
        try:
            response = await self._answer(request, body, path, route)
            await _send(send, request, response, self._cors_headers(request))
        finally:
            status = response.status if response is not None else 0
            outcome, seconds = request_log.finish(request.method, path, status)
            if route is not None and route.action is AuditAction.TOKEN_ISSUE and request.method == route.method:
                self._count_token_request(request, response, outcome, seconds)
            if response is not None and response.cause:
                self._count_auth_failure(response.cause)

    def _count_token_request(self, request: Request, response: Response | None, outcome: str, seconds: float) -> None:
        metrics = self._metrics
        error = response.error if response is not None else ""
        # Only an authenticated client: the actor is marked as long as it is only claimed.
        client_id = metrics.clients.get(request.actor, "")
        metrics.token_requests[request.grant_type, request.auth_method, outcome, error, client_id].inc()
        metrics.token_durations[(outcome,)].observe(seconds)

    def _count_auth_failure(self, cause: str) -> None:
        self._metrics.auth_failures[(cause,)].inc()
        if cause == AuthFailure.ASSERTION_REPLAYED:
            self._metrics.replays.inc()

    async def _answer(self, request: Request, body: RequestBody, path: str, route: Route | None) -> Response:
        """Return the response to a request. Every refusal is recorded and rendered here."""
        try:
            try:
                called = await self._receive(request, body, route)
            except (OAuthError, BadRequest) as error:
                return await refuse(self._refusing.recorder, request.request_id, _refusal(error), target=path)
            request.pool = self._pool
            return await self._call(called, request, path)
        except Exception:
            log.exception("request failed")
            failure = OAuthError("server_error", "The server failed. Report the request id.", status=500)
            return await refuse(self._refusing.recorder, request.request_id, failure, target=path)

    async def _receive(self, request: Request, body: RequestBody, route: Route | None) -> Route:
        """Read a request, and return its route. Its deadline begins when it has been read, or is refused."""
        try:
            called = self._check(request, route)
            request.body = await body.read()
        finally:
            deadline.begin()
        return called

    def _check(self, request: Request, route: Route | None) -> Route:
        """Return the route of a request, before its body is read. Raises OAuthError."""
        if not request.path.startswith("/"):
            # A proxy may decide by a path that it reads differently (docs/divergences.md).
            raise invalid_request("Send the path and not a whole URL as the request target (RFC 9112 3.2.1).")
        if request.method == "OPTIONS" and self._cors.is_preflight(request.path, request.headers):
            return self._preflight
        if route is None:
            raise invalid_request(f"No such endpoint or method. See {METADATA}.", status=404)
        if request.method not in route.methods:
            refusal = invalid_request(f"No such endpoint or method. See {METADATA}.", status=405)
            refusal.headers["Allow"] = ", ".join(route.methods)
            raise refusal
        return route

    async def _call(self, route: Route, request: Request, path: str) -> Response:
        try:
            return await route.endpoint(request)
        except OUTAGES as error:
            return report_outage(request.request_id, error, route.action)
        except BadRequest as error:
            read_claimed_client(request)
            refusal = _refusal(error)
        except OAuthError as error:
            refusal = await self._limited(request, error)
        recorder, action, target = self._refusing.recorder, route.action, request.target
        if action is None:
            return await refuse(recorder, request.request_id, refusal, target=target or path)
        return await refuse(
            recorder,
            request.request_id,
            refusal,
            action=action,
            actor=request.actor,
            target=target,
            external=request.external,
            address=self._address(request) if refusal.exceeded is not None else "",
        )

    async def _limited(self, request: Request, error: OAuthError) -> OAuthError:
        """Return the refusal itself or, for a failed authentication past the limit, the 429 in its place.

        The credential has been checked by now, so a right one always passes. Clients that do not exist are counted
        like others, by the client_id that the request claims.
        """
        if error.cause is None:
            return error
        exceeded = await self._refusing.failures.hit(f"{request.actor} {self._address(request)}")
        return error if exceeded is None else too_many_requests(exceeded, error)

    def _address(self, request: Request) -> str:
        return self._refusing.addresses.find(request.peer, request.headers.get("x-forwarded-for"))

    async def _answer_preflight(self, request: Request) -> Response:
        """Answer a browser that asks what a page may send. Raises OAuthError if its origin is not allowed."""
        origin = request.headers["origin"]
        if not self._cors.allows(origin):
            raise OAuthError(
                "invalid_request",
                "Pages of that Origin may not call.",
                reason=f"Origin: {quoted(origin)}",
                remediation="Name the origin in AUTHSERVER_ALLOWED_ORIGINS.",
                status=403,
            )
        headers = self._cors.preflight_headers(request.path, request.headers)
        return Response(204, headers=headers)

    def _cors_headers(self, request: Request) -> Sequence[Header]:
        if (origin := request.headers.get("origin")) is not None:
            return self._cors.response_headers(request.path, origin)
        return self._cors.without_origin.get(request.path, ())

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
        """Start the background work, and stop it at the end (ASGI's lifespan protocol)."""
        await receive()
        self._start()
        async with self._refusing.recorder.running():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await self._close()
        await send({"type": "lifespan.shutdown.complete"})

    def record(self, event: AuditEvent) -> None:
        """Queue an event of the worker, which refuses requests that are not valid HTTP. Raises AuditUnavailable."""
        self._audit.record(event)


def _refusal(error: OAuthError | BadRequest) -> OAuthError:
    return error if isinstance(error, OAuthError) else invalid_request(error.description, status=error.status)


async def _send(send: Send, request: Request, response: Response, cors: Sequence[Header]) -> None:
    headers = [*raw_headers(response.headers), *common_headers(request.request_id), *cors]
    if response.status not in {204, 304}:
        headers.append((b"content-length", str(len(response.body)).encode()))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if request.method == "HEAD" else response.body})
