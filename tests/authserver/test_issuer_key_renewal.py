"""The stored key sets of trusted issuers: when they are fetched, what replaces them, and how long they are used."""

import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from sqlalchemy.exc import SQLAlchemyError
from support.authserver import AuthServer
from support.clock import FakeClock
from support.document_server import DocumentServer
from support.forging import encode
from support.issuers import FetchedIssuer, Node, change, looking, nodes
from support.platforms import kubernetes
from support.workloads import trust

from gatehouse.authserver.workloads.issuer_keys import FETCH_LIMIT, MAX_AGE, REFETCH_INTERVAL, REFRESH_INTERVAL
from gatehouse.authserver.workloads.key_renewal import KeyRenewal
from gatehouse.authserver.workloads.registration import set_issuer_disabled
from gatehouse.shared.protocol.jws import SigningKey

HOUR = 3600
LOGGER = "gatehouse.authserver.workloads.key_renewal"


@pytest.fixture
def cluster(authserver: AuthServer, documents: DocumentServer, clock: FakeClock) -> FetchedIssuer:
    """A cluster with one key, which was fetched just now."""
    return FetchedIssuer(authserver, kubernetes(clock, alg="ES256"), documents)


def set_disabled(issuer: FetchedIssuer, *, disabled: bool) -> None:
    with issuer.server.services.database.write() as session:
        set_issuer_disabled(session, issuer.server.admin, issuer.name, disabled=disabled)


@pytest.mark.both_databases
def test_a_fetched_key_set_replaces_the_stored_one(
    cluster: FetchedIssuer, renewal: KeyRenewal, clock: FakeClock
) -> None:
    old, new = cluster.platform.key.kid, cluster.rotate()
    assert cluster.kids() == {old}
    clock.advance(REFRESH_INTERVAL)
    renewal.renew(cluster.name)
    assert cluster.kids() == {old, new.kid}
    cluster.publish(cluster.platform.jwks(new))
    clock.advance(REFRESH_INTERVAL)
    renewal.renew(cluster.name)
    assert cluster.kids() == {new.kid}, "a key that the issuer withdraws is not trusted any more"
    stored = cluster.stored()
    assert (stored.fetched_at, stored.attempted_at, stored.failure) == (clock(), clock(), None)


def test_a_key_set_is_due_ten_minutes_after_its_fetch(
    cluster: FetchedIssuer, renewal: KeyRenewal, clock: FakeClock
) -> None:
    assert renewal.due() == []
    for _ in range(2):
        clock.advance(REFRESH_INTERVAL - 1)
        assert renewal.due() == []
        clock.advance(1)
        assert renewal.due() == [cluster.name]
        renewal.renew(cluster.name)
        assert renewal.due() == []


@pytest.mark.both_databases
def test_a_key_set_that_was_never_fetched_is_due_at_once(cluster: FetchedIssuer, renewal: KeyRenewal) -> None:
    cluster.remove()
    trust(cluster.server, cluster.platform, location=cluster.location, jwks=None)
    assert (cluster.kids(), renewal.due()) == (set(), [cluster.name])
    renewal.renew(cluster.name)
    assert (cluster.kids(), renewal.due()) == ({cluster.platform.key.kid}, [])


@pytest.mark.both_databases
def test_the_key_set_that_waits_longest_is_due_first(
    authserver: AuthServer, cluster: FetchedIssuer, documents: DocumentServer, renewal: KeyRenewal, clock: FakeClock
) -> None:
    FetchedIssuer(authserver, kubernetes(clock, "https://z.example.com", name="z", alg="ES256"), documents)
    clock.advance(REFETCH_INTERVAL)
    renewal.renew(cluster.name)
    clock.advance(REFRESH_INTERVAL)
    assert renewal.due() == ["z", cluster.name]


def test_keys_that_an_admin_gave_are_never_fetched(
    authserver: AuthServer, documents: DocumentServer, renewal: KeyRenewal, clock: FakeClock
) -> None:
    trust(authserver, kubernetes(clock, documents.url, alg="ES256"))
    clock.advance(MAX_AGE)
    assert renewal.due() == []
    renewal.renew("cluster")
    assert documents.requests == []


@pytest.mark.both_databases
def test_the_keys_of_a_disabled_issuer_are_not_fetched(
    cluster: FetchedIssuer, renewal: KeyRenewal, clock: FakeClock
) -> None:
    set_disabled(cluster, disabled=True)
    clock.advance(REFRESH_INTERVAL)
    assert renewal.due() == []
    renewal.renew(cluster.name)
    assert cluster.fetches == 0
    set_disabled(cluster, disabled=False)
    assert renewal.due() == [cluster.name]


@pytest.mark.threat("T-208")
def test_keys_are_fetched_once_a_minute_at_most(cluster: FetchedIssuer, renewal: KeyRenewal, clock: FakeClock) -> None:
    for fetches in range(3):
        clock.advance(REFETCH_INTERVAL - 1)
        renewal.renew(cluster.name)
        assert cluster.fetches == fetches
        clock.advance(1)
        for _ in range(5):
            renewal.renew(cluster.name)
        assert cluster.fetches == fetches + 1


def test_an_issuer_that_is_down_is_asked_again_after_a_minute(
    cluster: FetchedIssuer, renewal: KeyRenewal, clock: FakeClock
) -> None:
    known = cluster.kids()
    cluster.go_down()
    clock.advance(REFRESH_INTERVAL)
    renewal.renew(cluster.name)
    assert cluster.kids() == known
    assert cluster.stored().failure == f"{cluster.location.jwks_uri}: status 503, not 200"
    clock.advance(REFETCH_INTERVAL - 1)
    assert renewal.due() == []
    clock.advance(1)
    assert renewal.due() == [cluster.name]
    cluster.publish()
    renewal.renew(cluster.name)
    assert cluster.stored().failure is None
    clock.advance(REFETCH_INTERVAL)
    assert renewal.due() == []


@pytest.mark.threat("T-207")
def test_keys_are_used_for_a_day_while_the_issuer_is_down(
    cluster: FetchedIssuer, renewal: KeyRenewal, clock: FakeClock
) -> None:
    known = cluster.kids()
    cluster.go_down()
    for hours in range(1, 25):
        clock.advance(HOUR)
        renewal.renew(cluster.name)
        assert (cluster.usable(), cluster.fetches) == (known, hours)
    clock.advance(1)
    assert cluster.usable() == set()
    clock.advance(HOUR)
    renewal.renew(cluster.name)
    assert (cluster.usable(), cluster.kids()) == (set(), known)
    cluster.publish()
    clock.advance(HOUR)
    renewal.renew(cluster.name)
    assert cluster.usable() == known


def test_an_outage_is_logged_once(
    cluster: FetchedIssuer, renewal: KeyRenewal, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    cluster.go_down()
    for _ in range(3):
        clock.advance(REFRESH_INTERVAL)
        renewal.renew(cluster.name)
    [line] = caplog.messages
    assert line.startswith("the keys of the trusted issuer cluster were not renewed: http://127.0.0.1:")
    cluster.publish()
    for _ in range(2):
        clock.advance(REFRESH_INTERVAL)
        renewal.renew(cluster.name)
    assert caplog.messages[1:] == ["the keys of the trusted issuer cluster are renewed again"]


ONE, OTHER = SigningKey.generate("ES256"), SigningKey.generate("ES256")
PRIVATE = {**json.loads(OTHER.private_jwk()), "kid": "private", "alg": "ES256"}


def weak_jwk() -> dict[str, Any]:
    modulus = rsa.generate_private_key(65537, 1024).public_key().public_numbers().n
    return {"kty": "RSA", "kid": "weak", "alg": "RS256", "n": encode(modulus.to_bytes(128, "big")), "e": "AQAB"}


def jwks(*keys: Any, **members: Any) -> bytes:
    return json.dumps({"keys": keys, **members}).encode()


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the document is empty"),
    "html": (b"<html>", "not valid JSON"),
    "a-list": (b"[]", "the document is not an object"),
    "no-keys-member": (b"{}", "the document has no member 'keys'"),
    "no-keys": (jwks(), "no usable key"),
    "a-repeated-member": (b'{"keys": [], "keys": []}', "same member twice"),
    "not-utf-8": (b'{"keys": ["\xff"]}', "not valid UTF-8"),
    "a-text-as-key": (jwks("key"), "not an object"),
    "a-private-key": (jwks(ONE.public_jwk(), PRIVATE), "private or symmetric"),
    "a-symmetric-key": (jwks(ONE.public_jwk(), {"kty": "oct", "k": "c2VjcmV0", "kid": "s"}), "private or symmetric"),
    "one-kid-twice": (jwks(ONE.public_jwk(), {**OTHER.public_jwk(), "kid": ONE.kid}), "one kid or key twice"),
    "one-key-twice": (jwks(ONE.public_jwk(), {**ONE.public_jwk(), "kid": "again"}), "one kid or key twice"),
    "no-kid": (jwks({name: value for name, value in ONE.public_jwk().items() if name != "kid"}), "no kid"),
    "only-encryption-keys": (jwks({**ONE.public_jwk(), "use": "enc"}), "not sig"),
    "another-algorithm": (jwks(SigningKey.generate("EdDSA").public_jwk()), "not one that the issuer may use"),
    "a-weak-key": (jwks(weak_jwk()), "no usable key"),
    "65-keys": (jwks(*[{"kty": "EC", "kid": str(number)} for number in range(65)]), "at most 64 keys"),
    "deeply-nested": (b'{"keys": ' + b"[" * 30_000, "not valid JSON"),
    "too-large": (jwks(ONE.public_jwk()).ljust(64 * 1024 + 1), "larger than 64 KiB"),
}


@pytest.mark.threat("T-207")
@pytest.mark.parametrize("case", HOSTILE)
def test_a_key_set_that_cannot_be_used_replaces_none(
    case: str, cluster: FetchedIssuer, renewal: KeyRenewal, clock: FakeClock
) -> None:
    document, reason = HOSTILE[case]
    known = cluster.kids()
    cluster.publish(document)
    clock.advance(REFRESH_INTERVAL)
    renewal.renew(cluster.name)
    assert (cluster.fetches, cluster.usable()) == (1, known)
    failure = cluster.stored().failure
    assert failure is not None
    assert reason in failure
    cluster.publish(jwks(ONE.public_jwk()))
    clock.advance(REFRESH_INTERVAL)
    renewal.renew(cluster.name)
    assert cluster.usable() == {ONE.kid}


@pytest.mark.both_databases
def test_a_long_failure_is_cut(cluster: FetchedIssuer, renewal: KeyRenewal, clock: FakeClock) -> None:
    cluster.publish(jwks(*[{"kty": "EC", "kid": f"{number}" * 20} for number in range(64)]))
    clock.advance(REFRESH_INTERVAL)
    renewal.renew(cluster.name)
    assert len(cluster.stored().failure or "") == 512


@pytest.mark.both_databases
def test_any_text_in_a_usable_key_set_can_be_stored(
    cluster: FetchedIssuer, renewal: KeyRenewal, clock: FakeClock
) -> None:
    """PostgreSQL stores no NUL, which JSON can only write as an escape."""
    note = {"note": "\0\x1f\u2028😀", "kid": ONE.kid}
    cluster.publish(jwks(ONE.public_jwk() | note, {"kty": "EC", "kid": "\0"}))
    clock.advance(REFRESH_INTERVAL)
    renewal.renew(cluster.name)
    assert cluster.usable() == {ONE.kid}


@pytest.mark.both_databases
def test_one_of_two_nodes_fetches_and_the_other_waits_for_it(
    authserver: AuthServer, cluster: FetchedIssuer, documents: DocumentServer, clock: FakeClock
) -> None:
    """A request with an unknown kid at the second node must find the key that the first one fetches."""
    new = cluster.rotate()
    clock.advance(REFETCH_INTERVAL)
    documents.open.clear()

    def renew(node: Node) -> set[str]:
        node.renewal.renew(cluster.name)
        return cluster.kids()

    with nodes(authserver, 2) as [first, second], ThreadPoolExecutor(2) as threads, looking(second.database) as looked:
        fetching = threads.submit(renew, first)
        assert documents.arrived.acquire(timeout=30)
        waiting = threads.submit(renew, second)
        assert looked.wait(30)
        documents.open.set()
        assert new.kid in fetching.result(30)
        assert new.kid in waiting.result(30)
    assert cluster.fetches == 1


@pytest.mark.both_databases
def test_nodes_that_begin_at_once_fetch_once(authserver: AuthServer, cluster: FetchedIssuer, clock: FakeClock) -> None:
    clock.advance(REFETCH_INTERVAL)
    together = Barrier(4)

    def renew(node: Node) -> None:
        together.wait(30)
        node.renewal.renew(cluster.name)

    with nodes(authserver, 4) as running, ThreadPoolExecutor(4) as threads:
        list(threads.map(renew, running))
    assert cluster.fetches == 1


def claim_without_result(issuer: FetchedIssuer) -> None:
    """Do what a node does that is killed while it fetches."""
    change(issuer, attempted_at=int(issuer.server.clock()))


ENDS: dict[str, Callable[[FetchedIssuer, Node], object]] = {
    "the issuer is removed": lambda issuer, _: issuer.remove(),
    "the fetch failed": lambda issuer, _: change(issuer, failure="no connection"),
    "the node was killed": lambda issuer, _: issuer.server.clock.advance(FETCH_LIMIT),
    "the server stops": lambda _, node: node.renewal.stop(),
}


@pytest.mark.parametrize("end", ENDS)
def test_nothing_waits_for_a_fetch_that_will_have_no_result(
    end: str, cluster: FetchedIssuer, node: Node, clock: FakeClock
) -> None:
    clock.advance(REFETCH_INTERVAL)
    claim_without_result(cluster)
    with ThreadPoolExecutor(1) as threads, looking(node.database) as looked:
        waiting = threads.submit(node.renewal.renew, cluster.name)
        assert looked.wait(30)
        ENDS[end](cluster, node)
        waiting.result(30)
    assert cluster.fetches == 0


def test_a_fetch_without_a_result_is_repeated_after_a_minute(
    cluster: FetchedIssuer, renewal: KeyRenewal, clock: FakeClock
) -> None:
    clock.advance(REFRESH_INTERVAL)
    claim_without_result(cluster)
    clock.advance(REFETCH_INTERVAL - 1)
    assert renewal.due() == []
    clock.advance(1)
    assert renewal.due() == [cluster.name]


MEANWHILE: dict[str, Any] = {
    "issuer": "https://other.example.com",
    "kind": "oidc",
    "discovery": True,
    "jwks_uri": "https://elsewhere.example.com/jwks",
    "ca_file": "/etc/other.pem",
    "bearer_token_file": "/run/token",
    "created_at": 1,
    "attempted_at": 2_000_000_000,
}
"""What may be another value when a fetch ends, because the issuer was added again or another fetch began."""


@pytest.mark.both_databases
@pytest.mark.parametrize("column", MEANWHILE)
def test_the_result_of_a_fetch_is_dropped_if_its_issuer_changed_meanwhile(
    column: str, cluster: FetchedIssuer, documents: DocumentServer, renewal: KeyRenewal, clock: FakeClock
) -> None:
    known = cluster.kids()
    clock.advance(REFETCH_INTERVAL)
    cluster.publish(jwks(ONE.public_jwk()))
    documents.open.clear()
    with ThreadPoolExecutor(1) as threads:
        fetching = threads.submit(renewal.renew, cluster.name)
        assert documents.arrived.acquire(timeout=30)
        change(cluster, **{column: MEANWHILE[column]})
        documents.open.set()
        fetching.result(30)
    assert cluster.kids() == known


@pytest.mark.both_databases
def test_an_issuer_that_was_added_again_keeps_its_own_keys(
    cluster: FetchedIssuer, documents: DocumentServer, renewal: KeyRenewal, clock: FakeClock
) -> None:
    clock.advance(REFETCH_INTERVAL)
    cluster.publish(jwks(ONE.public_jwk()))
    documents.open.clear()
    with ThreadPoolExecutor(1) as threads:
        fetching = threads.submit(renewal.renew, cluster.name)
        assert documents.arrived.acquire(timeout=30)
        cluster.remove()
        trust(cluster.server, cluster.platform)
        documents.open.set()
        fetching.result(30)
    assert cluster.kids() == {cluster.platform.key.kid}


@pytest.mark.both_databases
def test_an_issuer_may_be_removed_while_its_keys_are_fetched(
    authserver: AuthServer,
    cluster: FetchedIssuer,
    documents: DocumentServer,
    renewal: KeyRenewal,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock.advance(REFETCH_INTERVAL)
    documents.open.clear()
    with ThreadPoolExecutor(1) as threads:
        fetching = threads.submit(renewal.renew, cluster.name)
        assert documents.arrived.acquire(timeout=30)
        cluster.remove()
        documents.open.set()
        fetching.result(30)
    renewal.renew(cluster.name)
    assert (cluster.fetches, caplog.messages, renewal.due()) == (1, [], [])


def test_a_fetch_that_hangs_when_the_server_stops_changes_nothing(
    cluster: FetchedIssuer, documents: DocumentServer, renewal: KeyRenewal, clock: FakeClock
) -> None:
    clock.advance(REFRESH_INTERVAL)
    before = cluster.stored()
    documents.open.clear()
    with ThreadPoolExecutor(1) as threads:
        hanging = threads.submit(renewal.renew, cluster.name)
        assert documents.arrived.acquire(timeout=30)
        renewal.stop()
        hanging.result(30)
    after = cluster.stored()
    assert (after.keys, after.fetched_at, after.failure) == (before.keys, before.fetched_at, None)
    clock.advance(REFETCH_INTERVAL)
    renewal.renew(cluster.name)
    assert cluster.stored().attempted_at == after.attempted_at, "nothing begins after the stop"


def test_an_attempt_that_a_wrong_clock_wrote_delays_nothing(
    cluster: FetchedIssuer, renewal: KeyRenewal, clock: FakeClock
) -> None:
    change(cluster, attempted_at=int(clock()) + MAX_AGE)
    assert renewal.due() == [cluster.name]
    renewal.renew(cluster.name)
    assert (cluster.fetches, cluster.stored().attempted_at) == (1, clock())


def test_a_clock_that_is_a_little_behind_fetches_no_more_often(
    cluster: FetchedIssuer, renewal: KeyRenewal, clock: FakeClock
) -> None:
    clock.advance(-REFETCH_INTERVAL)
    renewal.renew(cluster.name)
    assert (cluster.fetches, renewal.due()) == (0, [])


@pytest.mark.both_databases
def test_nothing_is_raised_while_the_database_is_down(
    cluster: FetchedIssuer, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.server.take_database_away()
    node.database.close()
    with pytest.raises(SQLAlchemyError):
        node.renewal.due()
    node.renewal.renew(cluster.name)
    [line] = caplog.messages
    assert line == "the keys of the trusted issuer cluster were not renewed: OperationalError"


def test_only_a_bundle_says_when_it_is_fetched_again(
    cluster: FetchedIssuer, renewal: KeyRenewal, clock: FakeClock
) -> None:
    cluster.publish(jwks(ONE.public_jwk(), spiffe_refresh_hint=60, spiffe_sequence=5))
    clock.advance(REFRESH_INTERVAL)
    renewal.renew(cluster.name)
    clock.advance(REFRESH_INTERVAL - 1)
    assert renewal.due() == []
    clock.advance(1)
    cluster.publish(jwks(OTHER.public_jwk(), spiffe_sequence=4))
    renewal.renew(cluster.name)
    assert cluster.kids() == {OTHER.kid}
