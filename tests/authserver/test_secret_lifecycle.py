"""Client secrets: rotation with a grace period, expiry and revocation."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from support.authserver import AuthServer, authenticate
from support.clock import FakeClock
from support.refused_clients import assert_invalid_client, count_digests_and_comparisons
from support.shell import CREATE, Shell

from gatehouse.authserver.app import create_services
from gatehouse.authserver.clients.registry import Client, existing_client
from gatehouse.authserver.credentials.client_secrets import ListedSecret, list_secrets, revoke_secret, rotate_secret
from gatehouse.authserver.credentials.lifecycle import MAX_GRACE_PERIOD
from gatehouse.authserver.credentials.secrets import EXAMINED, MAX_ACTIVE
from gatehouse.authserver.db.models import ClientSecretRow
from gatehouse.authserver.errors import OAuthError
from gatehouse.authserver.grants.entitlements import obstacles
from gatehouse.shared.service.administrator import CommandRefused

DAY = 86400


def rotate(server: AuthServer, client: Client, grace_period: int = 0) -> str:
    """Rotate the secret, and wait until the cached client has expired."""
    with server.services.database.write() as session:
        _, secret = rotate_secret(session, server.admin, server.services.keys.ring(), client.client_id, grace_period)
    server.clock.advance(1)
    return secret


def expire(server: AuthServer, client: Client, which: str) -> None:
    with server.services.database.write() as session:
        revoke_secret(session, server.admin, client.client_id, which)
    server.clock.advance(1)


def listed(server: AuthServer, client: Client) -> list[ListedSecret]:
    with server.services.database.read() as session:
        return list_secrets(session, client.client_id)


def accepted(server: AuthServer, client: Client, secret: str) -> bool:
    response = server.post_token(basic=(client.client_id, secret))
    assert response.status_code in {200, 401}
    return response.status_code == 200


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


@pytest.mark.threat("T-099")
@pytest.mark.both_databases
def test_a_rotated_secret_works_until_its_grace_period_ends(authserver: AuthServer, clock: FakeClock) -> None:
    client, old = authserver.create_client()
    new = rotate(authserver, client, grace_period=7 * DAY)
    assert accepted(authserver, client, old)
    clock.advance(7 * DAY - 2)
    assert accepted(authserver, client, old)
    # The client is cached; expiry applies to cached secrets too.
    clock.advance(1)
    assert not accepted(authserver, client, old)
    assert accepted(authserver, client, new)


@pytest.mark.threat("T-102")
def test_without_a_grace_period_old_secrets_are_revoked_at_once(authserver: AuthServer, clock: FakeClock) -> None:
    client, first = authserver.create_client()
    second = rotate(authserver, client, grace_period=DAY)
    behind = create_services(authserver.settings, lambda: clock() - 3600, monotonic=clock)
    for secret in (first, second):
        authenticate(behind, client.client_id, secret)
    third = rotate(authserver, client)
    for secret in (first, second):
        assert not accepted(authserver, client, secret)
        with pytest.raises(OAuthError):
            authenticate(behind, client.client_id, secret)
    authenticate(behind, client.client_id, third)
    behind.audit.close()
    behind.database.close()


@pytest.mark.both_databases
def test_a_third_active_secret_is_refused(authserver: AuthServer) -> None:
    client, first = authserver.create_client()
    second = rotate(authserver, client, grace_period=DAY)
    with pytest.raises(
        CommandRefused, match=f"authserver client secret revoke {client.client_id} SECRET_ID"
    ) as refused:
        rotate(authserver, client, grace_period=DAY)
    assert accepted(authserver, client, first)
    assert accepted(authserver, client, second)
    oldest = listed(authserver, client)[0]
    assert oldest.secret_id in str(refused.value)
    expire(authserver, client, oldest.secret_id)
    third = rotate(authserver, client, grace_period=DAY)
    assert [accepted(authserver, client, secret) for secret in (first, second, third)] == [False, True, True]


@pytest.mark.threat("T-099")
def test_a_rotation_does_not_extend_an_old_secret(authserver: AuthServer, clock: FakeClock) -> None:
    client, first = authserver.create_client()
    rotate(authserver, client, grace_period=60)
    expire(authserver, client, listed(authserver, client)[1].prefix)
    rotate(authserver, client, grace_period=DAY)
    assert accepted(authserver, client, first)
    clock.advance(60)
    assert not accepted(authserver, client, first)


@pytest.mark.threat("T-104")
def test_an_inactive_secret_is_refused_like_a_wrong_one(authserver: AuthServer, clock: FakeClock) -> None:
    client, ended = authserver.create_client()
    expired = rotate(authserver, client)
    assert accepted(authserver, client, expired)
    ended_at, expires_at = int(clock()) - 1, int(clock()) + 60
    good = rotate(authserver, client, grace_period=60)
    clock.advance(60)
    ids = [known.secret_id for known in listed(authserver, client)]
    answers = set()
    for secret, reason in (
        ("gths_wrong", "wrong secret"),
        (ended, f"the secret {ids[0]} was revoked at {iso(ended_at)}"),
        (expired, f"the secret {ids[1]} expired at {iso(expires_at)}"),
    ):
        response = authserver.post_token(basic=(client.client_id, secret))
        assert_invalid_client(response)
        answers.add(response.text.replace(response.headers["X-Request-Id"], ""))
        [row] = authserver.audit(request_id=response.headers["X-Request-Id"])
        assert row["reason"] == reason
        assert f"authserver client secret list {client.client_id}" in row["detail"]["remediation"]
        assert f"secret rotate {client.client_id}" not in row["detail"]["remediation"]
    assert len(answers) == 1
    assert accepted(authserver, client, good)


@pytest.mark.both_databases
def test_the_only_active_secret_cannot_be_revoked(authserver: AuthServer, clock: FakeClock) -> None:
    client, secret = authserver.create_client()
    [only] = listed(authserver, client)
    with pytest.raises(CommandRefused, match="the only active secret") as refused:
        expire(authserver, client, only.secret_id)
    assert f"authserver client secret rotate {client.client_id}" in str(refused.value)
    assert f"authserver client disable {client.client_id}" in str(refused.value)
    assert accepted(authserver, client, secret)
    rotate(authserver, client, grace_period=60)
    clock.advance(60)
    with pytest.raises(CommandRefused, match="the only active secret"):
        expire(authserver, client, listed(authserver, client)[1].secret_id)


@pytest.mark.both_databases
def test_revoking_a_secret_again_does_nothing(authserver: AuthServer) -> None:
    client, old = authserver.create_client()
    rotate(authserver, client, grace_period=DAY)
    for _ in range(2):
        expire(authserver, client, listed(authserver, client)[0].prefix)
    assert not accepted(authserver, client, old)
    assert [row["action"] for row in authserver.audit()].count("client.secret.revoke") == 1


def test_an_unknown_secret_is_not_revoked_or_repeated(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    other, _ = authserver.create_client()
    rotate(authserver, client, grace_period=DAY)
    for which in (listed(authserver, other)[0].secret_id, secret, "gths_"):
        with pytest.raises(CommandRefused, match="That names no secret of the client") as refused:
            expire(authserver, client, which)
        assert which not in str(refused.value)
    with authserver.services.database.write() as session:
        for row in session.scalars(select(ClientSecretRow).where(ClientSecretRow.client_id == client.client_id)):
            row.prefix = "gths_aaaa"
    with pytest.raises(CommandRefused, match="several secrets"):
        expire(authserver, client, "gths_aaaa")
    expire(authserver, client, listed(authserver, client)[0].secret_id)
    assert not accepted(authserver, client, secret)


@pytest.mark.parametrize("grace_period", [-1, MAX_GRACE_PERIOD + 1])
def test_the_grace_period_of_a_secret_is_bounded(authserver: AuthServer, grace_period: int) -> None:
    client, _ = authserver.create_client()
    rotate(authserver, client, MAX_GRACE_PERIOD)
    with pytest.raises(CommandRefused, match="at most 90 days"):
        rotate(authserver, client, grace_period)


def test_a_client_whose_last_secret_expired_can_get_another(authserver: AuthServer, clock: FakeClock) -> None:
    client, _ = authserver.create_client()
    rotate(authserver, client, grace_period=60)
    expire(authserver, client, listed(authserver, client)[1].secret_id)

    def in_the_way() -> list[str]:
        with authserver.services.database.read() as session:
            registered = existing_client(session, client.client_id).as_of(clock())
        return [obstacle.reason for obstacle in obstacles(registered)]

    assert in_the_way() == []
    clock.advance(60)
    assert in_the_way() == ["the client has no secret"]
    assert accepted(authserver, client, rotate(authserver, client, grace_period=DAY))


@pytest.mark.threat("T-104")
def test_the_work_does_not_depend_on_the_number_of_secrets(authserver: AuthServer, clock: FakeClock) -> None:
    """Timing must not reveal whether a client exists or is in a grace period."""

    def cost(client_id: str, secret: str) -> tuple[int, int]:
        return count_digests_and_comparisons(
            authserver, lambda: assert_invalid_client(authserver.post_token(basic=(client_id, secret)))
        )

    client, old = authserver.create_client()
    costs = {cost("agent_unknown", old), cost(client.client_id, "gths_wrong")}
    rotate(authserver, client, grace_period=60)
    assert accepted(authserver, client, old)
    costs |= {cost(client.client_id, "gths_wrong")}
    clock.advance(60)
    costs |= {cost(client.client_id, "gths_wrong"), cost(client.client_id, old)}
    rotate(authserver, client)
    rotate(authserver, client)
    costs |= {cost(client.client_id, "gths_wrong"), cost(client.client_id, old)}
    assert costs == {(1, EXAMINED)}


STEPS = st.lists(
    st.tuples(st.sampled_from(["soft", "hard", "expire", "wait"]), st.integers(1, 200), st.integers(0, 9)), max_size=9
)


@pytest.mark.threat("T-101")
@pytest.mark.both_databases
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_a_secret_works_until_it_expires_and_at_most_two_do(
    authserver: AuthServer, steps: list[tuple[str, int, int]]
) -> None:
    clock, (client, first) = authserver.clock, authserver.create_client()
    ends: dict[str, float] = {first: float("inf")}

    def live() -> list[str]:
        return [secret for secret, end in ends.items() if clock() < end]

    def step(kind: str, seconds: int, which: int) -> None:
        before, now = live(), clock()
        if kind == "wait":
            clock.advance(seconds)
        elif kind == "expire":
            chosen = list(ends)[which % len(ends)]
            expire(authserver, client, chosen[:9])
            ends[chosen] = min(ends[chosen], now)
        else:
            grace_period = seconds if kind == "soft" else 0
            new = rotate(authserver, client, grace_period)
            ends.update({secret: min(ends[secret], now + grace_period) for secret in before})
            ends[new] = float("inf")

    for kind, seconds, which in steps:
        before = live()
        refused = _is_refused(lambda step=step, arguments=(kind, seconds, which): step(*arguments))
        if kind == "soft":
            assert refused == (len(before) == MAX_ACTIVE)
        if kind in {"hard", "wait"}:
            assert not refused
        assert [secret for secret in ends if _authenticates(authserver, client, secret)] == live()
        assert len(live()) <= MAX_ACTIVE
    with authserver.services.database.read() as session:
        kept = select(func.count()).where(ClientSecretRow.client_id == client.client_id)
        assert session.scalar(kept) <= EXAMINED


def _is_refused(action: Callable[[], Any]) -> bool:
    try:
        action()
    except CommandRefused:
        return True
    return False


def _authenticates(server: AuthServer, client: Client, secret: str) -> bool:
    try:
        authenticate(server.services, client.client_id, secret)
    except OAuthError:
        return False
    return True


def test_a_secret_is_rotated_listed_and_revoked_by_command(shell: Shell) -> None:
    created = shell.json(*CREATE)
    client_id = created["client_id"]
    rotated = shell.run("client", "secret", "rotate", client_id, "--grace-period", "7d")
    assert rotated.exit_code == 0
    old, new = shell.json("client", "secret", "list", client_id)
    assert f"{old['prefix']} is accepted until {old['expires_at']}." in rotated.stderr
    assert "Takes effect" not in rotated.stderr
    assert (old["state"], new["state"], new["expires_at"], new["last_used_at"]) == ("active", "active", None, None)
    assert created["client_secret"].startswith(old["prefix"])
    refusal = shell.refusal("client", "secret", "revoke", client_id, old["secret_id"])
    assert "Repeat the command with --yes" in refusal
    left = shell.json("client", "secret", "revoke", client_id, old["prefix"], "--yes")
    assert [known["state"] for known in left] == ["inactive", "active"]
    event = shell.json("audit", "--action", "client.secret.rotate")[0]
    assert event["detail"] == {"secret_id": new["secret_id"], "replaced": [old["secret_id"]], "grace_period": 7 * DAY}
    [ended] = shell.json("audit", "--action", "client.secret.revoke")
    assert ended["detail"] == {"secret_id": old["secret_id"]}


@pytest.mark.parametrize("grace_period", ["0s", "91d", "7", "7w", "-1d", "1.5d", "7 d", "", "9999999s", "\u0667d"])
def test_a_grace_period_is_between_a_second_and_90_days(shell: Shell, grace_period: str) -> None:
    client_id = shell.json(*CREATE)["client_id"]
    rotate = ("client", "secret", "rotate", client_id, f"--grace-period={grace_period}")
    assert "write 90s, 15m, 12h or 7d: at least 1s, at most 90d" in shell.refusal(*rotate, code=2)
    shell.text(*rotate[:-1], "--grace-period=90d")
