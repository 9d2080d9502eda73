"""The group commit: rows of several requests in one transaction, each request with its own result."""

import asyncio
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from support.authserver import AuthServer
from support.clock import FakeClock
from support.http_client import run
from support.status_lists import paused_at_a_statement

from gatehouse.authserver.db.group_commit import MAX_GROUP, GroupCommit, Later
from gatehouse.authserver.db.models import LeaseRow
from gatehouse.shared.service import deadline

pytestmark = pytest.mark.both_databases

Group = GroupCommit[str, int]


def insert_names(connection: Connection, names: Sequence[str]) -> Sequence[int]:
    """Insert rows, and return for each how many are in the group."""
    connection.execute(insert(LeaseRow), [{"name": name, "holder": "", "expires_at": 0} for name in names])
    return [len(names)] * len(names)


@pytest.fixture
def group(authserver: AuthServer) -> Iterator[Group]:
    group = Group(authserver.services.database, insert_names, name="test")
    yield group
    group.close()


def names(server: AuthServer) -> list[str]:
    with server.services.database.read() as session:
        return list(session.scalars(select(LeaseRow.name).order_by(LeaseRow.name)))


def submit(group: Group, *items: str) -> list["asyncio.Future[int]"]:
    """Submit items on the event loop."""

    async def submit_all() -> list["asyncio.Future[int]"]:
        return [group.submit(item) for item in items]

    return run(submit_all())


def during_a_commit(server: AuthServer, group: Group, *items: str) -> list["asyncio.Future[int]"]:
    """Submit items while a first one is committed, so that they form the next group."""
    with paused_at_a_statement(server, lambda: group.write_and_wait("first")):
        return submit(group, *items)


def outcome(result: "asyncio.Future[int]") -> int | BaseException:
    """Return the result of an item, or what it failed with."""

    async def wait() -> int | BaseException:
        [found] = await asyncio.gather(result, return_exceptions=True)
        return found

    return run(wait())


def test_the_first_item_is_written_alone_and_at_once(authserver: AuthServer, group: Group) -> None:
    assert group.write_and_wait("a") == 1
    assert names(authserver) == ["a"]


def test_items_that_arrive_during_a_commit_share_the_next_one(authserver: AuthServer, group: Group) -> None:
    commits: list[Any] = []
    event.listen(authserver.services.database.engine, "commit", commits.append)
    assert [outcome(result) for result in during_a_commit(authserver, group, "a", "b", "c")] == [3, 3, 3]
    assert len(commits) == 2
    assert names(authserver) == ["a", "b", "c", "first"]


@pytest.mark.only_on("sqlite")
def test_a_group_is_limited(authserver: AuthServer, group: Group) -> None:
    results = during_a_commit(authserver, group, *map(str, range(MAX_GROUP + 1)))
    assert [outcome(result) for result in results] == [*[MAX_GROUP] * MAX_GROUP, 1]


def test_an_item_that_cannot_be_written_fails_alone(authserver: AuthServer, group: Group) -> None:
    group.write_and_wait("twice")
    before, twice, after = during_a_commit(authserver, group, "before", "twice", "z")
    assert (outcome(before), outcome(after)) == (1, 1)
    assert isinstance(outcome(twice), IntegrityError)
    assert names(authserver) == ["before", "first", "twice", "z"]


def test_writes_fail_during_an_outage_and_succeed_after_it(authserver: AuthServer, group: Group) -> None:
    rename = "ALTER TABLE {} RENAME TO {}"
    with authserver.services.database.engine.begin() as connection:
        connection.exec_driver_sql(rename.format("lease", "elsewhere"))
    with pytest.raises(SQLAlchemyError):
        group.write_and_wait("refused")
    with authserver.services.database.engine.begin() as connection:
        connection.exec_driver_sql(rename.format("elsewhere", "lease"))
    group.write_and_wait("after")
    assert names(authserver) == ["after"]


@pytest.mark.parametrize("where", ["in a thread", "on an event loop"])
def test_an_item_is_not_awaited_past_the_deadline(authserver: AuthServer, group: Group, where: str) -> None:
    """It is not written later either, unless its transaction had begun."""
    with (
        paused_at_a_statement(authserver, lambda: group.write_and_wait("first")),
        deadline.renewed(0),
        pytest.raises(deadline.DeadlineExceeded),
    ):
        group.write_and_wait("late") if where == "in a thread" else run(group.write_async("late"))
    group.write_and_wait("next")
    assert names(authserver) == ["first", "next"]


def test_an_item_past_its_deadline_is_not_written(authserver: AuthServer, group: Group) -> None:
    """As after an outage that lasted longer than the request could wait."""
    with deadline.renewed(0):
        [result] = submit(group, "late")
    assert isinstance(outcome(result), deadline.DeadlineExceeded)
    assert names(authserver) == []


def test_after_a_failed_group_no_item_is_tried_past_its_deadline(authserver: AuthServer) -> None:
    """As in an outage in which each attempt takes seconds."""
    tried: list[Sequence[str]] = []
    seconds = FakeClock()

    def write(_: Connection, items: Sequence[str]) -> Sequence[int]:
        tried.append(items)
        if len(items) > 1:
            seconds.advance(2)
            raise SQLAlchemyError
        return [1]

    group = Group(authserver.services.database, write, name="test", monotonic=seconds)
    with paused_at_a_statement(authserver, lambda: group.write_and_wait("first")):
        [in_time] = submit(group, "in time")
        with deadline.renewed(1):
            [expiring] = submit(group, "expiring")
    assert outcome(in_time) == 1
    assert isinstance(outcome(expiring), deadline.DeadlineExceeded)
    group.close()
    assert tried == [["first"], ["in time", "expiring"], ["in time"]]


def test_a_cancelled_request_writes_nothing(authserver: AuthServer, group: Group) -> None:
    async def cancel() -> None:
        task = asyncio.create_task(group.write_async("cancelled"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with paused_at_a_statement(authserver, lambda: group.write_and_wait("first")):
        run(cancel())
    group.write_and_wait("next")
    assert names(authserver) == ["first", "next"]


def test_closing_writes_what_waits_and_then_refuses(authserver: AuthServer, group: Group) -> None:
    waiting = during_a_commit(authserver, group, "a", "b")
    group.close()
    assert [outcome(result) for result in waiting] == [2, 2]
    with pytest.raises(deadline.DeadlineExceeded):
        group.write_and_wait("too late")
    assert names(authserver) == ["a", "b", "first"]


def test_a_group_that_is_not_used_starts_no_thread(authserver: AuthServer, group: Group) -> None:
    before = set(threading.enumerate())
    group.close()
    with pytest.raises(deadline.DeadlineExceeded):
        submit(group, "too late")
    assert set(threading.enumerate()) == before


@pytest.mark.only_on("sqlite")
def test_a_forked_process_starts_a_thread_of_its_own(authserver: AuthServer, group: Group) -> None:
    group.write_and_wait("parent")
    if (child := os.fork()) == 0:
        authserver.services.database.engine.dispose(close=False)
        group.write_and_wait("child")
        os._exit(0)
    assert os.waitpid(child, 0) == (child, 0)
    assert names(authserver) == ["child", "parent"]


def test_a_locked_item_is_tried_again_beside_the_others(authserver: AuthServer) -> None:
    locked = threading.Event()
    locked.set()
    tried: list[Sequence[str]] = []

    def write(_: Connection, items: Sequence[str]) -> Sequence[int | Later]:
        tried.append(items)
        return [Later.LOCKED if item == "locked" and locked.is_set() else 1 for item in items]

    group = Group(authserver.services.database, write, name="test")
    [waiting] = submit(group, "locked")
    assert group.write_and_wait("other") == 1
    assert not waiting.done()
    locked.clear()
    assert outcome(waiting) == 1
    locked.set()
    [refused] = submit(group, "locked")
    group.close()
    assert isinstance(outcome(refused), deadline.DeadlineExceeded)


def test_a_result_for_a_closed_event_loop_is_discarded(authserver: AuthServer, group: Group) -> None:
    async def submit_only() -> None:
        group.submit("of a closed loop")

    with paused_at_a_statement(authserver, lambda: group.write_and_wait("first")):
        asyncio.run(submit_only())
    group.write_and_wait("next")
    assert names(authserver) == ["first", "next", "of a closed loop"]
