"""The map of the authorization server: its parts, how they are wired, and every path."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeAlias

import flask
import structlog
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException

from gatehouse.authserver.authlib_server import AuthlibServer
from gatehouse.authserver.clients.assertions import AssertionVerifier, ReplayStore
from gatehouse.authserver.clients.authentication import ClientAuthenticator, read_claimed_client
from gatehouse.authserver.clients.registry import find_client
from gatehouse.authserver.credentials.lifecycle import LastUse, prune_credentials
from gatehouse.authserver.credentials.resource_credentials import ResourceAuthenticator
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import audit_event
from gatehouse.authserver.endpoints import introspection, jwks, metadata, revocation, status_lists, token
from gatehouse.authserver.endpoints.authorization import authorization
from gatehouse.authserver.endpoints.health import livez, readyz
from gatehouse.authserver.endpoints.introspection import IntrospectionEndpoint
from gatehouse.authserver.endpoints.revocation import RevocationEndpoint
from gatehouse.authserver.endpoints.token import TokenEndpoint
from gatehouse.authserver.errors import OAuthError, invalid_request, refuse, report_outage
from gatehouse.authserver.http import BadRequest, Request, Response
from gatehouse.authserver.keys.encryption import load_sealing_key
from gatehouse.authserver.keys.rotation import Rotation, policy_of
from gatehouse.authserver.keys.sealed_keys import NoUsableKey, SealedKeys
from gatehouse.authserver.keys.store import KeyStore
from gatehouse.authserver.maintenance import Maintenance
from gatehouse.authserver.settings import Settings
from gatehouse.authserver.tokens.issue import StatusIndexAllocator, TokenIssuer
from gatehouse.authserver.tokens.status_lists import StatusListPublisher
from gatehouse.authserver.tokens.validation import TokenReader
from gatehouse.shared.protocol.clock import Clock, system_clock
from gatehouse.shared.protocol.status_list import PATH as STATUS_LISTS
from gatehouse.shared.service.audit import AuditAction
from gatehouse.shared.service.audit_writer import AuditRows, AuditUnavailable, AuditWriter
from gatehouse.shared.service.cache import MAX_AGE, LoadingCache
from gatehouse.shared.service.responses import REQUEST_ID_HEADER, SECURITY_HEADERS, new_request_id, outcome_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

KnownPath: TypeAlias = "Callable[[WSGIEnvironment], str]"
"""Returns the path of a request as it may be logged."""

OUTAGES = (SQLAlchemyError, NoUsableKey, AuditUnavailable)
"""During one of these, a request can neither be granted nor refused."""

_STATUS_LIST = f"{STATUS_LISTS}/<list_id>"

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a running authorization server."""

    settings: Settings
    database: Database
    authenticator: ClientAuthenticator
    resource_authenticator: ResourceAuthenticator
    keys: KeyStore
    authlib: AuthlibServer
    issuer: TokenIssuer
    tokens: TokenReader
    status_lists: StatusListPublisher
    audit: AuditWriter
    last_use: LastUse
    maintenance: Maintenance
    clock: Clock


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint, and the audit action of its refusals; None records them as `http.request` for the path."""

    method: str
    endpoint: Callable[[Request], Response]
    action: AuditAction | None = None


def create_routes(parts: Services) -> dict[str, Route]:
    """Return every path of the server with its endpoint."""
    issuer, database, keys, audit = parts.settings.issuer, parts.database, parts.keys, parts.audit
    clock = parts.clock
    issue = TokenEndpoint(database, keys, parts.authenticator, parts.authlib, parts.issuer, audit, clock)
    revoke = RevocationEndpoint(database, keys, parts.authenticator, parts.tokens, audit, clock)
    introspect = IntrospectionEndpoint(keys, parts.resource_authenticator, parts.tokens, audit, clock)
    lists = parts.status_lists
    return {
        "/token": Route("POST", issue, token.ACTION),
        "/revoke": Route("POST", revoke, revocation.ACTION),
        "/introspect": Route("POST", introspect, introspection.ACTION),
        "/authorize": Route("GET", authorization),
        metadata.PATH: Route("GET", partial(metadata.metadata, issuer)),
        jwks.PATH: Route("GET", partial(jwks.jwks, keys)),
        STATUS_LISTS: Route("GET", partial(status_lists.status_lists, lists)),
        _STATUS_LIST: Route("GET", partial(status_lists.status_list, issuer, keys, lists)),
        "/livez": Route("GET", livez),
        "/readyz": Route("GET", partial(readyz, database, keys, audit)),
    }


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
    indices = StatusIndexAllocator(database, clock)
    last_use = LastUse(database, clock)
    return Services(
        settings=settings,
        database=database,
        authenticator=ClientAuthenticator(
            LoadingCache(partial(find_client, database), max_age=cache_age, monotonic=monotonic),
            AssertionVerifier(settings.issuer, replay),
            last_use,
        ),
        keys=KeyStore(database, sealed_keys, rotation, max_age=cache_age, monotonic=monotonic),
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
        authlib=AuthlibServer(settings.issuer),
        issuer=TokenIssuer(settings.issuer, settings.token_ttl, indices.allocate),
        audit=AuditWriter(database.engine, AuditRows(audit_event, clock)),
        tokens=TokenReader(database, settings.issuer),
        status_lists=StatusListPublisher(database, settings.issuer, clock, monotonic=monotonic),
        resource_authenticator=ResourceAuthenticator(database, last_use, max_age=cache_age, monotonic=monotonic),
        last_use=last_use,
        clock=clock,
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
    # Failures reach RequestMiddleware: Flask's own error page has no request id.
    app.config["PROPAGATE_EXCEPTIONS"] = True
    # Werkzeug would answer `//token` with a redirect to the host that the Host header names.
    app.url_map.merge_slashes = False
    routes = create_routes(services)
    known_path = partial(_known_path, routes)
    for path, route in routes.items():
        view = partial(_view, services.audit, route, known_path)
        app.add_url_rule(path, path, view, methods=[route.method], provide_automatic_options=False)
    app.register_error_handler(HTTPException, partial(_no_such_endpoint, services.audit, known_path))
    app.wsgi_app = RequestMiddleware(app.wsgi_app, services.audit, known_path)  # type: ignore[method-assign]
    return app


def start_app(app: flask.Flask) -> flask.Flask:
    """Start the background work of an application. Return the application."""
    services: Services = app.extensions["gatehouse"]
    services.maintenance.start()
    return app


def close_app(app: flask.Flask) -> None:
    """Stop the background work, write what is still in memory, and close the database."""
    services: Services = app.extensions["gatehouse"]
    services.maintenance.stop()
    services.last_use.close()
    services.audit.close()
    services.database.close()


def _view(audit: AuditWriter, route: Route, known_path: KnownPath, **_: str) -> flask.Response:
    return _flask_response(_answer(audit, route, known_path, flask.request.environ))


def _answer(audit: AuditWriter, route: Route, known_path: KnownPath, environ: "WSGIEnvironment") -> Response:
    """Run an endpoint. Every refusal that it raises is recorded and rendered here."""
    try:
        request = Request.from_environ(environ)
    except BadRequest as error:
        refusal = invalid_request(error.description, status=error.status)
        return refuse(audit, environ["gatehouse.request_id"], refusal, target=known_path(environ))
    try:
        return route.endpoint(request)
    except BadRequest as error:
        read_claimed_client(request)
        refusal = invalid_request(error.description, status=error.status)
    except OAuthError as error:
        refusal = error
    except OUTAGES as error:
        return report_outage(request.request_id, error, route.action)
    if route.action is None:
        return refuse(audit, request.request_id, refusal, target=request.target or known_path(environ))
    return refuse(audit, request.request_id, refusal, action=route.action, actor=request.actor, target=request.target)


def _flask_response(response: Response) -> flask.Response:
    return flask.Response(response.body, response.status, dict(response.headers))


def _no_such_endpoint(audit: AuditWriter, known_path: KnownPath, error: HTTPException) -> flask.Response:
    refusal = invalid_request(f"No such endpoint or method. See {metadata.PATH}.", status=error.code or 500)
    environ = flask.request.environ
    response = _flask_response(refuse(audit, environ["gatehouse.request_id"], refusal, target=known_path(environ)))
    if allowed := getattr(error, "valid_methods", None):
        response.headers["Allow"] = ", ".join(sorted(allowed))
    return response


def _known_path(routes: Mapping[str, Route], environ: "WSGIEnvironment") -> str:
    """Return the path of a request if the server has it. Any other path is not logged: it may contain credentials."""
    path: str = environ.get("PATH_INFO", "")
    if path.startswith(f"{STATUS_LISTS}/"):
        return _STATUS_LIST
    return path if path in routes else "(other)"


class RequestMiddleware:
    """Gives every response a request id, security headers and a log line, and turns a crash into a 500."""

    def __init__(self, wsgi_app: "WSGIApplication", audit: AuditWriter, known_path: KnownPath) -> None:
        self._wsgi_app = wsgi_app
        self._audit = audit
        self._known_path = known_path

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        request_id = environ["gatehouse.request_id"] = new_request_id()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started, code = time.perf_counter(), None

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            nonlocal code
            code = int(status[:3])
            return start_response(
                status, [*headers, *SECURITY_HEADERS.items(), (REQUEST_ID_HEADER, request_id)], exc_info
            )

        try:
            return self._wsgi_app(environ, start)
        except Exception:
            log.exception("request failed")
            error = OAuthError("server_error", "The server failed. Report the request id.", status=500)
            response = refuse(self._audit, request_id, error, target=self._known_path(environ))
            status = f"{response.status} {HTTPStatus(response.status).phrase}"
            start(status, list(response.headers.items()), None if code is None else sys.exc_info())
            return [response.body]
        finally:
            log.info(
                "request",
                method=environ["REQUEST_METHOD"],
                path=self._known_path(environ),
                # There is none if the process shuts down before the response begins.
                status=code and str(code),
                outcome=outcome_of(code or HTTPStatus.INTERNAL_SERVER_ERROR),
                ms=round((time.perf_counter() - started) * 1000, 1),
            )
            structlog.contextvars.clear_contextvars()
