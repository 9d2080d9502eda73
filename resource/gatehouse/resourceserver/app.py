"""The map of the resource server: its parts, how they are wired, and its paths."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import anyio
import httpx2
from mcp.server import Server
from mcp.server.mcpserver import MCPServer
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings

from gatehouse.resourceserver.asgi import Application, Route
from gatehouse.resourceserver.bearer.challenge import Challenge, baseline_scopes
from gatehouse.resourceserver.bearer.fetch import create_http, http_fetch
from gatehouse.resourceserver.bearer.gate import CallLimits, Gate
from gatehouse.resourceserver.bearer.jwks import KeySource
from gatehouse.resourceserver.bearer.mcp_request import MAX_BODY
from gatehouse.resourceserver.bearer.status import StatusLists
from gatehouse.resourceserver.bearer.verifier import Verifier
from gatehouse.resourceserver.catalogue import Catalogue, Scope, ToolScopes
from gatehouse.resourceserver.catalogue.mcpserver import guarded_catalogue
from gatehouse.resourceserver.catalogue.policy_file import UpstreamSettings
from gatehouse.resourceserver.db.database import Database
from gatehouse.resourceserver.db.models import audit_tables
from gatehouse.resourceserver.db.request_database import RequestDatabase
from gatehouse.resourceserver.dispatch.idempotency import IdempotencyKeys
from gatehouse.resourceserver.dispatch.routing import RequestRouter, direct_tools, result_meta
from gatehouse.resourceserver.dispatch.server import build_server
from gatehouse.resourceserver.dispatch.tools import ToolDispatch
from gatehouse.resourceserver.health import Serving, livez, readyz
from gatehouse.resourceserver.metadata import CALLER_KEYS_PATH, key_set_endpoint, metadata_endpoint, metadata_paths
from gatehouse.resourceserver.metrics import Metrics
from gatehouse.resourceserver.settings import Settings
from gatehouse.resourceserver.upstream.caller_identity import CallerIdentity
from gatehouse.resourceserver.upstream.http.session_store import SessionStore
from gatehouse.resourceserver.upstream.opening import open_upstream
from gatehouse.resourceserver.upstream.policy_watch import PolicyWatch
from gatehouse.resourceserver.upstream.serving import ServedUpstream, unlisted_catalogue
from gatehouse.resourceserver.upstream.upstream import Upstream
from gatehouse.shared.protocol.clock import Clock, system_clock
from gatehouse.shared.protocol.resource_metadata import metadata_url
from gatehouse.shared.service.audit.keys import AuditKeyFile
from gatehouse.shared.service.audit.rows import AuditRows
from gatehouse.shared.service.audit.upkeep import AuditUpkeep
from gatehouse.shared.service.audit.writer import AuditWriter
from gatehouse.shared.service.database import LOCK_TIMEOUT
from gatehouse.shared.service.fetch import Fetch
from gatehouse.shared.service.limits import InFlight, Limit, Limits, create_limits
from gatehouse.shared.service.metrics import stamp
from gatehouse.shared.service.rates import Rate, parse_rate
from gatehouse.shared.service.refusals import RefusalRecorder
from gatehouse.shared.service.source_address import SourceAddresses

FetchFrom = Callable[[str], Fetch]
"""Returns the function that fetches one URL of the issuer."""


class UpstreamSource(NamedTuple):
    """What a gateway gets its tools from."""

    policies: PolicyWatch
    """The accepted policy."""
    open: Callable[[UpstreamSettings, RequestDatabase], Upstream]
    """Opens the upstream of a policy, which keeps the sessions of its callers in the database."""


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a running resource server."""

    settings: Settings
    catalogue: Catalogue
    database: RequestDatabase
    audit_database: Database
    audit: AuditWriter
    limits: Limits
    refusals: RefusalRecorder
    audit_upkeep: AuditUpkeep
    http_client: httpx2.AsyncClient
    keys: KeySource
    statuses: StatusLists
    idempotency_keys: IdempotencyKeys
    server: Server[Any]
    """The SDK's server with the handlers of dispatch."""
    sessions: StreamableHTTPSessionManager
    streams: StreamableHTTPSessionManager
    """Serves the calls of streaming tools (docs/decisions/0007-streaming.md)."""
    router: RequestRouter
    metrics: Metrics
    clock: Clock
    serving: Serving
    upstream: ServedUpstream | None
    """Fills the catalogue; None for a catalogue that does not change."""


def create_services(
    settings: Settings,
    catalogue: Catalogue,
    clock: Clock = system_clock,
    fetch_from: FetchFrom | None = None,
    lock_timeout: int = LOCK_TIMEOUT,
    *,
    monotonic: Callable[[], float] = time.monotonic,
    upstream: UpstreamSource | None = None,
) -> Services:
    """Make the parts of the server.

    Args:
        settings: the settings.
        catalogue: the tools, resources and scopes to serve.
        clock: seconds since the epoch.
        fetch_from: replaces fetching from the issuer over HTTP.
        lock_timeout: milliseconds that a call that writes waits for another.
        monotonic: seconds, for the windows of the limits.
        upstream: whose tools the catalogue gets; None for any other catalogue.

    Raises:
        InvalidSettings: the trusted certificate authorities or the audit keys cannot be loaded.
    """
    audit_keys = AuditKeyFile(settings.audit_keys)
    audit_keys.reload()
    http_client = create_http(settings)
    database = RequestDatabase(settings.database, lock_timeout)
    # One connection for the writer of the audit log, and one for its upkeep.
    audit_database = Database(settings.database, pool_size=2)
    metrics = Metrics(settings, catalogue)
    audit = AuditWriter(
        audit_database.engine,
        AuditRows(audit_tables.events, audit_keys.current, clock),
        report=metrics.report_writes(clock, database.pool, audit_database.pool),
    )
    idempotency_keys = IdempotencyKeys(database, clock)
    tools = ToolDispatch(catalogue, database, audit, idempotency_keys, clock)
    server = build_server(catalogue, tools, audit, settings.resource)
    sessions, streams = _session_manager(server, json_response=True), _session_manager(server, json_response=False)
    fetch_from = partial(_fetch_at_issuer, settings, fetch_from or partial(http_fetch, http_client))
    keys = KeySource(
        fetch_from(f"{settings.issuer}/.well-known/jwks.json"), renewed=stamp(metrics.key_set_fetched, clock)
    )
    return Services(
        settings=settings,
        catalogue=catalogue,
        database=database,
        audit_database=audit_database,
        audit=audit,
        limits=create_limits(settings, settings.resource, metrics.limit_fallbacks, monotonic),
        refusals=RefusalRecorder(audit, metrics.rate_limited, monotonic),
        audit_upkeep=AuditUpkeep(
            audit_database.engine,
            audit_tables,
            audit_keys.reload,
            clock,
            retention=settings.audit_retention,
            report=metrics.audit_checkpoint.set,
        ),
        http_client=http_client,
        keys=keys,
        statuses=StatusLists(
            settings.issuer,
            fetch_from,
            keys,
            clock,
            max_age=settings.status_max_age,
            fail_open=settings.status_failure == "open",
            renewed=metrics.report_status_lists(clock),
        ),
        idempotency_keys=idempotency_keys,
        server=server,
        sessions=sessions,
        streams=streams,
        router=RequestRouter(
            direct_tools(catalogue), tools, catalogue, sessions, streams, audit, result_meta(server.server_info_stamp)
        ),
        metrics=metrics,
        clock=clock,
        serving=Serving(),
        upstream=ServedUpstream(
            upstream.policies,
            lambda of_policy: upstream.open(of_policy, database),
            catalogue,
            metrics.report_upstream(clock),
            settings.upstream_poll_interval,
        )
        if upstream is not None
        else None,
    )


def _session_manager(server: Server[Any], *, json_response: bool) -> StreamableHTTPSessionManager:
    return StreamableHTTPSessionManager(
        server,
        json_response=json_response,
        stateless=True,
        max_request_body_size=MAX_BODY,
        # The ASGI entry has already checked Host and Origin.
        security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )


def _fetch_at_issuer(settings: Settings, fetch_from: FetchFrom, url: str) -> Fetch:
    return fetch_from(settings.address_at_issuer(url))


def create_app(settings: Settings, catalogue: Catalogue) -> Application:
    """Return the ASGI application of one process.

    Raises:
        InvalidSettings: a baseline scope is not in the catalogue, or there are no usable audit keys.
    """
    return build_app(create_services(settings, catalogue))


def create_gateway(settings: Settings, policies: PolicyWatch, owner: Path | None = None) -> Application:
    """Return the ASGI application of one process that serves the tools of an upstream.

    Args:
        settings: the settings.
        policies: the accepted policy.
        owner: the socket of the process that owns the programs of a stdio upstream.

    Raises:
        InvalidSettings: as `create_app`, or a key file of `resourceserver init` is missing.
    """
    identity = CallerIdentity.read(settings.caller_keys, settings.resource, system_clock)

    def opened(upstream: UpstreamSettings, database: RequestDatabase) -> Upstream:
        sessions = SessionStore(database, settings.session_key, system_clock)
        return open_upstream(upstream, sessions=sessions, identity=identity, owner=owner)

    catalogue = unlisted_catalogue(policies.newest().policy)
    services = create_services(settings, catalogue, upstream=UpstreamSource(policies, opened))
    return build_app(services, {CALLER_KEYS_PATH: Route(key_set_endpoint(identity.key_set))})


def build_app(services: Services, routes: Mapping[str, Route] = MappingProxyType({})) -> Application:
    """Return the ASGI application of these parts. Its lifespan starts and stops them. `routes` are added to its own.

    Raises:
        InvalidSettings: a baseline scope is not in the catalogue.
    """
    settings, catalogue, metrics = services.settings, services.catalogue, services.metrics
    gate = Gate(
        answer=services.router.answer,
        catalogue=catalogue,
        verifier=Verifier(
            settings.issuer,
            settings.resource,
            services.keys,
            services.statuses,
            services.clock,
            hits=metrics.cache_hits,
            misses=metrics.cache_misses,
        ),
        challenge=Challenge(metadata_url(settings.resource)),
        resource=settings.resource,
        baseline=_baseline(settings, catalogue),
        refusals=services.refusals,
        limits=_call_limits(services),
        metrics=metrics.gate,
    )
    ready = readyz(services.database, services.keys, services.statuses, services.audit, services.serving)
    own = {
        settings.endpoint_path: Route(gate, methods=()),
        **dict.fromkeys(metadata_paths(settings), Route(metadata_endpoint(settings, catalogue))),
        "/livez": Route(livez),
        "/readyz": Route(ready),
    }
    return Application(settings, {**routes, **own}, services.audit, partial(_lifespan, services))


def _baseline(settings: Settings, catalogue: Catalogue) -> Callable[[], frozenset[str]]:
    """Return what returns the scopes that every 401 names. Raises InvalidSettings if one is not in the catalogue."""
    baseline_scopes(settings, catalogue)
    return lambda: baseline_scopes(settings, catalogue)


def _call_limits(services: Services) -> CallLimits:
    settings, limits = services.settings, services.limits
    default = parse_rate(settings.limit_tool_calls)

    # The counts of a tool start again if its limit changes.
    @cache
    def limit_of(name: str, rate: Rate) -> Limit:
        return limits.limit(f"tool_calls:{name}", rate)

    return CallLimits(
        calls=limits.limit("calls", parse_rate(settings.limit_calls)),
        tool_calls=lambda tool: limit_of(tool.name, tool.limit or default),
        in_flight=InFlight("concurrent_calls", settings.limit_concurrent_calls),
        addresses=SourceAddresses(settings.trusted_proxies),
    )


def guard(
    server: MCPServer[Any],
    *,
    scopes: Mapping[str, ToolScopes],
    declared: Iterable[Scope],
    settings: Settings,
    limits: Mapping[str, str] = MappingProxyType({}),
) -> Application:
    """Return the application that serves the listed tools of an SDK server, for an ASGI server that supports lifespan.

    `resourceserver init` prepares the database. The arguments and errors are those of `guarded_catalogue`, whose
    catalogue `resourceserver serve --tools` serves without an ASGI server of your own.
    """
    return create_app(settings, guarded_catalogue(server, scopes=scopes, declared=declared, limits=limits))


@contextlib.asynccontextmanager
async def _lifespan(services: Services) -> AsyncIterator[None]:
    try:
        async with (
            services.http_client,
            services.catalogue.lifespan(),
            services.sessions.run(),
            services.streams.run(),
            services.router.run(),
            services.refusals.running(),
            anyio.create_task_group() as tasks,
        ):
            services.audit.start()
            services.audit_upkeep.start()
            tasks.start_soon(services.keys.poll)
            tasks.start_soon(services.statuses.poll, services.settings.status_poll_interval)
            tasks.start_soon(services.idempotency_keys.prune_regularly)
            if services.upstream is not None:
                tasks.start_soon(services.upstream.run)
            services.serving.running = True
            try:
                yield
            finally:
                services.serving.running = False
                tasks.cancel_scope.cancel()
    finally:
        # Last, because a call that the shutdown cancels still records its progress.
        with anyio.CancelScope(shield=True):
            await services.limits.close()
            await anyio.to_thread.run_sync(services.audit.close)
            await anyio.to_thread.run_sync(services.audit_upkeep.close)
            services.audit_database.close()
            services.database.close()
