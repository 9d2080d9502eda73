"""Status list indices: one for each token, reserved in blocks for a client, and void when it is disabled."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import event, func, select
from support.authserver import AuthServer
from support.clock import FakeClock
from support.http_client import run
from support.status_lists import Indices, bit, change_client, indices_of, paused_at_a_statement

from gatehouse.authserver.clients.registration import delete_client, set_disabled
from gatehouse.authserver.clients.registry import Client, lock_client
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.group_commit import GroupCommit
from gatehouse.authserver.db.models import StatusBlockRow
from gatehouse.authserver.errors import OAuthError
from gatehouse.authserver.tokens.issue import MIN_BLOCK, Index, StatusIndexAllocator, parse_jti
from gatehouse.authserver.tokens.reservations import BLOCK_LIFETIME, MAX_BLOCK, Block
from gatehouse.authserver.tokens.status_lists import load_bits
from gatehouse.shared.protocol.status_list import is_set
from gatehouse.shared.service import deadline

pytestmark = pytest.mark.both_databases


def count_writes(server: AuthServer, action: Callable[[], Any]) -> int:
    """Return how many statements of an action change status lists."""
    statements: list[str] = []

    def remember(*arguments: Any) -> None:
        statements.append(arguments[2])

    event.listen(server.services.database.engine, "before_cursor_execute", remember)
    try:
        action()
    finally:
        event.remove(server.services.database.engine, "before_cursor_execute", remember)
    return sum(statement.startswith(("INSERT INTO status", "UPDATE status")) for statement in statements)


def test_no_two_tokens_of_any_client_or_process_share_an_index(authserver: AuthServer) -> None:
    clients = [authserver.create_client()[0] for _ in range(3)]
    processes = [indices_of(authserver) for _ in range(2)]
    taken = [
        process.allocate(client, authserver.clock()) for client in clients for process in processes for _ in range(40)
    ]
    assert len(set(taken)) == len(taken) == 240


def test_concurrent_requests_of_several_processes_share_no_index(authserver: AuthServer) -> None:
    clients = [authserver.create_client()[0] for _ in range(5)]
    start = threading.Barrier(2)

    async def allocate_all(indices: StatusIndexAllocator) -> list[Index]:
        now = authserver.clock()
        return await asyncio.gather(*(indices.allocate(client, now) for _ in range(40) for client in clients))

    def process(_: int) -> list[Index]:
        with (
            Database(authserver.settings.database) as database,
            closing(StatusIndexAllocator(database, authserver.clock)) as indices,
        ):
            start.wait()
            return asyncio.run(allocate_all(indices))

    with ThreadPoolExecutor(2) as pool:
        taken = [index for indices in pool.map(process, range(2)) for index in indices]
    assert len(set(taken)) == len(taken) == 400


@pytest.mark.only_on("postgresql")
def test_a_locked_client_delays_no_other(authserver: AuthServer) -> None:
    """An admin's transaction may last long."""
    locked, other = authserver.create_client()[0], authserver.create_client()[0]
    indices, now = indices_of(authserver), authserver.clock()
    taken: list[Index] = []
    waiting = threading.Thread(target=lambda: taken.append(indices.allocate(locked, now)))
    with authserver.services.database.write() as session:
        lock_client(session, locked.client_id)
        waiting.start()
        for _ in range(3):
            indices_of(authserver).allocate(other, now)
            indices.allocate(other, now)
        assert taken == []
        with deadline.renewed(0), pytest.raises(deadline.DeadlineExceeded):
            indices.allocate(locked, now)
    waiting.join()
    assert taken


@pytest.mark.threat("T-071")
def test_disabling_clients_under_load_leaves_no_active_token(authserver: AuthServer) -> None:
    """Two processes and the admins lock clients and lists in one order, so that there is no deadlock."""
    clients = [authserver.create_client()[0] for _ in range(8)]
    processes = [indices_of(authserver).allocator for _ in range(2)]
    issued: list[Index] = []

    async def issue(indices: StatusIndexAllocator, client: Client) -> None:
        for _ in range(5 * MIN_BLOCK):
            try:
                issued.append(await indices.allocate(client, authserver.clock()))
            except OAuthError:
                return

    async def issue_all() -> None:
        await asyncio.gather(*(issue(indices, client) for indices in processes for client in clients))

    def disable(client: Client) -> None:
        change_client(authserver, client, disabled=True)

    with ThreadPoolExecutor(5) as pool:
        issuing = pool.submit(run, issue_all())
        list(pool.map(disable, clients[::-1]))
        issuing.result()
    with authserver.services.database.read() as session:
        bits = {list_id: load_bits(session, list_id) for list_id in {index.list_id for index in issued}}
    assert all(is_set(bits[index.list_id], index.idx) for index in issued)


@pytest.mark.divergence("D-34")
def test_issuing_writes_once_for_a_block_of_tokens(authserver: AuthServer) -> None:
    client, _ = authserver.create_client()
    indices = indices_of(authserver)
    indices.allocate(client, authserver.clock())
    assert (
        count_writes(authserver, lambda: [indices.allocate(client, authserver.clock()) for _ in range(MIN_BLOCK - 1)])
        == 0
    )
    assert count_writes(authserver, lambda: indices.allocate(client, authserver.clock())) > 0
    with authserver.services.database.read() as session:
        sizes = list(session.scalars(select(StatusBlockRow.size).order_by(StatusBlockRow.start)))
    assert sizes == [MIN_BLOCK, 2 * MIN_BLOCK]


def test_a_busy_client_gets_larger_blocks_up_to_the_maximum(authserver: AuthServer) -> None:
    client, _ = authserver.create_client()
    indices = indices_of(authserver)
    for _ in range(4 * MAX_BLOCK):
        indices.allocate(client, authserver.clock())
    with authserver.services.database.read() as session:
        sizes = list(session.scalars(select(StatusBlockRow.size).order_by(StatusBlockRow.start)))
    assert sizes[0] == MIN_BLOCK
    assert set(sizes[-2:]) == {MAX_BLOCK}
    # 4 doubled eight times is 1024.
    assert len(sizes) < 14


def test_a_block_is_used_for_an_hour_and_no_longer(authserver: AuthServer, clock: FakeClock) -> None:
    client, _ = authserver.create_client()
    indices = indices_of(authserver)
    first = indices.allocate(client, authserver.clock())
    clock.advance(BLOCK_LIFETIME - 1)
    assert indices.allocate(client, authserver.clock()) == Index(first.list_id, first.idx + 1)
    clock.advance(1)
    assert indices.allocate(client, authserver.clock()) == Index(first.list_id, first.idx + MIN_BLOCK)


def test_a_request_that_gives_up_leaves_its_block_to_the_others(authserver: AuthServer) -> None:
    client, _ = authserver.create_client()
    indices, now = indices_of(authserver), authserver.clock()
    taken: list[Index] = []
    with paused_at_a_statement(authserver, lambda: taken.append(indices.allocate(client, now))):
        with deadline.renewed(0), pytest.raises(deadline.DeadlineExceeded):
            indices.allocate(client, now)
        waiting = threading.Thread(target=lambda: taken.append(indices.allocate(client, now)))
        waiting.start()
    waiting.join()
    assert sorted(index.idx for index in taken) == [0, 1]


def test_threads_that_wait_for_a_block_share_one(authserver: AuthServer) -> None:
    client, _ = authserver.create_client()
    indices, taken = indices_of(authserver), []
    threads = [
        threading.Thread(target=lambda: taken.append(indices.allocate(client, authserver.clock())))
        for _ in range(MIN_BLOCK)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(index.idx for index in taken) == list(range(MIN_BLOCK))
    with authserver.services.database.read() as session:
        assert session.scalar(select(func.count()).select_from(StatusBlockRow)) == 1


def test_a_request_between_a_reservation_and_its_waiters_waits_too(
    authserver: AuthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its step of the event loop was scheduled first. If it found the reservation done, it would ask forever."""
    client, _ = authserver.create_client()
    allocator, now = indices_of(authserver).allocator, authserver.clock()

    async def allocate_between() -> list[Index]:
        reserved: asyncio.Future[Block | None] = asyncio.get_running_loop().create_future()
        monkeypatch.setattr(GroupCommit, "submit", lambda *_: reserved)
        waiting = asyncio.create_task(allocator.allocate(client, now))
        for _ in range(3):
            await asyncio.sleep(0)
        between = asyncio.create_task(allocator.allocate(client, now))
        reserved.set_result(Block("0" * 12, 0, MIN_BLOCK, client.token_epoch, int(now) + 60))
        return [await waiting, await between]

    assert sorted(index.idx for index in run(allocate_between())) == [0, 1]


def test_the_number_of_clients_with_blocks_in_memory_is_limited(authserver: AuthServer) -> None:
    indices = Indices(authserver, clients=1)
    first, second = (authserver.create_client()[0] for _ in range(2))
    taken = [indices.allocate(client, authserver.clock()) for client in (first, first, second, first)]
    assert [index.idx for index in taken] == [0, 1, MIN_BLOCK, 2 * MIN_BLOCK]


@pytest.mark.divergence("D-34")
def test_disabling_a_client_sets_its_bits_and_no_others(authserver: AuthServer) -> None:
    client, other = authserver.create_client()[0], authserver.create_client()[0]
    indices = indices_of(authserver)
    own = [indices.allocate(client, authserver.clock()) for _ in range(2 * MIN_BLOCK)]
    others = [indices.allocate(other, authserver.clock()) for _ in range(2 * MIN_BLOCK)]
    assert not any(bit(authserver, index) for index in own + others)
    change_client(authserver, client, disabled=True)
    assert all(bit(authserver, index) for index in own)
    assert not any(bit(authserver, index) for index in others)


@pytest.mark.threat("T-071")
def test_a_token_from_a_block_held_before_disabling_is_revoked(authserver: AuthServer) -> None:
    """A process with a cached client issues tokens for up to a second, each with its bit set."""
    client, _ = authserver.create_client()
    indices = indices_of(authserver)
    assert not bit(authserver, indices.allocate(client, authserver.clock()))
    change_client(authserver, client, disabled=True)
    assert bit(authserver, indices.allocate(client, authserver.clock()))


def test_enabling_a_client_restores_no_token_and_voids_held_blocks(authserver: AuthServer) -> None:
    client, _ = authserver.create_client()
    indices = indices_of(authserver)
    before = indices.allocate(client, authserver.clock())
    change_client(authserver, client, disabled=True)
    enabled = change_client(authserver, client, disabled=False)
    assert enabled.token_epoch == client.token_epoch + 2
    after = indices.allocate(enabled, authserver.clock())
    assert (bit(authserver, before), bit(authserver, after)) == (True, False)
    assert indices.allocate(client, authserver.clock()).idx == after.idx + 1, (
        "a stale cached client voids no newer block"
    )


@pytest.mark.threat("T-071")
@pytest.mark.parametrize("end", ["disable", "delete"])
def test_no_block_is_reserved_for_a_disabled_or_deleted_client(authserver: AuthServer, end: str) -> None:
    """The race between authentication and issuance: the reservation reads the current state, not the cached client."""
    client, _ = authserver.create_client()
    held = indices_of(authserver).allocate(client, authserver.clock())
    with authserver.services.database.write() as session:
        if end == "disable":
            set_disabled(session, authserver.admin, client.client_id, disabled=True)
        else:
            delete_client(session, authserver.admin, client.client_id)
    with pytest.raises(OAuthError) as refusal:
        indices_of(authserver).allocate(client, authserver.clock())
    assert refusal.value.error == "invalid_client"
    assert bit(authserver, held)


@pytest.mark.threat("T-071")
def test_a_reservation_and_a_concurrent_disabling_leave_no_active_token(authserver: AuthServer) -> None:
    """Either the block exists when the tokens are revoked, or the reservation sees that the client is disabled."""
    for _ in range(8):
        client, _ = authserver.create_client()
        taken: list[Index] = []
        start = threading.Barrier(2)

        def reserve(client: Client = client, taken: list[Index] = taken, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                taken.append(indices_of(authserver).allocate(client, authserver.clock()))
            except OAuthError:
                return

        thread = threading.Thread(target=reserve)
        thread.start()
        start.wait()
        change_client(authserver, client, disabled=True)
        thread.join()
        assert all(bit(authserver, index) for index in taken)


def test_a_jti_carries_its_list_and_index(authserver: AuthServer) -> None:
    index = Index("0123456789ab", 70_000)
    assert parse_jti(index.new_jti()) == index
    assert index.new_jti() != index.new_jti()
    for jti in ("", "a", "0123456789ab.1", f"0123456789ab.01.{'a' * 22}", f"0123456789AB.1.{'a' * 22}"):
        assert parse_jti(jti) is None
