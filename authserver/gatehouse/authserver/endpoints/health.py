"""`GET /livez` and `GET /readyz`, for load balancers and supervisors."""

from sqlalchemy.exc import SQLAlchemyError

from gatehouse.authserver.db.database import Database
from gatehouse.authserver.http import Request, Response, json_response
from gatehouse.authserver.keys.sealed_keys import NoUsableKey
from gatehouse.authserver.keys.store import KeyStore
from gatehouse.shared.service import deadline
from gatehouse.shared.service.audit.writer import AuditWriter
from gatehouse.shared.service.heartbeat import CHECK_LIMIT

_HEADERS = {"Cache-Control": "no-store"}


async def livez(_: Request) -> Response:
    """Answer 200: the process serves requests."""
    return json_response({"status": "ok"}, headers=_HEADERS)


async def readyz(database: Database, keys: KeyStore, audit: AuditWriter, request: Request) -> Response:
    """Answer whether tokens can be issued: 200 if every check is `ok`, else 503."""
    checks = {"database": "does not accept writes", "signing_key": "not checked"}
    if audit.available:
        with deadline.renewed(CHECK_LIMIT):
            checks = await request.in_thread(_run_checks, database, keys)
    ready = set(checks.values()) == {"ok"}
    return json_response({"status": "ok" if ready else "unavailable", **checks}, 200 if ready else 503, _HEADERS)


def _run_checks(database: Database, keys: KeyStore) -> dict[str, str]:
    checks = {"database": "ok", "signing_key": "ok"}
    try:
        database.ping()
    except SQLAlchemyError:
        checks["database"] = "does not answer"
    try:
        keys.ring()
    except (SQLAlchemyError, NoUsableKey):
        checks["signing_key"] = "none is usable"
    return checks
