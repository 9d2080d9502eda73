"""`GET /livez` and `GET /readyz`, for load balancers and process supervisors."""

from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from gatehouse.resourceserver.bearer.jwks import KeySource
from gatehouse.resourceserver.bearer.status import StatusLists
from gatehouse.resourceserver.db.request_database import RequestDatabase
from gatehouse.resourceserver.http import Endpoint, Request, Response, json_response
from gatehouse.shared.service import deadline
from gatehouse.shared.service.audit.writer import AuditWriter
from gatehouse.shared.service.heartbeat import CHECK_LIMIT

PATHS = frozenset({"/livez", "/readyz"})
"""These paths are served for any Host, because load balancers send an IP address."""

_HEADERS = {"Cache-Control": "no-store"}


@dataclass(slots=True)
class Serving:
    """Whether this process serves: the session managers and the background tasks run."""

    running: bool = False


async def livez(_: Request) -> Response:
    """Answer that the process serves requests."""
    return json_response({"status": "ok"}, headers=_HEADERS)


def readyz(
    database: RequestDatabase, keys: KeySource, statuses: StatusLists, audit: AuditWriter, serving: Serving
) -> Endpoint:
    """Return the endpoint that reports whether calls can be served: 200 when every check is `ok`, else 503.

    Stale status lists do not count if RESOURCESERVER_STATUS_FAILURE is `open`, because calls are served then.
    """

    async def endpoint(_: Request) -> Response:
        checks = {
            "database": "ok" if audit.available else "does not accept writes",
            "issuer_keys": "ok" if keys.ready else "none is known",
            "sessions": "ok" if serving.running else "ended",
        }
        if checks["database"] == "ok":
            try:
                with deadline.renewed(CHECK_LIMIT):
                    await database.ping()
            except SQLAlchemyError:
                checks["database"] = "does not answer"
        ready = set(checks.values()) == {"ok"} and statuses.ready
        content = {"status": "ok" if ready else "unavailable", **checks, "status_lists": statuses.state}
        return json_response(content, 200 if ready else 503, _HEADERS)

    return endpoint
