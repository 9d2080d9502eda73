"""An assertion is accepted once: the replay store, with several clients, threads and nodes."""

import asyncio
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from sqlalchemy import event, func, select
from support.assertions import KeyClient
from support.authserver import AuthServer
from support.clock import FakeClock

from gatehouse.authserver.clients.assertions import MAX_LIFETIME, AcceptedAssertion, ReplayStore
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import SpentAssertionRow
from gatehouse.authserver.errors import OAuthError
from gatehouse.shared.protocol.clock import LEEWAY
from gatehouse.shared.protocol.jws import SigningKey

KEY, OTHER_KEY = SigningKey.generate("ES256"), SigningKey.generate("ES256")


@pytest.fixture
def client(authserver: AuthServer) -> KeyClient:
    return KeyClient(authserver, KEY)


@pytest.mark.threat("T-063")
@pytest.mark.both_databases
def test_an_assertion_works_once(client: KeyClient) -> None:
    """RFC 7523 3, item 7; hydra GHSA-3p3g-vpw6-4w66."""
    assertion = client.assertion()
    assert client.post(assertion).status_code == 200
    client.refused(client.post(assertion), "assertion: jti was used before")


@pytest.mark.divergence("D-51")
@pytest.mark.threat("T-063")
@pytest.mark.both_databases
def test_one_of_two_concurrent_uses_is_accepted(client: KeyClient) -> None:
    client.accepted()
    assertion = client.assertion()
    with ThreadPoolExecutor(8) as pool:
        statuses = [response.status_code for response in pool.map(client.post, [assertion] * 8)]
    assert sorted(statuses) == [200] + [401] * 7


@pytest.mark.divergence("D-51")
@pytest.mark.threat("T-063")
@pytest.mark.both_databases
def test_two_processes_accept_an_assertion_once(authserver: AuthServer) -> None:
    """Each process groups it with other assertions, of which some are used elsewhere at the same time."""
    assertions = [AcceptedAssertion("agent_1", bytes([number]), authserver.clock()) for number in range(12)]
    outcomes: dict[AcceptedAssertion, list[bool]] = defaultdict(list)
    start = threading.Barrier(4)

    async def spend_all(store: ReplayStore, order: list[AcceptedAssertion]) -> None:
        async def spend(assertion: AcceptedAssertion) -> None:
            try:
                await store.spend_async(assertion)
            except OAuthError:
                outcomes[assertion].append(False)
            else:
                outcomes[assertion].append(True)

        await asyncio.gather(*map(spend, order))

    def process(order: list[AcceptedAssertion]) -> None:
        with (
            Database(authserver.settings.database) as database,
            closing(ReplayStore(database, authserver.clock)) as store,
        ):
            start.wait()
            asyncio.run(spend_all(store, order))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(process, [assertions, assertions[::-1], assertions, assertions[::-1]]))
    assert {assertion: sorted(found) for assertion, found in outcomes.items()} == {
        assertion: [False, False, False, True] for assertion in assertions
    }


@pytest.mark.threat("T-063")
@pytest.mark.both_databases
def test_repeated_assertions_cost_their_group_no_transaction(authserver: AuthServer) -> None:
    """A client that replays its own assertion would otherwise make each request of its group wait for a commit."""
    commits: list[object] = []
    used, *fresh = [AcceptedAssertion("agent_1", bytes([number]), authserver.clock()) for number in (5, 1, 9, 3, 7, 2)]

    async def spend(store: ReplayStore, *group: AcceptedAssertion) -> list[bool]:
        outcomes = await asyncio.gather(*map(store.spend_async, group), return_exceptions=True)
        return [isinstance(outcome, OAuthError) for outcome in outcomes]

    with Database(authserver.settings.database) as database, closing(ReplayStore(database, authserver.clock)) as store:
        event.listen(database.engine, "commit", commits.append)
        assert asyncio.run(spend(store, used, fresh[0], fresh[1])) == [False, False, False]
        # The first request of a group may be written before the others arrive.
        assert len(commits) <= 2
        commits.clear()
        repeated = [fresh[2], used, fresh[3], fresh[4], fresh[4]]
        assert asyncio.run(spend(store, *repeated)) == [False, True, False, False, True]
        assert len(commits) <= 2


@pytest.mark.threat("T-063")
@pytest.mark.both_databases
def test_an_assertion_that_could_not_be_spent_stays_unused(authserver: AuthServer, client: KeyClient) -> None:
    client.accepted()
    assertion = client.assertion()
    rename = "ALTER TABLE {} RENAME TO {}"
    with authserver.services.database.engine.begin() as connection:
        connection.exec_driver_sql(rename.format("spent_assertion", "elsewhere"))
    response = client.post(assertion)
    assert (response.status_code, response.json["error"]) == (503, "temporarily_unavailable")
    with authserver.services.database.engine.begin() as connection:
        connection.exec_driver_sql(rename.format("elsewhere", "spent_assertion"))
    assert client.post(assertion).status_code == 200


def test_an_assertion_is_refused_while_the_server_stops(authserver: AuthServer, client: KeyClient) -> None:
    client.accepted()
    authserver.services.authenticator.replay.close()
    response = client.post(client.assertion())
    assert (response.status_code, response.json["error"]) == (503, "temporarily_unavailable")


@pytest.mark.threat("T-063")
@pytest.mark.both_databases
def test_an_assertion_is_on_disk_before_its_answer(authserver: AuthServer, client: KeyClient) -> None:
    client.accepted()
    assert client.post(client.assertion()).status_code == 200
    with authserver.services.database.read() as session:
        assert session.scalar(select(func.count()).select_from(SpentAssertionRow)) == 2


@pytest.mark.threat("T-064")
@pytest.mark.both_databases
def test_a_jti_belongs_to_its_client(authserver: AuthServer, client: KeyClient) -> None:
    other = KeyClient(authserver, OTHER_KEY)
    assert other.post(other.assertion(other.claims(jti="shared"))).status_code == 200
    assert client.post(client.assertion(client.claims(jti="shared"))).status_code == 200


@pytest.mark.divergence("D-51")
@pytest.mark.threat("T-064")
@pytest.mark.both_databases
def test_no_client_can_spend_the_jti_of_another(client: KeyClient) -> None:
    """keycloak#49215: a replay store that is written before the signature is verified."""
    client.accepted()
    claims = client.claims(jti="wanted")
    client.refused(client.post(client.assertion(claims, key=OTHER_KEY)), "assertion: signature does not match")
    client.refused(
        client.post(client.assertion({**claims, "aud": "https://evil.example"})),
        "assertion: aud is https://evil.example, not this issuer as one string",
    )
    assert client.post(client.assertion(claims)).status_code == 200


@pytest.mark.threat("T-063")
@pytest.mark.both_databases
def test_a_spent_jti_is_kept_until_its_assertion_expires(client: KeyClient) -> None:
    assertion = client.assertion()
    assert client.post(assertion).status_code == 200
    client.clock.advance(MAX_LIFETIME + LEEWAY - 1)
    client.refused(client.post(assertion), "assertion: jti was used before")
    client.clock.advance(1)
    client.refused(client.post(assertion), "assertion: expired 30 s ago")


@pytest.mark.both_databases
def test_expired_entries_are_removed_from_the_replay_store(authserver: AuthServer) -> None:
    store = authserver.services.authenticator.replay
    now = int(authserver.clock())
    early, late = AcceptedAssertion("agent_1", b"early", now), AcceptedAssertion("agent_1", b"late", now + 300)
    store.spend_and_wait(early)
    authserver.clock.advance(2 * LEEWAY + 1)
    store.spend_and_wait(late)
    store.prune()
    with authserver.services.database.read() as session:
        assert session.scalar(select(func.count()).select_from(SpentAssertionRow)) == 1
    with pytest.raises(OAuthError):
        store.spend_and_wait(late)


@pytest.mark.threat("T-063")
@pytest.mark.both_databases
def test_a_node_with_a_fast_clock_does_not_allow_a_replay(authserver: AuthServer, client: KeyClient) -> None:
    """RFC 7523 3, item 7: a node with a slower clock accepts the assertion until its own leeway has passed."""
    assertion = client.assertion(client.claims(exp=int(authserver.clock()) + 1))
    assert client.post(assertion).status_code == 200
    authserver.clock.advance(LEEWAY)
    client.refused(client.post(assertion), "assertion: jti was used before")
    ahead = FakeClock(authserver.clock() + LEEWAY)
    ReplayStore(authserver.services.database, ahead).prune()
    client.refused(client.post(assertion), "assertion: jti was used before")
