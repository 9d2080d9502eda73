"""Rotation of signing keys in the database: by one process at a time, and before anything is signed."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest
from sqlalchemy import select, update
from support.authserver import ISSUER, AuthServer
from support.clock import FakeClock
from support.keys import rotation_of

from gatehouse.authserver.app import close_services, create_services
from gatehouse.authserver.db.models import PepperRow, SigningKeyRow
from gatehouse.authserver.keys.encryption import SealingKey
from gatehouse.authserver.keys.rotation import Rotation, policy_of
from gatehouse.authserver.keys.sealed_keys import NoUsableKey, SealedKeys, lifecycle_of
from gatehouse.authserver.keys.store import KeyRing
from gatehouse.shared.protocol.jws import read_header
from gatehouse.shared.protocol.key_sets import parse_key_set
from gatehouse.shared.service.administrator import CommandRefused

pytestmark = pytest.mark.both_databases

DAY = 86400


@pytest.fixture
def rotation(authserver: AuthServer) -> Rotation:
    return rotation_of(authserver.services, authserver.clock)


def rows(server: AuthServer) -> list[SigningKeyRow]:
    with server.services.database.read() as session:
        return list(session.scalars(select(SigningKeyRow).order_by(SigningKeyRow.published_at)))


def states(server: AuthServer) -> list[str]:
    return [row.state for row in rows(server)]


def ring_of_a_new_process(server: AuthServer) -> KeyRing:
    services = create_services(server.settings, server.clock)
    try:
        return services.keys.ring()
    finally:
        close_services(services)


def publish(server: AuthServer) -> str:
    with server.services.database.write() as session:
        return rotation_of(server.services, server.clock).publish(session).kid


def revoke(server: AuthServer, kid: str) -> None:
    with server.services.database.write() as session:
        rotation_of(server.services, server.clock).revoke(session, kid)


def test_a_rotation_publishes_activates_retires_and_removes(
    authserver: AuthServer, rotation: Rotation, clock: FakeClock
) -> None:
    [first] = rows(authserver)
    policy = rotation.policy
    assert not rotation.run()
    clock.now = policy.successor_at(lifecycle_of(first))
    assert rotation.run()
    assert states(authserver) == ["active", "next"]
    clock.advance(policy.lead)
    assert rotation.run()
    assert states(authserver) == ["retiring", "active"]
    assert not rotation.run()
    ring = ring_of_a_new_process(authserver)
    assert ring.signing_key.kid != first.kid
    assert set(parse_key_set(ring.jwks)) == {first.kid, ring.signing_key.kid}
    clock.advance(policy.tail)
    assert rotation.run()
    assert states(authserver) == ["active"]
    assert set(parse_key_set(ring_of_a_new_process(authserver).jwks)) == {ring.signing_key.kid}
    actions = [event["action"] for event in authserver.audit() if event["actor"] == "server:maintenance"]
    assert actions == ["key.create", "key.retire", "key.activate", "key.remove"]


@pytest.mark.threat("T-087")
@pytest.mark.parametrize("days", [30, 31], ids=["due for a successor", "expired"])
def test_concurrent_rotations_create_one_key(authserver: AuthServer, clock: FakeClock, days: int) -> None:
    clock.advance(days * DAY)
    workers = 4
    together = Barrier(workers)
    all_services = [create_services(authserver.settings, clock) for _ in range(workers)]

    def run(number: int) -> bool:
        together.wait()
        return rotation_of(all_services[number], clock).run()

    with ThreadPoolExecutor(workers) as pool:
        assert any(pool.map(run, range(workers)))
    for services in all_services:
        services.audit.close()
        services.database.close()
    assert states(authserver) == (["active", "next"] if days == 30 else ["retiring", "active"])


@pytest.mark.threat("T-088")
def test_the_plan_runs_before_the_first_signature_of_a_process(authserver: AuthServer, clock: FakeClock) -> None:
    """A backup restored after its key's time signs with a new key."""
    [old] = rows(authserver)
    assert ring_of_a_new_process(authserver).signing_key.kid == old.kid
    clock.advance(31 * DAY)
    ring = ring_of_a_new_process(authserver)
    assert ring.signing_key.kid != old.kid
    assert old.kid in parse_key_set(ring.jwks), "the last tokens that it signed are still accepted"


def test_a_process_without_maintenance_does_not_use_an_expired_key(authserver: AuthServer, clock: FakeClock) -> None:
    client, secret = authserver.create_client()
    first = authserver.post_token(basic=(client.client_id, secret))
    clock.advance(31 * DAY)
    second = authserver.post_token(basic=(client.client_id, secret))
    kids = [read_header(response.json["access_token"]).kid for response in (first, second)]
    assert kids[0] != kids[1]


def test_a_next_key_is_published_once(authserver: AuthServer) -> None:
    kid = publish(authserver)
    assert kid in parse_key_set(ring_of_a_new_process(authserver).jwks)
    with pytest.raises(CommandRefused, match=kid):
        publish(authserver)
    assert states(authserver) == ["active", "next"]


@pytest.mark.threat("T-082")
def test_a_revoked_key_is_removed_at_once_and_another_one_signs(authserver: AuthServer) -> None:
    [first] = rows(authserver)
    revoke(authserver, first.kid)
    [second] = rows(authserver)
    assert second.state == "active"
    ring = ring_of_a_new_process(authserver)
    assert set(parse_key_set(ring.jwks)) == {second.kid} == {ring.signing_key.kid}
    assert [event["object"] for event in authserver.audit(action="key.revoke")] == [first.kid]


def test_the_published_next_key_replaces_a_revoked_key(authserver: AuthServer) -> None:
    [first] = rows(authserver)
    successor = publish(authserver)
    revoke(authserver, first.kid)
    assert [(row.kid, row.state) for row in rows(authserver)] == [(successor, "active")]


def test_revoking_a_next_key_keeps_the_active_one(authserver: AuthServer, clock: FakeClock) -> None:
    [first] = rows(authserver)
    clock.advance(1)
    revoke(authserver, publish(authserver))
    assert [(row.kid, row.state) for row in rows(authserver)] == [(first.kid, "active")]
    with pytest.raises(CommandRefused, match="authserver key list"):
        revoke(authserver, "unknown")


def with_another_sealing_key(server: AuthServer) -> Rotation:
    services = server.services
    foreign = SealedKeys(lambda: SealingKey(bytes(32)), ISSUER)
    return Rotation(services.database, foreign, policy_of(services.settings), services.audit.rows, server.clock)


def test_a_wrong_sealing_key_changes_no_key(authserver: AuthServer, clock: FakeClock) -> None:
    clock.advance(31 * DAY)
    [before] = rows(authserver)
    foreign = with_another_sealing_key(authserver)
    assert not foreign.run()
    with (
        pytest.raises(CommandRefused, match="Restore the right sealing key"),
        authserver.services.database.write() as session,
    ):
        foreign.publish(session)
    with (
        pytest.raises(CommandRefused, match="Restore the right sealing key"),
        authserver.services.database.write() as session,
    ):
        foreign.revoke(session, before.kid)
    assert [(row.kid, row.state) for row in rows(authserver)] == [(before.kid, "active")]
    assert rotation_of(authserver.services, authserver.clock).run()


def test_keys_lost_during_a_rotation_are_not_hidden_by_a_new_one(authserver: AuthServer, clock: FakeClock) -> None:
    clock.advance(31 * DAY)
    rotation, garbage = rotation_of(authserver.services, clock), b"\x01" + bytes(60)

    def lose_everything() -> float:
        if not lost:
            lost.append(True)
            with authserver.services.database.write() as session:
                session.execute(update(SigningKeyRow).values(sealed=garbage))
                session.execute(update(PepperRow).values(sealed=garbage))
        return clock()

    lost: list[bool] = []
    with pytest.raises(NoUsableKey, match="Restore that one"):
        replace(rotation, clock=lose_everything).run()
    assert states(authserver) == ["active"]


def test_an_undecryptable_active_key_is_displaced_and_can_be_revoked(authserver: AuthServer) -> None:
    good = publish(authserver)
    with authserver.services.database.write() as session:
        session.execute(update(SigningKeyRow).where(SigningKeyRow.state == "active").values(sealed=b"\x01" + bytes(60)))
    assert ring_of_a_new_process(authserver).signing_key.kid == good
    [undecryptable] = [row for row in rows(authserver) if row.state == "retiring"]
    revoke(authserver, undecryptable.kid)
    assert [(row.kid, row.state) for row in rows(authserver)] == [(good, "active")]


def test_the_database_allows_one_active_key(authserver: AuthServer) -> None:
    publish(authserver)
    with pytest.raises(Exception, match=r"(?i)unique"), authserver.services.database.write() as session:
        session.execute(update(SigningKeyRow).values(state="active"))
    assert sorted(states(authserver)) == ["active", "next"]
