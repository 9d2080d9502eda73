"""Sessions of callers at a stateful upstream: one for each, the same for all workers, bounded, encrypted."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from support.clock import FakeClock
from support.databases import Template, everything_in, take_away
from support.sdk_upstream import sdk_upstream
from support.upstreams import (
    LEGACY,
    MODERN,
    RESULT,
    call_of,
    error,
    hang,
    hang_up,
    result,
    scripted_upstream,
    status,
    upstream_settings,
)

from gatehouse.resourceserver.db.models import UpstreamSessionRow
from gatehouse.resourceserver.db.request_database import RequestDatabase
from gatehouse.resourceserver.upstream.http.caller_sessions import CallerSessions
from gatehouse.resourceserver.upstream.http.http_upstream import HttpUpstream
from gatehouse.resourceserver.upstream.http.session_key import create_session_key
from gatehouse.resourceserver.upstream.http.session_store import (
    IDLE,
    TOUCH_INTERVAL,
    Connection,
    Kept,
    SessionStore,
    SharedSession,
)
from gatehouse.resourceserver.upstream.upstream import (
    Caller,
    OutcomeUnknown,
    UpstreamBusy,
    UpstreamUnavailable,
)
from gatehouse.shared.service.database import parse_database_url

pytestmark = [pytest.mark.anyio, pytest.mark.both_databases]

ALICE, BOB, CAROL = Caller("alice", "alice"), Caller("bob", "bob"), Caller("carol", "carol")
UPSTREAM = "u" * 64


def session(number: int) -> Connection:
    return Connection(LEGACY, f"session-{number}")


@pytest.fixture
def database(tmp_path: Path, resourceserver_template: Template) -> Any:
    url = parse_database_url(resourceserver_template.install(tmp_path / "installation"))
    opened = RequestDatabase(url)
    yield opened
    opened.close()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys" / "sessions.json"
    assert create_session_key(path)
    return path


@pytest.fixture
def store(database: RequestDatabase, key_file: Path, clock: FakeClock) -> SessionStore:
    return SessionStore(database, key_file, clock)


@asynccontextmanager
async def workers(
    count: int, server_url: str, store: SessionStore, **changes: Any
) -> AsyncIterator[list[HttpUpstream]]:
    """Run upstreams that share a database, each with its own connections, as workers and nodes do."""
    async with AsyncExitStack() as stack:
        upstreams = []
        for _ in range(count):
            database = RequestDatabase(store._database._database.url)
            stack.callback(database.close)
            own = SessionStore(database, store._key_file, store._clock)
            upstreams.append(HttpUpstream(upstream_settings(server_url, **changes), own))
            await stack.enter_async_context(upstreams[-1].running())
        yield upstreams


async def called(upstream: HttpUpstream, client_id: str = "alice", **arguments: Any) -> Any:
    return await upstream.call_tool(call_of(client_id=client_id, **arguments))


async def ids(store: SessionStore, *callers: Caller, limit: int = 10) -> list[str | None]:
    found = [await store.find(UPSTREAM, caller, limit) for caller in callers]
    return [None if connection is None else connection.session_id for connection in found]


# Two callers


@pytest.mark.threat("T-192")
async def test_each_caller_has_a_session_that_all_workers_use(store: SessionStore) -> None:
    async with sdk_upstream("stateful") as server, workers(2, server.url, store) as (first, second):
        counts = [
            (await upstream.call_tool(call_of("count", client_id=client)))["structuredContent"]["result"]
            for upstream, client in [(first, "alice"), (second, "alice"), (first, "bob"), (second, "alice")]
        ]
        tools = await second.list_tools()
    assert counts == [1, 2, 1, 3]
    assert {"count", "echo"} <= {tool["name"] for tool in tools}


async def test_concurrent_first_calls_open_one_session(store: SessionStore) -> None:
    async with scripted_upstream(LEGACY, stateful=True) as server:
        async with workers(2, server.url, store) as upstreams, anyio.create_task_group() as group:
            for upstream in upstreams * 5:
                group.start_soon(called, upstream)
        sessions = {received.session for received in server.of("tools/call")}
        assert len(sessions) == 1
        # Those of the two workers end with them; of two that were opened for the caller, the loser's is ended at once.
        opened = len(server.of("initialize"))
        ended = {received.session for received in await server.until("DELETE", opened - 1)}
        assert server.sessions == sessions
        assert not ended & sessions


async def test_the_session_of_a_caller_survives_the_workers(store: SessionStore) -> None:
    async with scripted_upstream(LEGACY, stateful=True) as server:
        for _ in range(2):
            async with workers(1, server.url, store) as (upstream,):
                await called(upstream)
        assert len({received.session for received in server.of("tools/call")}) == 1


# A session that ended


@pytest.mark.parametrize("unknown", [status(404), error(-32600, 404), status(400), error(-32000, 400, id=None)])
async def test_a_session_that_the_upstream_ended_is_replaced_once(store: SessionStore, unknown: Any) -> None:
    async with scripted_upstream(LEGACY, stateful=True) as server, workers(2, server.url, store) as (first, second):
        server.unknown_session = unknown
        for upstream in (first, second):
            await called(upstream)
        server.sessions.clear()
        for upstream in (first, second):
            assert await called(upstream) == RESULT
        old, *_, new = [received.session for received in server.of("tools/call")]
        calls = [received.session for received in server.of("tools/call")]
        assert calls == [old, old, old, new, old, new]
        assert old != new


async def test_a_replacement_that_ended_as_well_is_replaced(store: SessionStore) -> None:
    async with scripted_upstream(LEGACY, stateful=True) as server, workers(2, server.url, store) as (first, second):
        await called(first)
        await called(second)
        server.sessions.clear()
        await called(first)
        server.sessions.clear()
        assert await called(second) == RESULT
        assert len({received.session for received in server.of("tools/call")}) == 3


async def test_concurrent_calls_replace_an_ended_session_once(store: SessionStore) -> None:
    async with scripted_upstream(LEGACY, stateful=True) as server, workers(1, server.url, store) as (upstream,):
        await called(upstream)
        server.sessions.clear()
        opened = len(server.of("initialize"))
        await asyncio.gather(*(called(upstream) for _ in range(5)))
        assert len(server.of("initialize")) == opened + 1


async def test_a_call_that_is_not_accepted_keeps_its_session(store: SessionStore) -> None:
    async with scripted_upstream(LEGACY, stateful=True) as server, workers(1, server.url, store) as (upstream,):
        await called(upstream)
        for answer in (result({}), error(-32601)):
            server.answer("tools/call", status(400))
            server.answer("ping", answer)
            with pytest.raises(UpstreamUnavailable, match="did not accept the request"):
                await called(upstream)
        server.answer("tools/call", status(400))
        server.answer("ping", hang_up)
        with pytest.raises(UpstreamUnavailable, match="broke"):
            await called(upstream)
        server.answer("tools/call", status(413))
        with pytest.raises(UpstreamUnavailable, match="413"):
            await called(upstream)
        await called(upstream)
        assert len({received.session for received in server.of("tools/call")}) == 1


async def test_an_upstream_that_is_stateless_or_modern_now_needs_no_session(store: SessionStore) -> None:
    async with scripted_upstream(LEGACY, stateful=True) as server, workers(1, server.url, store) as (upstream,):
        await called(upstream)
        server.sessions.clear()
        server.answer("tools/call", status(404))
        server.stateful = False
        assert await called(upstream) == RESULT
        server.version = MODERN
        assert await called(upstream) == RESULT
        server.version, server.stateful = LEGACY, True
        assert await called(upstream) == RESULT
        server.version = MODERN
        assert await called(upstream) == RESULT


@pytest.mark.parametrize("handshake", [status(503), hang_up])
async def test_a_session_that_cannot_be_opened_leaves_the_call_unsent(store: SessionStore, handshake: Any) -> None:
    async with scripted_upstream(LEGACY, stateful=True) as server, workers(1, server.url, store) as (upstream,):
        await upstream.list_tools()
        server.answer("initialize", handshake)
        with pytest.raises(UpstreamUnavailable):
            await called(upstream)
        assert not server.of("tools/call")
        assert await called(upstream) == RESULT


async def test_a_session_whose_handshake_is_not_finished_is_ended(store: SessionStore) -> None:
    async with scripted_upstream(LEGACY, stateful=True) as server, workers(1, server.url, store) as (upstream,):
        await upstream.list_tools()
        server.answer("notifications/initialized", hang_up)
        with pytest.raises(UpstreamUnavailable):
            await called(upstream)
        assert (await server.until("DELETE"))[0].session == "session-2"


async def test_a_call_cancelled_while_its_session_opens_leaves_none(store: SessionStore) -> None:
    async with scripted_upstream(LEGACY, stateful=True) as server, workers(1, server.url, store) as (upstream,):
        await upstream.list_tools()
        server.answer("notifications/initialized", hang)
        call = asyncio.create_task(called(upstream))
        await server.until("notifications/initialized", 2)
        call.cancel()
        await server.until("DELETE")
        assert server.sessions == {"session-1"}


async def test_a_session_that_cannot_be_stored_is_ended(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted_upstream(LEGACY, stateful=True) as server, workers(1, server.url, store) as (upstream,):
        await upstream.list_tools()

        async def busy(*_: Any) -> Kept:
            raise UpstreamBusy("full")

        monkeypatch.setattr(SessionStore, "put", busy)
        with pytest.raises(UpstreamBusy):
            await called(upstream)
        assert (await server.until("DELETE"))[0].session == "session-2"


async def test_an_answer_without_result_is_not_repeated(store: SessionStore) -> None:
    async with scripted_upstream(LEGACY, stateful=True) as server, workers(1, server.url, store) as (upstream,):
        server.answer("tools/call", status(500))
        with pytest.raises(OutcomeUnknown):
            await called(upstream)
        assert len(server.of("tools/call")) == 1


# Never shared


@pytest.mark.threat("T-192")
async def test_a_session_of_another_caller_is_refused(store: SessionStore) -> None:
    async with scripted_upstream(LEGACY, stateful=True) as server, workers(1, server.url, store) as (upstream,):
        await called(upstream)
        [sent] = server.of("tools/call")
        for session_id in ("session-1", str(sent.session)):
            server.answer("initialize", result({"protocolVersion": LEGACY}, mcp_session_id=session_id))
            with pytest.raises(SharedSession):
                await called(upstream, "bob")
        assert await called(upstream, "bob") == RESULT
        assert await called(upstream) == RESULT
        assert not server.of("DELETE")
        assert [received.session for received in server.of("tools/call")] == [sent.session, "session-3", sent.session]


@pytest.mark.threat("T-192")
async def test_a_session_id_in_another_answer_is_ignored(store: SessionStore) -> None:
    async with scripted_upstream(LEGACY, stateful=True) as server, workers(1, server.url, store) as (upstream,):
        server.answer("tools/call", result(RESULT, mcp_session_id="session-of-bob"))
        for _ in range(2):
            await called(upstream)
        assert {received.session for received in server.of("tools/call")} == {"session-2"}


@pytest.mark.threat("T-193")
async def test_a_copied_row_is_useless_to_another_caller(store: SessionStore, database: RequestDatabase) -> None:
    await store.put(UPSTREAM, ALICE, session(1), None, 10)
    await store.put(UPSTREAM, BOB, session(2), None, 10)
    row = UpstreamSessionRow

    def copy(transaction: Any) -> None:
        stolen = transaction.scalar(select(row.session).where(row.client_id == "alice"))
        transaction.execute(update(row).where(row.client_id == "bob").values(session=stolen))

    await database.run_write(copy)
    assert await ids(store, ALICE, BOB) == ["session-1", None]
    assert (await store.put(UPSTREAM, BOB, session(3), None, 10)).connection.session_id == "session-3"


@pytest.mark.threat("T-193")
async def test_the_database_reveals_no_session_id(
    store: SessionStore, database: RequestDatabase, tmp_path: Path, resourceserver_template: Template
) -> None:
    await store.put(UPSTREAM, ALICE, Connection(LEGACY, "a-recognizable-session-id"), None, 10)
    content = everything_in(database._database.url)
    assert b"alice" in content
    assert b"a-recognizable-session-id" not in content
    assert "a-recognizable" not in repr(await store.find(UPSTREAM, ALICE, 10))


# The store


async def test_the_first_to_insert_a_session_wins(store: SessionStore) -> None:
    first = await store.put(UPSTREAM, ALICE, session(1), None, 10)
    second = await store.put(UPSTREAM, ALICE, session(2), None, 10)
    assert (first.connection.session_id, second.connection.session_id) == ("session-1", "session-1")
    replaced = await store.put(UPSTREAM, ALICE, session(3), "session-1", 10)
    late = await store.put(UPSTREAM, ALICE, session(4), "session-1", 10)
    assert (replaced.connection.session_id, late.connection.session_id) == ("session-3", "session-3")
    assert await store.find("v" * 64, ALICE, 10) is None


async def test_two_inserts_at_the_same_moment_end_with_one_session(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = SessionStore._put
    tries: list[int] = []

    def conflict(self: SessionStore, *arguments: Any) -> Kept:
        tries.append(1)
        if len(tries) == 1:
            put(self, UPSTREAM, ALICE, session(1), None, 10, arguments[-1])
            arguments[-1].commit()
            raise IntegrityError("INSERT", {}, Exception())
        return put(self, *arguments)

    monkeypatch.setattr(SessionStore, "_put", conflict)
    kept = await store.put(UPSTREAM, ALICE, session(2), None, 10)
    assert (kept.connection.session_id, len(tries)) == ("session-1", 2)


async def test_an_idle_session_makes_room_for_another_caller(store: SessionStore, clock: FakeClock) -> None:
    for caller, number in ((ALICE, 1), (BOB, 2)):
        await store.put(UPSTREAM, caller, session(number), None, 2)
        clock.advance(1)
    with pytest.raises(UpstreamBusy, match=r"all 2 sessions of the upstream are in use \(upstream.max_sessions\)"):
        await store.find(UPSTREAM, CAROL, 2)
    with pytest.raises(UpstreamBusy):
        await store.put(UPSTREAM, CAROL, session(3), None, 2)
    clock.advance(IDLE - 1)
    assert await store.find(UPSTREAM, CAROL, 2) is None
    await store.touch(UPSTREAM, [BOB])
    kept = await store.put(UPSTREAM, CAROL, session(3), None, 2)
    assert [ended.session_id for ended in kept.ended] == ["session-1"]
    assert await ids(store, BOB, CAROL) == ["session-2", "session-3"]
    with pytest.raises(UpstreamBusy):
        await store.find(UPSTREAM, ALICE, 2)


async def test_unused_sessions_are_pruned(store: SessionStore, clock: FakeClock) -> None:
    await store.put(UPSTREAM, ALICE, session(1), None, 10)
    await store.put("v" * 64, BOB, session(2), None, 10)
    clock.advance(IDLE)
    await store.touch(UPSTREAM, [])
    await store.put(UPSTREAM, CAROL, session(3), None, 10)
    assert [ended.session_id for ended in await store.prune(UPSTREAM, 1)] == ["session-1"]
    assert await ids(store, ALICE, CAROL) == [None, "session-3"]
    assert (await store.find("v" * 64, BOB, 10)) is not None
    clock.advance(86400)
    assert [ended.session_id for ended in await store.prune(UPSTREAM, 100_000)] == []
    assert await store.find("v" * 64, BOB, 10) is None


async def test_a_key_that_was_replaced_gives_callers_new_sessions(
    store: SessionStore, database: RequestDatabase, tmp_path: Path, clock: FakeClock
) -> None:
    await store.put(UPSTREAM, ALICE, session(1), None, 10)
    create_session_key(tmp_path / "renewed.json")
    renewed = SessionStore(database, tmp_path / "renewed.json", clock)
    assert await renewed.find(UPSTREAM, ALICE, 10) is None
    await renewed.put(UPSTREAM, ALICE, session(2), None, 10)
    assert await ids(renewed, ALICE) == ["session-2"]


async def test_without_key_or_database_no_session_is_used(
    database: RequestDatabase, key_file: Path, clock: FakeClock
) -> None:
    store = SessionStore(database, key_file.parent / "none.json", clock)
    with pytest.raises(UpstreamUnavailable, match=r"There is no session key at .* Run: resourceserver init"):
        await store.put(UPSTREAM, ALICE, session(1), None, 10)
    database.close()
    take_away(database._database.url)
    unreachable = SessionStore(RequestDatabase(database._database.url), key_file, clock)
    attempts: list[Callable[[], Any]] = [
        lambda: unreachable.find(UPSTREAM, ALICE, 10),
        lambda: unreachable.put(UPSTREAM, BOB, session(2), None, 10),
        lambda: unreachable.touch(UPSTREAM, [ALICE]),
        lambda: unreachable.prune(UPSTREAM, 1),
    ]
    for attempt in attempts:
        with pytest.raises(UpstreamUnavailable, match="database error"):
            await attempt()


# Use and idleness


class FakeStore:
    """Records what is touched and pruned."""

    def __init__(self) -> None:
        self.touched: list[set[Caller]] = []
        self.pruned: list[Connection] = []
        self.failing = False

    async def find(self, upstream: str, caller: Caller, limit: int) -> Connection | None:
        return Connection(LEGACY, f"of-{caller.client_id}")

    async def touch(self, upstream: str, callers: set[Caller]) -> None:
        if self.failing:
            raise UpstreamUnavailable("database error")
        self.touched.append(callers)

    async def prune(self, upstream: str, idle_timeout: float) -> list[Connection]:
        return self.pruned


def maintained(store: FakeStore, clock: Callable[[], float], ended: list[Connection]) -> CallerSessions:
    async def unused(*_: Any) -> Any:
        raise AssertionError

    return CallerSessions(
        store,  # type: ignore[arg-type]
        UPSTREAM,
        upstream_settings("http://127.0.0.1:1/mcp"),
        open_=unused,
        end=ended.append,
        is_known=unused,
        monotonic=clock,
    )


async def nothing(_: Connection) -> None: ...


async def test_use_is_written_once_a_minute_and_not_for_each_call(clock: FakeClock) -> None:
    store, slept = FakeStore(), []
    sessions = maintained(store, clock, [])

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 4:
            raise asyncio.CancelledError
        clock.advance(seconds)
        if len(slept) == 1:
            await sessions.run(ALICE, nothing)
            await sessions.run(ALICE, nothing)

    with pytest.raises(asyncio.CancelledError):
        await sessions.maintain_regularly(sleep)
    assert slept == [TOUCH_INTERVAL] * 4
    assert store.touched[0] == {ALICE}
    assert store.touched[2] == set()


async def test_the_session_of_a_long_call_stays_in_use(clock: FakeClock) -> None:
    store, release = FakeStore(), asyncio.Event()
    sessions = maintained(store, clock, [])

    async def wait(_: Connection) -> None:
        await release.wait()

    call = asyncio.create_task(sessions.run(ALICE, wait))
    await anyio.wait_all_tasks_blocked()
    for _ in range(20):
        clock.advance(TOUCH_INTERVAL)
        await sessions.maintain()
    assert store.touched == [{ALICE}] * 20
    release.set()
    await call
    clock.advance(TOUCH_INTERVAL)
    await sessions.maintain()
    assert store.touched[-1] == set()


async def test_a_failure_to_tend_is_logged_and_made_up_for(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    store, ended = FakeStore(), list[Connection]()
    sessions = maintained(store, clock, ended)
    await sessions.run(ALICE, nothing)
    store.failing = True
    clock.advance(TOUCH_INTERVAL)
    await sessions.maintain()
    assert "the sessions of the upstream were not maintained: database error" in caplog.text
    store.failing, store.pruned = False, [session(9)]
    clock.advance(TOUCH_INTERVAL)
    await sessions.maintain()
    assert store.touched == [{ALICE}]
    assert ended == store.pruned


async def test_idle_sessions_end_at_the_upstream(store: SessionStore, clock: FakeClock) -> None:
    async with (
        scripted_upstream(LEGACY, stateful=True) as server,
        workers(2, server.url, store, max_sessions=1) as (first, second),
    ):
        await called(first)
        with pytest.raises(UpstreamBusy):
            await called(second, "bob")
        clock.advance(IDLE)
        await called(second, "bob")
        [ended] = await server.until("DELETE")
        assert ended.session == server.of("tools/call")[0].session
        clock.advance(601)
        assert first._sessions is not None
        await first._sessions.maintain()
        [_, ended] = await server.until("DELETE", 2)
        assert ended.session == server.of("tools/call")[1].session
