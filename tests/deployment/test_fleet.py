"""Two nodes of each server behind nginx act as one: on one PostgreSQL server, with limits on one Redis server.

All tests use one fleet. They may run in any order, and each leaves it running.
"""

import asyncio
import re
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from sqlalchemy import make_url
from support.assertions import ASSERTION_TYPE
from support.fleet import FAILURES_PER_MINUTE as FAILURES
from support.fleet import SERVERS, Fleet, Node, running_fleet
from support.fleet_requests import KINDS, call, call_everywhere, mcp_session, obtain, post_token, rotate_key, under_load
from support.fleet_tools import CALLS_PER_MINUTE as CALLS
from support.migrations import with_next_revision
from support.nginx import NGINX
from support.redis_server import SERVER as REDIS
from support.waiting import wait_until

from gatehouse.authserver.db.database import Database as AuthServerDatabase
from gatehouse.resourceserver.db.database import Database as ResourceServerDatabase
from gatehouse.shared.protocol.clock import LEEWAY
from gatehouse.shared.service.migrations import upgrade

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(NGINX is None, reason="needs nginx"),
    pytest.mark.skipif(REDIS is None, reason="needs redis-server or valkey-server"),
]

Record = Callable[[str, object], None]

RATE = 20.0
"""Token requests per second, and calls per second."""

ENOUGH = 60
"""Successes of each kind before and after an event."""

RECOVERY = 2.0
"""Seconds from the moment when PostgreSQL accepts connections to the first success."""

ATTEMPTS = 5
"""With a limit. On a busy machine, Redis may take longer than 50 ms."""

CLEAR = r': (503 \{"error":"temporarily_unavailable"|(200|503) \{"jsonrpc":"2.0","id":1,.*Try again in a few seconds)'
"""How a failure of the load looks whose error says that the client may try again."""

EXPANSION = """
    op.create_table("added", sa.Column("id", sa.Integer(), primary_key=True))
    op.add_column("{table}", sa.Column("added", sa.Integer(), nullable=False, server_default="7"))
    op.add_column("audit_event", sa.Column("added", sa.Integer(), nullable=True))
"""
"""A revision of the next version."""

REFUSALS = 12
"""Consecutive refusals after which every worker of a node has answered."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running_fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        yield fleet
    logs = fleet.logs()
    assert "Traceback" not in logs, logs
    assert "status=500" not in logs, logs


@pytest.fixture(scope="module")
def clients(fleet: Fleet) -> list[dict[str, Any]]:
    """Clients for a load: most with a secret, some with a key."""
    by_secret = [fleet.first.create_client(f"secret-{number}", "env:read") for number in range(4)]
    by_key = [
        fleet.first.create_client(f"key-{number}", "env:read", "--generate-key", f"key-{number}.pem")
        for number in range(2)
    ]
    return by_secret + by_key


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    """For requests to single nodes."""
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as client:
        yield client


async def test_an_assertion_is_spent_for_all_nodes(fleet: Fleet, http: httpx2.AsyncClient) -> None:
    first, second = fleet.nodes
    client = first.create_client("spender", "env:read", "--generate-key", "spender.pem")
    key = (first.folder / "spender.pem").read_text(encoding="ascii")

    async def send(node: Node, assertion: str) -> int:
        form = {"client_assertion_type": ASSERTION_TYPE, "client_assertion": assertion}
        return (await post_token(http, node, client, **form)).status_code

    def create_assertion() -> str:
        now, client_id = int(time.time()), client["client_id"]
        claims = {"iss": client_id, "sub": client_id, "aud": first.issuer, "iat": now, "exp": now + 60}
        return jwt.encode({**claims, "jti": uuid.uuid4().hex}, key, algorithm="ES256")

    assert await send(second, create_assertion()) == 200
    spent = create_assertion()
    assert await send(first, spent) == 200
    before = fleet.total("authserver", "gatehouse_replay_rejections_total")
    assert [await send(node, spent) for node in fleet.nodes for _ in range(4)] == [401] * 8
    assert fleet.total("authserver", "gatehouse_replay_rejections_total") == before + 8


@pytest.fixture(scope="module")
def short_lived(fleet: Fleet) -> list[str]:
    """Rotate the signing key, and return tokens of the old one that expire soon."""
    return asyncio.run(rotate_key(fleet))


def test_tokens_are_accepted_everywhere_while_a_key_is_rotated(short_lived: list[str]) -> None:
    assert short_lived


@pytest.mark.parametrize("what", ["token", "client"])
async def test_a_revocation_at_one_node_is_in_force_at_both(
    fleet: Fleet, http: httpx2.AsyncClient, what: str, record_property: Record
) -> None:
    first, second = fleet.nodes
    client = first.create_client(f"revoked-{what}", "env:read")
    token = await obtain(http, second, client)
    assert await call_everywhere(http, fleet, [token]) == {200}
    if what == "token":
        pair = client["client_id"], client["client_secret"]
        answer = await http.post(f"{first.url('authserver')}/revoke", data={"token": token}, auth=pair)
        assert answer.status_code == 200
    else:
        await asyncio.to_thread(first.run, "authserver", "client", "disable", client["client_id"])
    revoked = time.monotonic()
    accepted = revoked
    for node in fleet.nodes:
        refusals = 0
        while refusals < REFUSALS:
            refusals = refusals + 1 if await call(http, node, token) == 401 else 0
            accepted = accepted if refusals else time.monotonic()
            assert time.monotonic() < revoked + 30, f"{node.address} still accepts the token"
    record_property("figures", f"{what} revoked: last accepted after {accepted - revoked:.1f} s")
    if what == "client":
        assert [(await post_token(http, node, client)).status_code for node in fleet.nodes] == [401, 401]


async def test_the_nodes_count_limits_together(fleet: Fleet, http: httpx2.AsyncClient) -> None:
    for attempt in range(ATTEMPTS):
        client = fleet.first.create_client(f"limited-{attempt}", "env:read")
        wrong = {**client, "client_secret": "gths_wrong"}
        token = await obtain(http, fleet.first, client)
        before = fleet.fallbacks
        failures = Counter(
            [(await post_token(http, node, wrong)).status_code for _ in range(FAILURES) for node in fleet.nodes]
        )
        calls = Counter([await call(http, node, token, "limited") for _ in range(CALLS) for node in fleet.nodes])
        assert (await post_token(http, fleet.first, client)).status_code == 200
        if fleet.fallbacks == before:
            assert failures == {401: FAILURES, 429: FAILURES}
            assert calls == {200: CALLS, 429: CALLS}
            return
    pytest.fail("Redis took longer than 50 ms in each attempt")


@pytest.mark.parametrize("how", ["suspended", "stopped"])
async def test_each_process_counts_for_itself_while_redis_is_away(
    fleet: Fleet, http: httpx2.AsyncClient, how: str, record_property: Record
) -> None:
    client = fleet.first.create_client(f"without-redis-{how}", "env:read")
    wrong = {**client, "client_secret": "gths_wrong"}
    before = {(node.address, server): node.fallbacks(server) for node in fleet.nodes for server in SERVERS}
    with fleet.redis.suspended() if how == "suspended" else fleet.redis.stopped():
        refused = Counter(
            [(await post_token(http, node, wrong)).status_code for _ in range(40) for node in fleet.nodes]
        )
        tokens = [await obtain(http, node, client) for _ in range(10) for node in fleet.nodes]
        assert await call_everywhere(http, fleet, tokens) == {200}
        increased = [
            node.fallbacks(server) > before[node.address, server] for node in fleet.nodes for server in SERVERS
        ]
    record_property(
        "figures",
        f"Redis {how}: wrong secrets {dict(refused)}, {len(tokens)} tokens and {2 * len(tokens)} calls succeeded",
    )
    assert increased == [True] * 4
    assert set(refused) == {401, 429}
    # The share of each of four workers is half of the limit of a node.
    assert refused[401] <= 2 * FAILURES


async def test_a_rolling_restart_under_load_fails_no_request(
    fleet: Fleet, clients: list[dict[str, Any]], record_property: Record
) -> None:
    session = fleet.first.create_client("session", "env:read")
    started = time.monotonic()
    async with under_load(fleet, clients, RATE) as watch, mcp_session(fleet, session) as results:
        await watch.wait_for(ENOUGH)
        before = fleet.processes
        for node in fleet.nodes:
            await asyncio.to_thread(node.restart)
        assert before.keys().isdisjoint(fleet.processes)
        await watch.wait_for(ENOUGH)
    seconds = time.monotonic() - started
    record_property(
        "figures", f"rolling restart, {seconds:.1f} s: {watch.load.tally.line()}; a session: {dict(Counter(results))}"
    )
    assert watch.failures == []
    assert set(results) == {"called"}


async def test_servers_survive_a_restart_of_postgresql_under_load(
    fleet: Fleet, clients: list[dict[str, Any]], record_property: Record
) -> None:
    processes = fleet.processes
    async with under_load(fleet, clients, RATE) as watch:
        await watch.wait_for(ENOUGH)
        await asyncio.to_thread(fleet.postgresql.stop)
        stopped = time.monotonic()
        await watch.wait_for(ENOUGH, succeeded=False)
        starting = asyncio.create_task(asyncio.to_thread(fleet.postgresql.start))
        await asyncio.to_thread(wait_until, fleet.postgresql.accepts_connections)
        accepts = time.monotonic()
        await starting
        await watch.wait_for(ENOUGH)
    first = {kind: watch.times(kind, accepts)[0] - accepts for kind in KINDS}
    failed = [at for kind in KINDS for at in watch.times(kind, stopped, succeeded=False)]
    record_property(
        "figures",
        f"PostgreSQL away for {accepts - stopped:.1f} s, then first token after {first['token']:.2f} s, first call "
        f"after {first['call']:.2f} s, last failure after {max(failed) - accepts:.2f} s: {watch.load.tally.line()}",
    )
    assert max(first.values()) <= RECOVERY
    assert [failure for failure in watch.failures if re.search(CLEAR, failure) is None] == []
    assert fleet.processes == processes


async def test_a_node_of_the_old_version_starts_on_the_schema_of_the_next(
    fleet: Fleet, http: httpx2.AsyncClient, clients: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The running nodes go on with it as well."""
    for database in (AuthServerDatabase, ResourceServerDatabase):
        url = make_url(fleet.first.settings[f"{database.schema.init_command.split()[0].upper()}_DATABASE_URL"])
        folder = tmp_path / database.schema.landmark
        upgrade(url, with_next_revision(database.schema, folder, EXPANSION.format(table=database.schema.landmark)))
    first, second = fleet.nodes
    await asyncio.to_thread(second.restart)
    tokens = [await obtain(http, node, client) for node in fleet.nodes for client in clients[:1]]
    assert await call_everywhere(http, fleet, tokens) == {200}
    for server in SERVERS:
        assert "the database has the schema of the next version" in second.log(server)
        assert "the database has the schema of the next version" not in first.log(server)


async def test_tokens_of_the_previous_key_end(fleet: Fleet, http: httpx2.AsyncClient, short_lived: list[str]) -> None:
    """Late in the file, because they are accepted for half a minute after `exp`, for clocks that differ."""
    for token in short_lived:
        end = jwt.decode(token, options={"verify_signature": False})["exp"] + LEEWAY
        await asyncio.sleep(max(0.0, end - time.time()))
    assert await call_everywhere(http, fleet, short_lived) == {401}


def test_the_audit_logs_of_all_nodes_are_complete(fleet: Fleet) -> None:
    """Also after restarts and the outage."""
    for server in SERVERS:
        fleet.first.run(server, "audit", "verify")
