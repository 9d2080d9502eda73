"""`GET /livez` and `GET /readyz`, for whoever keeps the server running."""

from collections.abc import Awaitable, Callable

from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gatehouse.resourceserver.bearer.jwks import KeySource
from gatehouse.resourceserver.bearer.status import StatusLists
from gatehouse.resourceserver.db.database import AsyncDatabase
from gatehouse.shared.service.audit_writer import AuditWriter

PATHS = frozenset({"/livez", "/readyz"})
"""Served for any Host: a load balancer asks by address."""

_HEADERS = {"Cache-Control": "no-store"}

Endpoint = Callable[[Request], Awaitable[Response]]


async def livez(_: Request) -> Response:
    """Answer that the process serves requests."""
    return JSONResponse({"status": "ok"}, headers=_HEADERS)


def readyz(database: AsyncDatabase, keys: KeySource, statuses: StatusLists, audit: AuditWriter) -> Endpoint:
    """Return the endpoint that answers whether calls can be served: 200 when every check is `ok`, else 503.

    Status lists that are stale do not count where the server is set to fail open: calls are served then.
    """

    async def endpoint(_: Request) -> Response:
        checks = {"database": "ok", "issuer_keys": "ok" if keys.ready else "none is known"}
        try:
            await database.ping()
        except SQLAlchemyError:
            checks["database"] = "does not answer"
        if not audit.available:
            checks["database"] = "takes no audit events"
        ready = set(checks.values()) == {"ok"} and statuses.ready
        content = {"status": "ok" if ready else "unavailable", **checks, "status_lists": statuses.state}
        return JSONResponse(content, 200 if ready else 503, _HEADERS)

    return endpoint
