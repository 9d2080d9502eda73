"""The map of the authorization server: every part, how they are wired, every path."""

import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import flask
import structlog
from werkzeug.exceptions import HTTPException

from gatehouse.authserver.authlib_server import AuthlibServer
from gatehouse.authserver.clients.assertions import AssertionVerifier
from gatehouse.authserver.clients.authentication import ClientAuthenticator
from gatehouse.authserver.clients.registry import ClientRegistry
from gatehouse.authserver.credentials.last_use import LastUse
from gatehouse.authserver.credentials.lifecycle import prune_credentials
from gatehouse.authserver.credentials.resource_credentials import ResourceAuthenticator
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import audit_event
from gatehouse.authserver.db.replay import ReplayStore
from gatehouse.authserver.endpoints import (
    authorization,
    health,
    introspection,
    jwks,
    metadata,
    revocation,
    status_lists,
    token,
)
from gatehouse.authserver.errors import OAuthError, invalid_request
from gatehouse.authserver.http import MAX_BODY, BodyIncomplete, BodyTooLarge, Request, Response
from gatehouse.authserver.keys.encryption import load_sealing_key
from gatehouse.authserver.keys.rotation import Rotation, policy_of
from gatehouse.authserver.keys.sealed_keys import SealedKeys
from gatehouse.authserver.keys.store import KeyStore
from gatehouse.authserver.maintenance import Maintenance
from gatehouse.authserver.refusals import refuse
from gatehouse.authserver.services import Services
from gatehouse.authserver.settings import Settings
from gatehouse.authserver.tokens.indices import StatusIndices
from gatehouse.authserver.tokens.issue import TokenIssuer
from gatehouse.authserver.tokens.status_lists import StatusListPublisher
from gatehouse.authserver.tokens.validation import TokenReader
from gatehouse.shared.protocol.clock import Clock, system_clock
from gatehouse.shared.protocol.status_list import PATH as STATUS_LISTS
from gatehouse.shared.service.audit import AuditRows
from gatehouse.shared.service.audit_writer import AuditWriter
from gatehouse.shared.service.cache import MAX_AGE
from gatehouse.shared.service.responses import REQUEST_ID_HEADER, SECURITY_HEADERS, new_request_id, outcome_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Endpoint = Callable[[Services, Request], Response]

_STATUS_LIST = f"{STATUS_LISTS}/<list_id>"

ROUTES: dict[str, tuple[str, Endpoint]] = {
    "/token": ("POST", token.token),
    "/revoke": ("POST", revocation.revocation),
    "/introspect": ("POST", introspection.introspection),
    "/authorize": ("GET", authorization.authorization),
    metadata.PATH: ("GET", metadata.metadata),
    "/.well-known/jwks.json": ("GET", jwks.jwks),
    STATUS_LISTS: ("GET", status_lists.status_lists),
    _STATUS_LIST: ("GET", status_lists.status_list),
    "/livez": ("GET", health.livez),
    "/readyz": ("GET", health.readyz),
}

log = structlog.stdlib.get_logger(__name__)


def create_services(
    settings: Settings,
    clock: Clock = system_clock,
    *,
    monotonic: Callable[[], float] = time.monotonic,
    cache_age: float = MAX_AGE,
) -> Services:
    """Create the parts of the server.

    Clients, keys and resource credentials are read again `cache_age` seconds after they were last read, measured by
    `monotonic`.

    Raises:
        InvalidSettings: there is no usable sealing key.
    """
    # One connection for each thread, one for the audit writer, one for the maintenance.
    database = Database(settings.database, pool_size=settings.threads + 2)
    sealed_keys = SealedKeys(partial(load_sealing_key, settings), settings.issuer)
    rotation = Rotation(database, sealed_keys, policy_of(settings), AuditRows(audit_event, clock), clock)
    replay = ReplayStore(database, clock)
    indices = StatusIndices(database, clock)
    last_use = LastUse(database, clock)
    return Services(
        settings=settings,
        database=database,
        authenticator=ClientAuthenticator(
            ClientRegistry(database, max_age=cache_age, monotonic=monotonic),
            AssertionVerifier(settings.issuer, clock, replay),
            last_use,
            clock,
        ),
        keys=KeyStore(database, sealed_keys, rotation, max_age=cache_age, monotonic=monotonic),
        rotation=rotation,
        maintenance=Maintenance(
            database,
            clock,
            {
                "keys": rotation.run,
                "spent assertions": replay.prune,
                "status lists": indices.prune,
                "credentials": partial(prune_credentials, database, clock),
            },
            own={"last uses": last_use.write},
        ),
        authlib=AuthlibServer(TokenIssuer(settings.issuer, settings.token_ttl, clock, indices.take)),
        audit=AuditWriter(database.engine, AuditRows(audit_event, clock)),
        tokens=TokenReader(database, settings.issuer, clock),
        status_lists=StatusListPublisher(database, settings.issuer, clock, monotonic=monotonic),
        resource_authenticator=ResourceAuthenticator(database, clock, last_use, max_age=cache_age, monotonic=monotonic),
        last_use=last_use,
    )


def create_app(
    settings: Settings,
    clock: Clock = system_clock,
    *,
    monotonic: Callable[[], float] = time.monotonic,
    cache_age: float = MAX_AGE,
) -> flask.Flask:
    """Return the Flask application of one process. The parameters are those of `create_services`.

    Raises:
        InvalidSettings: there is no usable sealing key.
    """
    services = create_services(settings, clock, monotonic=monotonic, cache_age=cache_age)
    app = flask.Flask("gatehouse.authserver", static_folder=None)
    app.extensions["gatehouse"] = services
    # Failures pass Flask by: its own error page knows no request id.
    app.config["PROPAGATE_EXCEPTIONS"] = True
    # Werkzeug would answer `//token` with a redirect to wherever the Host header says.
    app.url_map.merge_slashes = False
    for path, (method, endpoint) in ROUTES.items():
        app.add_url_rule(path, path, _view(services, endpoint), methods=[method], provide_automatic_options=False)
    app.register_error_handler(HTTPException, partial(_no_such_endpoint, services.audit))
    app.wsgi_app = RequestMiddleware(app.wsgi_app, services.audit)  # type: ignore[method-assign]
    return app


def start_app(app: flask.Flask) -> flask.Flask:
    """Start what an application does without being asked. Return the application."""
    services: Services = app.extensions["gatehouse"]
    services.maintenance.start()
    return app


def close_app(app: flask.Flask) -> None:
    """End the maintenance, write what is still in memory, and close the database."""
    services: Services = app.extensions["gatehouse"]
    services.maintenance.stop()
    services.last_use.close()
    services.audit.close()
    services.database.close()


def _view(services: Services, endpoint: Endpoint) -> Callable[..., flask.Response]:
    def view(**_: str) -> flask.Response:
        try:
            request = Request.from_environ(flask.request.environ)
        except BodyTooLarge:
            error = invalid_request(f"The body is larger than {MAX_BODY // 1024} KiB.", status=413)
            return _refuse(services.audit, error)
        except BodyIncomplete:
            return _refuse(services.audit, invalid_request("The body ended before its Content-Length."))
        return _flask_response(endpoint(services, request))

    return view


def _flask_response(response: Response) -> flask.Response:
    return flask.Response(response.body, response.status, dict(response.headers))


def _refuse(audit: AuditWriter, error: OAuthError) -> flask.Response:
    """Refuse before an endpoint was asked."""
    environ = flask.request.environ
    return _flask_response(refuse(audit, environ["gatehouse.request_id"], error, target=_known_path(environ)))


def _no_such_endpoint(audit: AuditWriter, error: HTTPException) -> flask.Response:
    refusal = invalid_request(f"No such endpoint or method. See {metadata.PATH}.", status=error.code or 500)
    response = _refuse(audit, refusal)
    if allowed := getattr(error, "valid_methods", None):
        response.headers["Allow"] = ", ".join(sorted(allowed))
    return response


def _known_path(environ: "WSGIEnvironment") -> str:
    """Return the path of a request if it is one of ours: any other may hold anything, credentials included."""
    path: str = environ.get("PATH_INFO", "")
    if path.startswith(f"{STATUS_LISTS}/"):
        return _STATUS_LIST
    return path if path in ROUTES else "(other)"


class RequestMiddleware:
    """What every response gets, whoever made it: a request id, security headers, a log line, no traceback."""

    def __init__(self, wsgi_app: "WSGIApplication", audit: AuditWriter) -> None:
        self._wsgi_app = wsgi_app
        self._audit = audit

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        request_id = environ["gatehouse.request_id"] = new_request_id()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        began: list[str] = []
        started = time.perf_counter()

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            began.append(status[:3])
            return start_response(
                status, [*headers, *SECURITY_HEADERS.items(), (REQUEST_ID_HEADER, request_id)], exc_info
            )

        try:
            return self._wsgi_app(environ, start)
        except Exception:
            log.exception("request failed")
            error = OAuthError("server_error", "The server failed. Report the request id.", status=500)
            response = refuse(self._audit, request_id, error, target=_known_path(environ))
            status = f"{response.status} {HTTPStatus(response.status).phrase}"
            start(status, list(response.headers.items()), sys.exc_info() if began else None)
            return [response.body]
        finally:
            milliseconds = round((time.perf_counter() - started) * 1000, 1)
            log.info(
                "request",
                method=environ["REQUEST_METHOD"],
                path=_known_path(environ),
                status=began[-1],
                outcome=outcome_of(int(began[-1])),
                ms=milliseconds,
            )
            structlog.contextvars.clear_contextvars()
