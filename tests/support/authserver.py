"""An authorization server in this process, with a real application and database but no network."""

import asyncio
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlencode

from sqlalchemy.orm import Session
from werkzeug.test import TestResponse

from gatehouse.authserver.app import Services, build_app, close_services, create_services
from gatehouse.authserver.clients.authentication import read_credentials
from gatehouse.authserver.clients.registration import Registration, add_grant, create_client
from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import audit_event
from gatehouse.authserver.http import Form, Request
from gatehouse.authserver.keys.encryption import create_sealing_key, load_sealing_key
from gatehouse.authserver.keys.store import ensure_keys
from gatehouse.authserver.resources.registration import ScopeDeclaration, add_resource
from gatehouse.authserver.settings import Settings
from gatehouse.authserver.workloads.registry import KeyLocation
from gatehouse.shared.protocol.jws import Header, read_header, verify
from gatehouse.shared.protocol.key_sets import parse_key_set
from gatehouse.shared.service.administrator import Administrator
from gatehouse.shared.service.audit.events import AuditEvent, find_events
from gatehouse.shared.service.audit.keys import AuditKeyFile, create_audit_keys
from gatehouse.shared.service.audit.rows import AuditRows
from gatehouse.shared.service.rates import UNLIMITED
from support.clock import FakeClock
from support.databases import Template, take_away
from support.http_client import http_client, run
from support.limits import AUTHSERVER

RESOURCE = "https://mcp.example.com/mcp"
OTHER_RESOURCE = "https://other.example.com/mcp"
ISSUER = "https://as.example.com"
FORM = "application/x-www-form-urlencoded"

Profile = Callable[[FrameType, str, Any], object]
"""What `sys.setprofile` takes."""


def settings_in(folder: Path, **changes: Any) -> Settings:
    """Return settings whose files are in a folder."""
    defaults = {
        "issuer": ISSUER,
        "database_url": f"sqlite:///{folder}/authserver.db",
        "keys_dir": folder / "keys",
        **AUTHSERVER,
    }
    return Settings(**{**defaults, **changes})


def initialize(folder: Path, database_url: str) -> None:
    """Do what `authserver init` does."""
    settings = settings_in(folder, database_url=database_url)
    create_sealing_key(settings)
    create_audit_keys(settings.audit_keys)
    with closing(Database(settings.database)) as database:
        database.migrate()
        with database.write() as session:
            ensure_keys(session, load_sealing_key(settings), settings.issuer, settings.signing_algorithm, FakeClock())


def administrator(settings: Settings, clock: FakeClock) -> Administrator:
    """Return an administrator whose changes are recorded as those of a command."""
    keys = AuditKeyFile(settings.audit_keys).current
    return Administrator(AuditRows(audit_event, keys, clock), clock, "tester")


def prepare_installation(folder: Path, database_url: str) -> None:
    """Do what `authserver init` does, and register RESOURCE."""
    initialize(folder, database_url)
    clock = FakeClock()
    settings = settings_in(folder, database_url=database_url)
    with closing(Database(settings.database)) as database, database.write() as session:
        register_resource(session, administrator(settings, clock))


def register_resource(
    session: Session, admin: Administrator, resource: str = RESOURCE, /, **scopes: tuple[str, ...]
) -> None:
    """Register a resource. Each keyword is a scope with `_` for `:`, and its value lists the implied scopes."""
    declared = scopes or {"env_read": (), "env_write": ("env:read",), "org_read": ()}
    scopes_of_resource = [ScopeDeclaration(name.replace("_", ":"), "", implies) for name, implies in declared.items()]
    add_resource(session, admin, resource, "test", scopes_of_resource)


class AuthServer:
    """One installation and the application on it."""

    def __init__(
        self,
        folder: Path,
        template: Template,
        clock: FakeClock,
        *,
        fetch_issuer_keys: Callable[[str, KeyLocation], bytes] | None = None,
        **changes: Any,
    ) -> None:
        self.folder = folder
        self.clock = clock
        self.settings = settings_in(folder, **{"database_url": template.install(folder), **changes})
        self.services = create_services(self.settings, clock, monotonic=clock, fetch_issuer_keys=fetch_issuer_keys)
        self.app = build_app(self.services)
        self.http = http_client(self.app)
        self.admin = administrator(self.settings, clock)
        self.opened = ExitStack()
        """What a test opens beside the server, to be closed with it."""

    def add_resource(self, resource: str = RESOURCE, /, **scopes: tuple[str, ...]) -> None:
        """Register a resource, by default with the scopes of the template's resource."""
        with self.services.database.write() as session:
            register_resource(session, self.admin, resource, **scopes)

    def create_client(self, scope: str = "env:read", resource: str = RESOURCE, **changes: Any) -> tuple[Client, str]:
        """Register a client, and return it with its secret."""
        registration = Registration("agent", resource, scope, **changes)
        with self.services.database.write() as session:
            return create_client(session, self.admin, self.services.keys.ring(), registration)

    def add_grant(self, client: Client, scope: str, resource: str = RESOURCE) -> None:
        """Grant a client further scopes."""
        with self.services.database.write() as session:
            add_grant(session, self.admin, client.client_id, resource, scope)

    def post_token(
        self,
        form: dict[str, Any] | list[tuple[str, str]] | bytes | None = None,
        basic: tuple[str, str] | None = None,
        headers: dict[str, str] | None = None,
        query: str = "",
        content_type: str = FORM,
    ) -> TestResponse:
        """Send a token request, by default only with `grant_type=client_credentials`."""
        if form is None:
            form = {"grant_type": "client_credentials"}
        data = form if isinstance(form, bytes) else urlencode(form).encode()
        sent = dict(headers or {})
        if basic is not None:
            sent["Authorization"] = basic_header(*basic)
        return self.http.post("/token", data=data, headers=sent, query_string=query, content_type=content_type)

    def read_token(self, response: TestResponse) -> tuple[Header, dict[str, Any]]:
        """Return the header and claims of the token in a response, verified with the published keys."""
        assert response.status_code == 200, response.text
        token = response.json["access_token"]
        header = read_header(token)
        keys = parse_key_set(self.http.get("/.well-known/jwks.json").data)
        return header, verify(token, header, keys[header.kid or ""])

    def audit(self, **filters: Any) -> list[dict[str, Any]]:
        """Return the audit log, oldest first."""
        self._flush()
        with self.services.database.read() as session:
            return [dict(row) for row in find_events(session.connection(), audit_event, **filters)]

    def _flush(self) -> None:
        # A committed event is written after all events that were recorded before it.
        self.services.audit.commit_and_wait(AuditEvent("test.flush", "allowed"))

    @contextmanager
    def profiled(self, note: Profile) -> Iterator[None]:
        """Pass every call on the event loop and in the threads of requests to a function, as `sys.setprofile` does."""
        self._profile(note)
        try:
            yield
        finally:
            self._profile(None)

    def _profile(self, note: Profile | None) -> None:
        together = threading.Barrier(self.settings.threads)

        def apply() -> None:
            # Each thread waits for the others, so that none of them is skipped.
            together.wait()
            sys.setprofile(note)

        async def apply_everywhere() -> None:
            request = Request({}, pool=self.services.threads)
            await asyncio.gather(*(request.in_thread(apply) for _ in range(self.settings.threads)))
            sys.setprofile(note)

        run(apply_everywhere())

    def take_database_away(self) -> None:
        """Make the database unreachable for the rest of the test."""
        if self.settings.database.get_backend_name() == "sqlite":
            # Open connections would go on with the renamed file. On PostgreSQL, this would lose a connection that a
            # thread has at the moment: the server ends it, and nobody closes it here.
            self.services.database.close()
        take_away(self.settings.database)

    def close(self) -> None:
        self.opened.close()
        close_services(self.services)


def basic_header(client_id: str, secret: str) -> str:
    """Return an Authorization header (RFC 6749 2.3.1)."""
    return "Basic " + b64encode(f"{client_id}:{secret}".encode()).decode()


def authenticate(services: Services, client_id: str, secret: str) -> Client:
    """Authenticate a client with client_secret_basic, as an endpoint does. Raises OAuthError."""
    request = Request({"authorization": basic_header(client_id, secret)})
    credentials = read_credentials(request, Form(token_form()))
    keys, limit = services.keys.ring(), services.limits.limit("token_requests", UNLIMITED)
    authenticating = services.authenticator.authenticate_async(request, credentials, keys, services.clock(), limit)
    return run(authenticating).client


def token_form(**parameters: str) -> dict[str, str]:
    """Return the parameters of a client-credentials request (RFC 6749 4.4.2)."""
    return {"grant_type": "client_credentials", **parameters}
