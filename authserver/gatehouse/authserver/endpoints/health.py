"""`GET /livez` and `GET /readyz`, for whoever keeps the server running."""

from sqlalchemy.exc import SQLAlchemyError

from gatehouse.authserver.http import Request, Response, json_response
from gatehouse.authserver.keys.sealed_keys import NoUsableKey
from gatehouse.authserver.services import Services

_HEADERS = {"Cache-Control": "no-store"}


def livez(services: Services, request: Request) -> Response:
    """Answer that the process serves requests."""
    return json_response({"status": "ok"}, headers=_HEADERS)


def readyz(services: Services, request: Request) -> Response:
    """Answer whether tokens can be issued: 200 when every check is `ok`, else 503."""
    checks = {"database": "ok", "signing_key": "ok"}
    try:
        services.database.ping()
    except SQLAlchemyError:
        checks["database"] = "does not answer"
    if not services.audit.available:
        checks["database"] = "takes no audit events"
    try:
        services.keys.ring()
    except (SQLAlchemyError, NoUsableKey):
        checks["signing_key"] = "none is usable"
    ready = set(checks.values()) == {"ok"}
    return json_response({"status": "ok" if ready else "unavailable", **checks}, 200 if ready else 503, _HEADERS)
