"""The map of the authorization server: its parts, how they are wired, and every path."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from gatehouse.authserver.asgi import Application, Refusing, Route
from gatehouse.authserver.authlib_server import AuthlibServer
from gatehouse.authserver.backup.restores import RestoreMark
from gatehouse.authserver.clients.assertions import AssertionVerifier, ReplayStore
from gatehouse.authserver.clients.authentication import ClientAuthenticator
from gatehouse.authserver.clients.registry import find_clients
from gatehouse.authserver.credentials.lifecycle import LastUse, prune_credentials
from gatehouse.authserver.credentials.resource_credentials import ResourceAuthenticator
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import audit_tables
from gatehouse.authserver.endpoints import introspection, jwks, metadata, revocation, status_lists, token
from gatehouse.authserver.endpoints.authorization import authorization
from gatehouse.authserver.endpoints.health import livez, readyz
from gatehouse.authserver.endpoints.introspection import IntrospectionEndpoint
from gatehouse.authserver.endpoints.metadata import MetadataEndpoint
from gatehouse.authserver.endpoints.revocation import RevocationEndpoint
from gatehouse.authserver.endpoints.token import TokenEndpoint
from gatehouse.authserver.keys.encryption import load_sealing_key
from gatehouse.authserver.keys.rotation import Rotation, policy_of
from gatehouse.authserver.keys.sealed_keys import SealedKeys
from gatehouse.authserver.keys.store import KeyStore
from gatehouse.authserver.maintenance import Maintenance
from gatehouse.authserver.metrics import Metrics
from gatehouse.authserver.settings import Settings
from gatehouse.authserver.tokens.issue import StatusIndexAllocator, TokenIssuer
from gatehouse.authserver.tokens.status_lists import StatusListPublisher
from gatehouse.authserver.tokens.validation import TokenReader
from gatehouse.authserver.workloads import authentication as workload_authentication
from gatehouse.authserver.workloads import key_refresher
from gatehouse.authserver.workloads.authentication import WorkloadAuthenticator
from gatehouse.authserver.workloads.key_fetching import KeySetClient
from gatehouse.authserver.workloads.key_refresher import KeyRefresher
from gatehouse.authserver.workloads.key_renewal import KeyRenewal
from gatehouse.authserver.workloads.registry import KeyLocation, find_issuers, find_rules
from gatehouse.authserver.workloads.verifier import WorkloadVerifier
from gatehouse.authserver.wsgi import FlaskApplication
from gatehouse.shared.protocol.clock import Clock, system_clock
from gatehouse.shared.protocol.status_list import PATH as STATUS_LISTS
from gatehouse.shared.service.audit.keys import AuditKeyFile
from gatehouse.shared.service.audit.rows import AuditRows
from gatehouse.shared.service.audit.upkeep import AuditUpkeep
from gatehouse.shared.service.audit.writer import AuditWriter
from gatehouse.shared.service.cache import MAX_AGE, GroupLoadingCache, LoadingCache
from gatehouse.shared.service.cors import CorsPolicy
from gatehouse.shared.service.limits import Limits, create_limits
from gatehouse.shared.service.origins import parse_origins
from gatehouse.shared.service.rates import parse_rate
from gatehouse.shared.service.refusals import RefusalRecorder
from gatehouse.shared.service.request_threads import RequestThreads
from gatehouse.shared.service.source_address import SourceAddresses

CROSS_ORIGIN = {"/token": "POST", metadata.PATH: "GET", jwks.PATH: "GET"}
"""The paths that web pages of AUTHSERVER_ALLOWED_ORIGINS may call, with their methods. Clients need no others."""


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a running authorization server."""

    settings: Settings
    database: Database
    threads: RequestThreads
    authenticator: ClientAuthenticator
    key_refresher: KeyRefresher
    metadata: MetadataEndpoint
    resource_authenticator: ResourceAuthenticator
    keys: KeyStore
    authlib: AuthlibServer
    indices: StatusIndexAllocator
    issuer: TokenIssuer
    tokens: TokenReader
    status_lists: StatusListPublisher
    audit: AuditWriter
    limits: Limits
    refusals: RefusalRecorder
    audit_upkeep: AuditUpkeep
    last_use: LastUse
    maintenance: Maintenance
    metrics: Metrics
    clock: Clock


def create_routes(parts: Services) -> dict[str, Route]:
    """Return every path of the server with its endpoint."""
    issuer, database, keys, audit = parts.settings.issuer, parts.database, parts.keys, parts.audit
    clock, lists = parts.clock, parts.status_lists
    create_limit, settings = parts.limits.limit, parts.settings
    token_requests = create_limit("token_requests", parse_rate(settings.limit_token_requests))
    revocations = create_limit("revocations", parse_rate(settings.limit_revocations))
    introspections = create_limit("introspections", parse_rate(settings.limit_introspections))
    issue = TokenEndpoint(
        database, keys, parts.authenticator, parts.authlib, parts.indices, parts.issuer, audit, token_requests, clock
    )
    flask = FlaskApplication()
    revoke = RevocationEndpoint(database, keys, parts.authenticator, parts.tokens, audit, revocations, clock)
    introspect = IntrospectionEndpoint(keys, parts.resource_authenticator, parts.tokens, audit, introspections, clock)
    return {
        "/token": Route("POST", issue, token.ACTION),
        "/revoke": Route("POST", flask.add("POST", "/revoke", revoke), revocation.ACTION),
        "/introspect": Route("POST", flask.add("POST", "/introspect", introspect), introspection.ACTION),
        "/authorize": Route("GET", flask.add("GET", "/authorize", authorization)),
        metadata.PATH: Route("GET", parts.metadata),
        jwks.PATH: Route("GET", partial(jwks.jwks, keys)),
        STATUS_LISTS: Route("GET", partial(status_lists.status_lists, keys, lists)),
        f"{STATUS_LISTS}/<list_id>": Route("GET", partial(status_lists.status_list, issuer, keys, lists)),
        "/livez": Route("GET", livez),
        "/readyz": Route("GET", partial(readyz, database, keys, audit)),
    }


def create_services(
    settings: Settings,
    clock: Clock = system_clock,
    *,
    monotonic: Callable[[], float] = time.monotonic,
    cache_age: float = MAX_AGE,
    fetch_issuer_keys: Callable[[str, KeyLocation], bytes] | None = None,
) -> Services:
    """Create the parts of the server.

    Clients, keys and resource credentials are read again `cache_age` seconds after they were last read, measured by
    `monotonic`, which also measures the windows of the limits. `fetch_issuer_keys` fetches the key set of a trusted
    issuer, by default over HTTP.

    Raises:
        InvalidSettings: there is no usable sealing key, or there are no usable audit keys.
    """
    # One connection for each thread, and one each for the audit writer, the upkeep of the audit log, the maintenance
    # and the two group commits, and one for each thread that workloads wait for.
    workload_threads = workload_authentication.THREADS + key_refresher.THREADS
    database = Database(settings.database, pool_size=settings.threads + 5 + workload_threads)
    audit_keys = AuditKeyFile(settings.audit_keys)
    audit_keys.reload()
    audit_rows = AuditRows(audit_tables.events, audit_keys.current, clock)
    sealed_keys = SealedKeys(partial(load_sealing_key, settings), settings.issuer)
    metrics = Metrics(settings)
    rotation = Rotation(
        database, sealed_keys, policy_of(settings), audit_rows, clock, scheduled=metrics.key_rotation.set
    )
    replay = ReplayStore(database, clock)
    indices = StatusIndexAllocator(database, clock)
    last_use = LastUse(database, clock)
    issuers = LoadingCache(partial(find_issuers, database), max_age=cache_age, monotonic=monotonic)
    key_sets = KeySetClient()
    renewal = KeyRenewal(database, clock, fetch_issuer_keys or key_sets.fetch, key_sets.stop)
    refresher = KeyRefresher(issuers, renewal)
    metadata_endpoint = MetadataEndpoint(settings.issuer)

    def note_issuers() -> None:
        trusted = find_issuers(database)
        metadata_endpoint.renew(trusted)
        metrics.issuer_keys.set(trusted.keys_fetched_at)

    audit = AuditWriter(database.engine, audit_rows, report=metrics.report_writes(clock, database.pool))
    return Services(
        settings=settings,
        database=database,
        threads=RequestThreads(settings.threads, "request"),
        authenticator=ClientAuthenticator(
            GroupLoadingCache(partial(find_clients, database), max_age=cache_age, monotonic=monotonic),
            AssertionVerifier(settings.issuer),
            WorkloadAuthenticator(
                issuers,
                GroupLoadingCache(partial(find_rules, database), max_age=cache_age, monotonic=monotonic),
                WorkloadVerifier(settings.issuer),
                refresher,
                RequestThreads(workload_authentication.THREADS, "workload"),
            ),
            replay,
            last_use,
        ),
        key_refresher=refresher,
        metadata=metadata_endpoint,
        keys=KeyStore(database, sealed_keys, rotation, max_age=cache_age, monotonic=monotonic),
        maintenance=Maintenance(
            database,
            clock,
            {
                "keys": rotation.run,
                "spent assertions": replay.prune,
                "issuer keys": refresher.refresh_due,
                "status lists": indices.prune,
                "credentials": partial(prune_credentials, database, clock),
            },
            own={
                "last uses": last_use.write,
                "restore mark": RestoreMark(database, settings).update,
                "trusted issuers": note_issuers,
            },
        ),
        authlib=AuthlibServer(settings.issuer),
        indices=indices,
        issuer=TokenIssuer(settings.issuer, settings.token_ttl),
        audit=audit,
        audit_upkeep=AuditUpkeep(
            database.engine,
            audit_tables,
            audit_keys.reload,
            clock,
            retention=settings.audit_retention,
            report=metrics.audit_checkpoint.set,
        ),
        limits=create_limits(settings, settings.issuer, metrics.limit_fallbacks, monotonic),
        refusals=RefusalRecorder(audit, metrics.rate_limited, monotonic),
        tokens=TokenReader(database, settings.issuer),
        status_lists=StatusListPublisher(database, settings.issuer, clock, monotonic=monotonic),
        resource_authenticator=ResourceAuthenticator(database, last_use, max_age=cache_age, monotonic=monotonic),
        last_use=last_use,
        metrics=metrics,
        clock=clock,
    )


def create_app(settings: Settings) -> Application:
    """Return the ASGI application of one process.

    Raises:
        InvalidSettings: there is no usable sealing key, or there are no usable audit keys.
    """
    return build_app(create_services(settings))


def build_app(services: Services) -> Application:
    """Return the ASGI application of these parts. Its lifespan starts and stops them."""
    settings, limits = services.settings, services.limits
    return Application(
        create_routes(services),
        services.audit,
        services.threads,
        CorsPolicy(parse_origins(settings.allowed_origins), CROSS_ORIGIN),
        Refusing(
            services.refusals,
            limits.limit("authentication_failures", parse_rate(settings.limit_authentication_failures)),
            SourceAddresses(settings.trusted_proxies),
        ),
        services.metrics,
        start=partial(start_services, services),
        close=partial(_close, services),
    )


def start_services(services: Services) -> None:
    """Start the background work."""
    services.audit.start()
    services.audit_upkeep.start()
    services.maintenance.start()


async def _close(services: Services) -> None:
    await services.limits.close()
    await asyncio.to_thread(close_services, services)


def close_services(services: Services) -> None:
    """Stop the background work, write what is still in memory, and close the database."""
    services.maintenance.stop()
    services.threads.stop()
    services.authenticator.workloads.close()
    services.authenticator.replay.close()
    services.indices.close()
    services.last_use.close()
    services.audit.close()
    services.audit_upkeep.close()
    # After the audit log: while a name is resolved, a fetch cannot be ended.
    services.key_refresher.close()
    services.database.close()
