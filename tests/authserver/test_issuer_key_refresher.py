"""Fetches of issuers' keys beside requests: in the background, and for a token with an unknown key."""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
from support.authserver import FORM, AuthServer
from support.certificates import Authority
from support.clock import FakeClock
from support.document_server import Answer, DocumentServer
from support.http_client import http_client, run
from support.issuers import LOOK_FOR_ISSUERS, PATH, FetchedIssuer, looking, serving
from support.platforms import kubernetes
from support.waiting import wait_until
from support.workloads import FORMS, REFUSALS, WorkloadClient, trust
from werkzeug.test import Client, TestResponse

from gatehouse.authserver.app import Services, build_app, close_services, create_services
from gatehouse.authserver.grants.jwt_bearer import GRANT_TYPE
from gatehouse.authserver.workloads.issuer_keys import MAX_AGE, REFETCH_INTERVAL, REFRESH_INTERVAL
from gatehouse.authserver.workloads.key_fetching import METADATA
from gatehouse.authserver.workloads.registry import KeyLocation
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.service import deadline
from gatehouse.shared.service.deadline import DeadlineExceeded

HOUR = 3600
POD_TOKEN = "eyJhbGciOiJSUzI1NiJ9.e30.c2lnbmF0dXJl"


@pytest.fixture
def cluster(authserver: AuthServer, documents: DocumentServer, clock: FakeClock) -> FetchedIssuer:
    """A cluster with one key, which was fetched a minute ago."""
    issuer = FetchedIssuer(authserver, kubernetes(clock, alg="ES256"), documents)
    clock.advance(REFETCH_INTERVAL)
    return issuer


@pytest.fixture
def agent(authserver: AuthServer, cluster: FetchedIssuer) -> WorkloadClient:
    """A client in the cluster."""
    return WorkloadClient(authserver, cluster.platform, issuer=cluster.stored())


@pytest.fixture
def other(authserver: AuthServer, clock: FakeClock) -> Iterator[FetchedIssuer]:
    """Another cluster, on another server, whose key was fetched a minute ago."""
    with serving() as server:
        platform = kubernetes(clock, "https://other.example.com", name="other", alg="ES256")
        yield FetchedIssuer(authserver, platform, server)


@contextmanager
def node(server: AuthServer) -> Iterator[Services]:
    """Another node of a server."""
    services = create_services(server.settings, server.clock, monotonic=server.clock)
    try:
        yield services
    finally:
        close_services(services)


def ask(http: Client, token: str) -> TestResponse:
    """Send a token request to a node."""
    return http.post("/token", data=urlencode({"grant_type": GRANT_TYPE, "assertion": token}), content_type=FORM)


def stranger(cluster: FetchedIssuer) -> str:
    """Return a token that is signed with a key that the cluster does not have."""
    return cluster.platform.token(key=SigningKey.generate("ES256"))


@pytest.mark.both_databases
@pytest.mark.parametrize("form", FORMS)
def test_a_new_key_of_a_platform_is_fetched_for_its_first_token(
    cluster: FetchedIssuer, agent: WorkloadClient, form: str
) -> None:
    agent.accepted(form)
    assert cluster.fetches == 0
    cluster.rotate()
    agent.accepted(form)
    agent.accepted(form)
    assert cluster.fetches == 1


@pytest.mark.threat("T-208")
@pytest.mark.parametrize("form", FORMS)
def test_a_flood_of_unknown_kids_costs_one_fetch_a_minute(
    cluster: FetchedIssuer, agent: WorkloadClient, clock: FakeClock, form: str
) -> None:
    agent.accepted(form)
    for minute in range(1, 4):
        for _ in range(10):
            response = agent.post(form, stranger(cluster))
            assert (response.status_code, response.json["error"]) == REFUSALS[form]
        assert cluster.fetches == minute
        agent.accepted(form)
        clock.advance(REFETCH_INTERVAL - 1)
        agent.post(form, stranger(cluster))
        assert cluster.fetches == minute
        clock.advance(1)


def test_only_a_possible_signer_is_asked_for_its_keys(
    cluster: FetchedIssuer, other: FetchedIssuer, agent: WorkloadClient, clock: FakeClock
) -> None:
    """Neither another issuer, nor one that may not use the algorithm of the token."""
    clock.advance(REFETCH_INTERVAL)
    assert agent.post("grant", stranger(other)).status_code == 400
    assert (cluster.fetches, other.fetches) == (0, 1)
    assert agent.post("grant", cluster.platform.token(key=SigningKey.generate("EdDSA"))).status_code == 400
    assert agent.post("grant", cluster.platform.token(iss="https://unknown.example.com")).status_code == 400
    assert (cluster.fetches, other.fetches) == (0, 1)
    assert agent.post("grant", stranger(cluster)).status_code == 400
    assert (cluster.fetches, other.fetches) == (1, 1)


async def refetch(services: Services, issuer: FetchedIssuer, times: int = 1) -> None:
    """Do what several requests with an unknown kid do at once."""
    stored = issuer.stored()
    await asyncio.gather(*(services.key_refresher.refetch(stored) for _ in range(times)))


@pytest.mark.threat("T-208")
def test_requests_that_wait_for_one_issuer_share_a_fetch(
    authserver: AuthServer, cluster: FetchedIssuer, other: FetchedIssuer, documents: DocumentServer, clock: FakeClock
) -> None:
    """They occupy one thread. An issuer that does not answer keeps nobody from the keys of another one."""
    clock.advance(REFETCH_INTERVAL)
    new, new_of_other = cluster.rotate(), other.rotate()
    documents.open.clear()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(run, refetch(authserver.services, cluster, 50))
        assert documents.arrived.acquire(timeout=30)
        run(refetch(authserver.services, other, 50))
        assert new_of_other.kid in other.kids()
        assert new.kid not in cluster.kids()
        documents.open.set()
        waiting.result(30)
    assert new.kid in cluster.kids()
    assert (cluster.fetches, other.fetches) == (1, 1)


def test_a_request_does_not_wait_beyond_its_deadline(
    authserver: AuthServer, cluster: FetchedIssuer, documents: DocumentServer
) -> None:
    new = cluster.rotate()
    documents.open.clear()

    async def impatient() -> None:
        deadline.begin(0)
        await refetch(authserver.services, cluster)

    with pytest.raises(DeadlineExceeded):
        run(impatient())
    assert documents.arrived.acquire(timeout=30)
    documents.open.set()
    run(refetch(authserver.services, cluster))
    assert new.kid in cluster.kids(), "the fetch went on"
    assert cluster.fetches == 1


def test_a_request_that_comes_during_a_fetch_waits_for_it(
    authserver: AuthServer, cluster: FetchedIssuer, agent: WorkloadClient, documents: DocumentServer, clock: FakeClock
) -> None:
    """It sees that the last fetch began a second ago, and not yet with which result."""
    agent.accepted("grant")
    cluster.rotate()
    tokens = [cluster.platform.token() for _ in range(2)]
    documents.open.clear()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(agent.post, "grant", tokens[0])
        assert documents.arrived.acquire(timeout=30)
        clock.advance(1)
        with looking(authserver.services.database, LOOK_FOR_ISSUERS) as looked:
            second = threads.submit(agent.post, "grant", tokens[1])
            assert looked.wait(30)
        documents.open.set()
        assert [first.result(30).status_code, second.result(30).status_code] == [200, 200]
    assert cluster.fetches == 1


@pytest.mark.both_databases
@pytest.mark.parametrize("is_primed", [True, False], ids=["knows-the-old-keys", "new-node"])
def test_a_request_at_another_node_waits_for_the_fetch_too(
    authserver: AuthServer, cluster: FetchedIssuer, agent: WorkloadClient, documents: DocumentServer, is_primed: bool
) -> None:
    with node(authserver) as second, ThreadPoolExecutor(2) as threads:
        http = http_client(build_app(second))
        if is_primed:
            assert ask(http, cluster.platform.token()).status_code == 200
        cluster.rotate()
        tokens = [cluster.platform.token() for _ in range(2)]
        documents.open.clear()
        here = threads.submit(agent.post, "grant", tokens[0])
        assert documents.arrived.acquire(timeout=30)
        with looking(second.database) as looked:
            there = threads.submit(ask, http, tokens[1])
            assert looked.wait(30)
        documents.open.set()
        assert [here.result(30).status_code, there.result(30).status_code] == [200, 200]
    assert cluster.fetches == 1


@pytest.mark.both_databases
def test_a_node_uses_the_keys_that_another_one_fetched(
    authserver: AuthServer, cluster: FetchedIssuer, agent: WorkloadClient, clock: FakeClock
) -> None:
    with node(authserver) as second:
        http = http_client(build_app(second))
        assert ask(http, cluster.platform.token()).status_code == 200
        cluster.rotate()
        agent.accepted("grant")
        clock.advance(1)
        assert ask(http, cluster.platform.token()).status_code == 200
    assert cluster.fetches == 1


@pytest.mark.both_databases
def test_the_keys_outlast_an_outage_of_the_issuer_and_a_restart(
    authserver: AuthServer, cluster: FetchedIssuer, agent: WorkloadClient, clock: FakeClock
) -> None:
    cluster.go_down()
    fetched_at = cluster.stored().fetched_at
    assert fetched_at is not None
    for age in (HOUR, MAX_AGE):
        clock.now = fetched_at + age
        run(refetch(authserver.services, cluster))
        agent.accepted("grant")
        with node(authserver) as restarted:
            assert ask(http_client(build_app(restarted)), cluster.platform.token()).status_code == 200
    clock.now = fetched_at + 25 * HOUR
    response = agent.post("grant", cluster.platform.token())
    failure = cluster.stored().failure
    assert failure is not None
    reason = "platform token: no key of the issuer is known, or the key set is too old"
    failed = f"cluster: the last fetch of the keys failed 0 s ago: {failure}"
    agent.check_refusal("grant", response, f"{reason}; {failed}")
    cluster.publish()
    clock.advance(REFETCH_INTERVAL)
    agent.accepted("grant")


@pytest.mark.both_databases
def test_maintenance_fetches_what_is_due(
    authserver: AuthServer, cluster: FetchedIssuer, agent: WorkloadClient, clock: FakeClock
) -> None:
    new = cluster.rotate()
    clock.advance(REFRESH_INTERVAL - REFETCH_INTERVAL)
    authserver.services.maintenance.run_once()
    wait_until(lambda: new.kid in cluster.kids())
    agent.accepted("grant")
    assert cluster.fetches == 1


def test_an_issuer_that_hangs_delays_only_what_else_is_due(
    authserver: AuthServer, cluster: FetchedIssuer, other: FetchedIssuer, documents: DocumentServer, clock: FakeClock
) -> None:
    refresher = authserver.services.key_refresher
    new, new_of_other = cluster.rotate(), other.rotate()
    clock.advance(REFRESH_INTERVAL)
    documents.open.clear()
    refresher.refresh_due()
    assert documents.arrived.acquire(timeout=30)
    refresher.refresh_due()
    with serving() as server:
        third = FetchedIssuer(authserver, kubernetes(clock, "https://third.example.com", name="third"), server)
        clock.advance(REFETCH_INTERVAL)
        run(refetch(authserver.services, third))
        assert (third.fetches, other.fetches) == (1, 0), "maintenance occupies one thread, however often it begins"
        third.remove()
    run(refetch(authserver.services, other))
    assert new_of_other.kid in other.kids(), "a request gets its keys at once"
    documents.open.set()
    run(refetch(authserver.services, cluster))
    assert new.kid in cluster.kids()
    assert (cluster.fetches, other.fetches) == (1, 1)
    clock.advance(REFRESH_INTERVAL)

    def is_fetched_again() -> bool:
        # It does nothing while the first round has not ended.
        refresher.refresh_due()
        return (cluster.fetches, other.fetches) == (2, 2)

    wait_until(is_fetched_again)


def test_maintenance_leaves_a_fetch_that_runs_alone(
    authserver: AuthServer, cluster: FetchedIssuer, other: FetchedIssuer, documents: DocumentServer, clock: FakeClock
) -> None:
    refresher = authserver.services.key_refresher
    clock.advance(REFRESH_INTERVAL)
    documents.open.clear()
    with ThreadPoolExecutor(1) as threads:
        requested = threads.submit(run, refetch(authserver.services, cluster))
        assert documents.arrived.acquire(timeout=30)
        clock.advance(1)
        run(refetch(authserver.services, other))
        assert other.documents.arrived.acquire(timeout=30)
        # As after a fetch that takes very long. The cluster is due first.
        clock.advance(REFRESH_INTERVAL)
        refresher.refresh_due()
        assert other.documents.arrived.acquire(timeout=30)
        documents.open.set()
        requested.result(30)
    assert (cluster.fetches, other.fetches) == (1, 2)


@pytest.mark.both_databases
def test_a_server_stops_although_a_fetch_hangs(
    authserver: AuthServer, cluster: FetchedIssuer, documents: DocumentServer, clock: FakeClock
) -> None:
    clock.advance(REFRESH_INTERVAL)
    known, documents_open = cluster.stored(), documents.open
    documents_open.clear()
    with node(authserver) as stopping:
        stopping.key_refresher.refresh_due()
        assert documents.arrived.acquire(timeout=30)
    assert not documents_open.is_set()
    stored = cluster.stored()
    assert (stored.keys, stored.fetched_at, stored.failure) == (known.keys, known.fetched_at, None)
    new = cluster.rotate()
    documents_open.set()
    clock.advance(REFETCH_INTERVAL)
    authserver.services.key_refresher.refresh_due()
    wait_until(lambda: new.kid in cluster.kids())


def test_the_keys_of_a_private_cluster_come_over_its_own_authority(
    authserver: AuthServer, clock: FakeClock, tmp_path: Path
) -> None:
    """Discovery, a certificate of the cluster's authority, and the token that its API server requires."""
    authority, token_file = Authority(tmp_path), tmp_path / "token"
    token_file.write_text(POD_TOKEN)
    with serving(authority.server_context()) as api_server:
        platform = kubernetes(clock, api_server.url, alg="ES256")
        metadata = {"issuer": api_server.url, "jwks_uri": f"{api_server.url}{PATH}"}
        api_server.answers[METADATA] = Answer(json.dumps(metadata).encode())
        api_server.answers[PATH] = Answer(platform.jwks(), headers={"Content-Type": "application/jwk-set+json"})
        location = KeyLocation(True, None, str(authority.file), str(token_file))
        agent = WorkloadClient(authserver, platform, issuer=trust(authserver, platform, location=location, jwks=None))
        agent.accepted("grant")
        agent.accepted("assertion")
        assert [(request.path, request.headers["authorization"]) for request in api_server.requests] == [
            (METADATA, f"Bearer {POD_TOKEN}"),
            (PATH, f"Bearer {POD_TOKEN}"),
        ]
