"""A resource server in this process: real application and database, with keys of the test."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx2
from starlette.types import ASGIApp

from gatehouse.directory.catalogue import CATALOGUE
from gatehouse.directory.workspaces import create_workspace
from gatehouse.resourceserver.app import Services, build_app, create_services
from gatehouse.resourceserver.bearer.jwks import KeySource
from gatehouse.resourceserver.bearer.status import StatusLists
from gatehouse.resourceserver.catalogue import Catalogue
from gatehouse.resourceserver.db.database import Database
from gatehouse.resourceserver.db.models import audit_event
from gatehouse.resourceserver.settings import Settings
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.protocol.status_list import LIST_SIZE, encode, set_bits
from gatehouse.shared.service.audit.events import find_events
from gatehouse.shared.service.audit.keys import create_audit_keys
from gatehouse.shared.service.database import LOCK_TIMEOUT
from gatehouse.shared.service.fetch import Fetch, Fetched, FetchFailed
from support.clock import FakeClock
from support.databases import Template
from support.limits import RESOURCESERVER

ISSUER = "https://as.example.com"
RESOURCE = "https://mcp.example.com/mcp"
LIST = f"{ISSUER}/status-lists/0123456789ab"
ALL_SCOPES = "env:read env:write org:read org:write wks:read wks:write"
PING = {"jsonrpc": "2.0", "id": 7, "method": "ping"}


def call_of(tool: str, **arguments: Any) -> dict[str, Any]:
    """Return the body of a tool call."""
    return {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}


def modern_request(method: str, **params: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the body of a request of MCP 2026-07-28, and the headers that must agree with it."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    headers = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": method}
    if name := params.get("name") or params.get("uri"):
        headers["Mcp-Name"] = name
    return {"jsonrpc": "2.0", "id": 7, "method": method, "params": {**params, "_meta": meta}}, headers


def error_of(response: httpx2.Response, rpc_id: int | str | None = 7) -> dict[str, Any]:
    """Return the error of a refusal, which is a JSON-RPC response with a request id."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    body = response.json()
    assert body.keys() == {"jsonrpc", "id", "error"}
    assert (body["jsonrpc"], body["id"]) == ("2.0", rpc_id)
    assert body["error"]["data"]["request_id"] == response.headers["x-request-id"]
    error: dict[str, Any] = body["error"]
    return error


def settings_in(folder: Path, **changes: Any) -> Settings:
    """Return settings whose files are in a folder."""
    defaults = {
        "issuer": ISSUER,
        "resource": RESOURCE,
        "database_url": f"sqlite:///{folder}/resourceserver.db",
        **RESOURCESERVER,
        "audit_keys": folder / "keys" / "resourceserver-audit.json",
    }
    return Settings(**{**defaults, **changes})


def prepare_installation(folder: Path, database_url: str) -> None:
    """Do what `resourceserver init` does."""
    settings = settings_in(folder, database_url=database_url)
    create_audit_keys(settings.audit_keys)
    database = Database(settings.database, CATALOGUE.load_schema())
    database.migrate()
    database.close()


class Issuer:
    """The authorization server as the resource server sees it: a key set, and tokens signed with its keys."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.key = SigningKey.generate("ES256")
        self.published: list[dict[str, Any]] = [self.key.public_jwk()]
        self.away = False
        self.fetches = 0
        self.lists: dict[str, bytearray] = {LIST: bytearray(LIST_SIZE // 8)}
        self.list_fetches: list[str] = []
        self._tokens = 0

    async def fetch(self, etag: str | None) -> Fetched | None:
        self.fetches += 1
        if self.away:
            raise FetchFailed("the test's issuer is unreachable")
        return Fetched(json.dumps({"keys": self.published}).encode(), None)

    def fetch_from(self, url: str) -> Fetch:
        """Return a fetch of a URL of this issuer."""
        if url == f"{ISSUER}/.well-known/jwks.json":
            return self.fetch
        return partial(self._fetch_status, url)

    async def _fetch_status(self, url: str, etag: str | None) -> Fetched | None:
        self.list_fetches.append(url)
        if self.away:
            raise FetchFailed("the test's issuer is unreachable")
        if url == f"{ISSUER}/status-lists":
            return Fetched(json.dumps({"status_lists": list(self.lists)}).encode(), None)
        if url not in self.lists:
            raise FetchFailed("status 404")
        return Fetched(self.list_token(url).encode(), None)

    def list_token(self, uri: str = LIST, *, typ: str = "statuslist+jwt", **changes: Any) -> str:
        """Return a signed status list with changes; a change to None removes the claim."""
        now = int(self.clock())
        claims = {"sub": uri, "iat": now, "exp": now + 3600, "ttl": 5, "status_list": encode(bytes(self.lists[uri]))}
        claims = {name: value for name, value in {**claims, **changes}.items() if value is not None}
        return self.key.sign(typ, claims)

    def revoke(self, idx: int, uri: str = LIST) -> None:
        """Revoke a token by its status bit."""
        set_bits(self.lists[uri], idx)

    def statuses(self, keys: KeySource, **changes: Any) -> StatusLists:
        """Return a resource server's view of the status lists of this issuer."""
        options = {"max_age": 900, "fail_open": False, "monotonic": self.clock, **changes}
        return StatusLists(ISSUER, self.fetch_from, keys, self.clock, **options)

    def claims(self, scope: str = ALL_SCOPES, **changes: Any) -> dict[str, Any]:
        """Return a valid claims set with changes; a change to None removes the claim."""
        now = int(self.clock())
        self._tokens += 1
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "sub": "agent_1",
            "client_id": "agent_1",
            "aud": RESOURCE,
            "iat": now,
            "exp": now + 300,
            "jti": f"jti-{self._tokens}",
            "scope": scope,
            "status": {"status_list": {"idx": self._tokens, "uri": LIST}},
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, scope: str = ALL_SCOPES, **changes: Any) -> str:
        """Return a signed access token."""
        return self.key.sign("at+jwt", self.claims(scope, **changes))


class ResourceServer:
    """A running application, and the requests that tests send to it."""

    def __init__(self, app: ASGIApp, services: Services, issuer: Issuer, http: httpx2.AsyncClient) -> None:
        self.app = app
        self.services = services
        self.settings = settings = services.settings
        self.issuer = issuer
        self.http = http
        self.admin_database = Database(settings.database)

    def create_workspace(self, name: str = "acme") -> str:
        with self.admin_database.write() as session:
            return create_workspace(session, name, self.issuer.clock()).workspace_id

    async def post(self, body: Any, token: str | None = None, headers: dict[str, str] | None = None) -> httpx2.Response:
        """POST a body to the MCP endpoint: an object as JSON, or bytes unchanged, also in parts."""
        sent = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        content = body if isinstance(body, bytes | AsyncIterator) else json.dumps(body).encode()
        return await self.http.post(self.settings.resource, content=content, headers={**sent, **(headers or {})})

    async def call(self, tool: str, token: str | None = None, **arguments: Any) -> httpx2.Response:
        """Send a tools/call of MCP 2025-11-25, which needs no headers of its own."""
        params = {"name": tool, "arguments": arguments}
        return await self.post({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}, token)

    async def result(self, tool: str, token: str, **arguments: Any) -> dict[str, Any]:
        """Return the structured result of a call that succeeds."""
        response = await self.call(tool, token, **arguments)
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()["result"]
        assert not result["isError"], result
        return result["structuredContent"]

    async def failure(self, tool: str, token: str, **arguments: Any) -> str:
        """Return the text of a call that is allowed and fails."""
        response = await self.call(tool, token, **arguments)
        assert response.status_code == 200, response.text
        result = response.json()["result"]
        assert result["isError"], result
        return str(result["content"][0]["text"])

    def audit(self, **filters: str) -> list[dict[str, Any]]:
        """Return the audit events that are on disk, oldest first."""
        with self.admin_database.read() as session:
            return [dict(row) for row in find_events(session.connection(), audit_event, **filters)]


@asynccontextmanager
async def running_resource_server(
    folder: Path,
    template: Template,
    clock: FakeClock,
    catalogue: Catalogue = CATALOGUE,
    keys_of: Issuer | None = None,
    lock_timeout: int = LOCK_TIMEOUT,
    **changes: Any,
) -> AsyncIterator[ResourceServer]:
    """Run an application in this process, its lifespan included, until the block ends."""
    settings = settings_in(folder, **{"database_url": template.install(folder), **changes})
    async with served(settings, keys_of or Issuer(clock), catalogue, lock_timeout) as server:
        yield server


@asynccontextmanager
async def served(
    settings: Settings, issuer: Issuer, catalogue: Catalogue = CATALOGUE, lock_timeout: int = LOCK_TIMEOUT
) -> AsyncIterator[ResourceServer]:
    """Run an application on an existing database, for example to restart one."""
    services = create_services(
        settings, catalogue, issuer.clock, issuer.fetch_from, lock_timeout, monotonic=issuer.clock
    )
    app = build_app(services)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(lifespan(app))
        http = await stack.enter_async_context(httpx2.AsyncClient(transport=httpx2.ASGITransport(app)))
        server = ResourceServer(app, services, issuer, http)
        stack.callback(server.admin_database.close)
        yield server


@asynccontextmanager
async def lifespan(app: ASGIApp) -> AsyncIterator[None]:
    """Drive the lifespan protocol (ASGI 3) as a server does."""
    to_app_send, to_app_receive = anyio.create_memory_object_stream[dict[str, str]](2)
    from_app_send, from_app_receive = anyio.create_memory_object_stream[dict[str, str]](2)

    async def run() -> None:
        await app({"type": "lifespan", "asgi": {"version": "3.0"}}, to_app_receive.receive, from_app_send.send)

    async with anyio.create_task_group() as tasks, to_app_send, to_app_receive, from_app_send, from_app_receive:
        tasks.start_soon(run)
        await to_app_send.send({"type": "lifespan.startup"})
        assert (await from_app_receive.receive())["type"] == "lifespan.startup.complete"
        try:
            yield
        finally:
            await to_app_send.send({"type": "lifespan.shutdown"})
            assert (await from_app_receive.receive())["type"] == "lifespan.shutdown.complete"
