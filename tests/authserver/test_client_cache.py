"""Clients that several requests wait for are read in groups."""

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from support.authserver import AuthServer
from support.clock import FakeClock
from support.http_client import run

from gatehouse.authserver.clients import cache
from gatehouse.authserver.clients.cache import MAX_GROUP, ClientCache
from gatehouse.authserver.clients.registration import set_disabled
from gatehouse.authserver.clients.registry import Client, find_clients
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.http import DeadlineExceeded
from gatehouse.shared.service import deadline

Find = Callable[[Database, Sequence[str]], dict[str, Client | None]]
Groups = list[Sequence[str]]


@pytest.fixture
def clients(authserver: AuthServer, clock: FakeClock) -> ClientCache:
    return ClientCache(authserver.services.database, monotonic=clock)


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Groups:
    """Every group that is read."""
    read: Groups = []
    replace_find(monkeypatch, read, find_clients)
    return read


def replace_find(monkeypatch: pytest.MonkeyPatch, groups: Groups, find: Find) -> None:
    def note(database: Database, client_ids: Sequence[str]) -> dict[str, Client | None]:
        groups.append(client_ids)
        return find(database, client_ids)

    monkeypatch.setattr(cache, "find_clients", note)


async def get_all(clients: ClientCache, client_ids: Sequence[str]) -> list[Any]:
    return await asyncio.gather(*(clients.get_async(one, None) for one in client_ids), return_exceptions=True)


@pytest.mark.both_databases
def test_clients_that_requests_wait_for_are_read_together(
    authserver: AuthServer, clients: ClientCache, groups: Groups
) -> None:
    first, second = (authserver.create_client()[0] for _ in range(2))
    ids = [first.client_id, "agent_unknown", second.client_id, first.client_id]
    expected = [first, None, second, first]
    assert run(get_all(clients, ids)) == expected
    assert groups == [ids[:3]]
    assert run(get_all(clients, ids)) == expected
    assert [clients.get_and_wait(one) for one in ids] == expected
    assert len(groups) == 1


def test_a_change_takes_effect_within_a_second(authserver: AuthServer, clients: ClientCache, clock: FakeClock) -> None:
    client = authserver.create_client()[0]
    assert run(get_all(clients, [client.client_id])) == [client]
    with authserver.services.database.write() as session:
        set_disabled(session, authserver.admin, client.client_id, disabled=True)
    assert run(get_all(clients, [client.client_id])) == [client]
    clock.advance(1)
    [changed] = run(get_all(clients, [client.client_id]))
    assert changed.disabled


def test_a_group_has_at_most_64_clients(clients: ClientCache, groups: Groups) -> None:
    assert run(get_all(clients, [f"agent_{number}" for number in range(MAX_GROUP + 1)])) == [None] * 65
    assert [len(group) for group in groups] == [64, 1]


class Gate:
    """Reads unknown clients when the test lets it."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()

    def __call__(self, _: Database, client_ids: Sequence[str]) -> dict[str, Client | None]:
        self.reached.set()
        assert self.open.wait(10)
        return dict.fromkeys(client_ids)


async def while_reading(clients: ClientCache, gate: Gate, ask: Callable[[], Awaitable[Any]]) -> Any:
    """Ask for something while a client is being read."""
    reading = asyncio.ensure_future(clients.get_async("agent_a", None))
    await asyncio.to_thread(gate.reached.wait, 10)
    try:
        return await ask()
    finally:
        gate.open.set()
        assert await reading is None


@pytest.mark.parametrize(
    ("client_ids", "read"), [(["agent_a"], []), (["agent_b", "agent_a"], [["agent_b"]])], ids=["alone", "in a group"]
)
def test_a_client_that_was_read_while_it_waited_is_not_read_again(
    clients: ClientCache, monkeypatch: pytest.MonkeyPatch, client_ids: list[str], read: Groups
) -> None:
    groups: Groups = []
    replace_find(monkeypatch, groups, gate := Gate())

    async def ask() -> Any:
        waiting = asyncio.ensure_future(get_all(clients, client_ids))
        # One turn of the loop for it, one for the requests that it makes, and one to spare.
        for _ in range(3):
            await asyncio.sleep(0)
        return waiting

    async def both() -> None:
        assert await (await while_reading(clients, gate, ask)) == [None] * len(client_ids)

    run(both())
    assert groups == [["agent_a"], *read]


def test_a_request_does_not_wait_beyond_its_deadline(clients: ClientCache, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_find(monkeypatch, [], gate := Gate())

    async def ask() -> None:
        with deadline.renewed(0), pytest.raises(DeadlineExceeded):
            await clients.get_async("agent_a", None)
        with deadline.renewed(0), pytest.raises(DeadlineExceeded):
            await clients.get_async("agent_b", None)

    run(while_reading(clients, gate, ask))


def test_the_number_of_clients_that_wait_is_limited(clients: ClientCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the database hangs, a client that connects and gives up again and again must not fill the memory."""
    groups: Groups = []
    replace_find(monkeypatch, groups, gate := Gate())
    monkeypatch.setattr(cache, "MAX_WAITING", 2)

    async def ask() -> None:
        for client_id in ("agent_b", "agent_c"):
            with deadline.renewed(0), pytest.raises(DeadlineExceeded):
                await clients.get_async(client_id, None)
        with pytest.raises(DeadlineExceeded):
            await clients.get_async("agent_d", None)

    run(while_reading(clients, gate, ask))
    assert run(clients.get_async("agent_d", None)) is None
    assert groups == [["agent_a"], ["agent_b", "agent_c"], ["agent_d"]]


def test_a_client_that_cannot_be_read_fails_only_its_own_request(
    clients: ClientCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(_: Database, client_ids: Sequence[str]) -> dict[str, Client | None]:
        if "agent_corrupt" in client_ids:
            raise ValueError("not JSON")
        return dict.fromkeys(client_ids)

    replace_find(monkeypatch, [], find)
    first, corrupt, last = run(get_all(clients, ["agent_a", "agent_corrupt", "agent_b"]))
    assert (first, str(corrupt), last) == (None, "not JSON", None)


def test_an_outage_fails_a_whole_group_at_once(
    clients: ClientCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> dict[str, Client | None]:
        raise OperationalError("SELECT", None, Exception("gone"))

    groups: Groups = []
    replace_find(monkeypatch, groups, fail)

    async def give_up() -> None:
        with deadline.renewed(0), pytest.raises(DeadlineExceeded):
            await clients.get_async("agent_c", None)
        assert all(isinstance(error, OperationalError) for error in await get_all(clients, ["agent_a", "agent_b"]))

    run(give_up())
    gc.collect()
    assert groups == [["agent_c"], ["agent_a", "agent_b"]]
    assert caplog.text == ""
