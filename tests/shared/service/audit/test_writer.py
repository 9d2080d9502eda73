"""The audit log: when events are written, and that none is lost or forged."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import URL, Engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from support import databases
from support.audit import audit_keys
from support.clock import FakeClock
from support.databases import engine_with_tables
from support.waiting import wait_until

from gatehouse.shared.service import deadline
from gatehouse.shared.service.audit import writer as writer_module
from gatehouse.shared.service.audit.events import AuditEvent, AuditTables, find_events
from gatehouse.shared.service.audit.rows import AuditRows
from gatehouse.shared.service.audit.writer import AuditUnavailable, AuditWriter
from gatehouse.shared.service.database import Database, new_metadata

pytestmark = pytest.mark.both_databases

METADATA = new_metadata()
TABLE = AuditTables.declare(METADATA).events
CAPACITY = 8


@pytest.fixture
def engine(empty_database: URL) -> Iterator[Engine]:
    with engine_with_tables(empty_database, METADATA) as engine:
        yield engine


@pytest.fixture
def writer(engine: Engine, clock: FakeClock) -> Iterator[AuditWriter]:
    """Return a writer that writes only what is urgent, or pending at its end: its time does not pass."""
    writer = AuditWriter(engine, AuditRows(TABLE, audit_keys, clock), capacity=CAPACITY, monotonic=FakeClock())
    yield writer
    writer.close()


def allowed(action: str, **members: Any) -> AuditEvent:
    return AuditEvent(action, "allowed", **members)


def stored(engine: Engine, **filters: Any) -> list[dict[str, Any]]:
    with engine.begin() as connection:
        return [dict(row) for row in find_events(connection, TABLE, **filters)]


def actions(engine: Engine, **filters: Any) -> list[str]:
    return [row["action"] for row in stored(engine, **filters)]


def hide_table(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE audit_event RENAME TO elsewhere")


def restore_table(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO audit_event")


def test_an_event_is_stored_as_it_happened(writer: AuditWriter, engine: Engine, clock: FakeClock) -> None:
    clock.now = 1_800_000_000.1234
    writer.commit_and_wait(
        AuditEvent("tool.call", "refused", "agent_1", "whoami", "jti-1", "req_1", "expired", {"status": 401})
    )
    [row] = stored(engine)
    assert row.pop("writer").startswith("w_")
    assert len(row.pop("link")) == 64
    assert row == {
        "id": 1,
        "time": 1_800_000_000_123,
        "sequence": 1,
        "kid": "audit_test",
        "request_id": "req_1",
        "actor": "agent_1",
        "jti": "jti-1",
        "action": "tool.call",
        "object": "whoami",
        "outcome": "refused",
        "reason": "expired",
        "detail": {"status": 401},
    }


def test_a_change_and_its_event_are_committed_together(writer: AuditWriter, engine: Engine) -> None:
    with Database(engine.url) as database:
        with pytest.raises(RuntimeError), database.write() as session:
            writer.rows.record(session, allowed("client.create"))
            raise RuntimeError
        assert actions(engine) == []
        with database.write() as session:
            writer.rows.record(session, allowed("client.create"))
    assert actions(engine) == ["client.create"]


def test_events_are_written_in_order_and_counted(writer: AuditWriter, engine: Engine) -> None:
    for number in range(5):
        writer.record(allowed(f"recorded.{number}"))
    writer.commit_and_wait(allowed("committed"))
    rows = stored(engine)
    assert [row["action"] for row in rows] == [*(f"recorded.{number}" for number in range(5)), "committed"]
    assert [row["sequence"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert len({row["writer"] for row in rows}) == 1


@pytest.mark.threat("T-139")
def test_a_committed_event_is_on_disk_when_its_future_is_done(writer: AuditWriter, engine: Engine) -> None:
    assert writer.commit(allowed("refusal")).result(5) is None
    assert actions(engine) == ["refusal"]


@pytest.fixture
def transactions(engine: Engine) -> list[int]:
    """Return a list of the transactions of the writer: how many rows each inserted."""
    counts: list[int] = []

    @event.listens_for(engine, "before_cursor_execute")
    def count(_: Any, __: Any, statement: str, parameters: Any, ___: Any, many: bool) -> None:
        if statement.startswith("INSERT"):
            counts.append(len(parameters) if many else 1)

    return counts


def test_recorded_events_wait_100_ms_together(engine: Engine, clock: FakeClock, transactions: list[int]) -> None:
    """The time counts from the first one: a steady load must not postpone it."""
    monotonic = FakeClock()
    writer = AuditWriter(engine, AuditRows(TABLE, audit_keys, clock), monotonic=monotonic)
    for batch in range(2):
        for number in range(500):
            writer.record(allowed(f"recorded.{batch}.{number}"))
            monotonic.advance(0.099 / 500)
        monotonic.advance(0.0011)
        wait_until(lambda expected=batch + 1: len(transactions) == expected)
    writer.close()
    assert transactions == [500, 500]
    assert actions(engine, limit=1000) == [f"recorded.{batch}.{number}" for batch in range(2) for number in range(500)]


def test_an_urgent_event_or_the_end_does_not_wait(
    engine: Engine, clock: FakeClock, transactions: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "BATCH_INTERVAL", 60)
    waiting = threading.Event()

    def monotonic() -> float:
        if threading.current_thread().name == "audit":
            waiting.set()
        return time.monotonic()

    writer = AuditWriter(engine, AuditRows(TABLE, audit_keys, clock), monotonic=monotonic)
    writer.record(allowed("recorded"))
    assert waiting.wait(5)
    writer.record(allowed("with.it"))
    writer.commit(allowed("urgent")).result(5)
    writer.commit(allowed("urgent.again")).result(5)
    writer.record(allowed("last"))
    writer.close()
    assert transactions == [3, 1, 1]
    assert actions(engine) == ["recorded", "with.it", "urgent", "urgent.again", "last"]


def test_events_recorded_from_many_threads_are_each_written_once(engine: Engine, clock: FakeClock) -> None:
    writer = AuditWriter(engine, AuditRows(TABLE, audit_keys, clock))

    def record(thread: int) -> None:
        for number in range(100):
            writer.record(allowed(f"{thread}.{number}"))

    threads = [threading.Thread(target=record, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert sorted(actions(engine, limit=1000)) == sorted(f"{t}.{n}" for t in range(8) for n in range(100))


def test_closing_writes_pending_events_and_then_refuses(writer: AuditWriter, engine: Engine) -> None:
    writer.record(allowed("last"))
    writer.close()
    assert actions(engine) == ["last"]
    with pytest.raises(AuditUnavailable):
        writer.record(allowed("too.late"))
    with pytest.raises(AuditUnavailable):
        writer.commit_and_wait(allowed("too.late"))
    assert actions(engine) == ["last"]


def test_an_unused_writer_starts_no_thread(engine: Engine) -> None:
    before = set(threading.enumerate())
    writer = AuditWriter(engine, AuditRows(TABLE, audit_keys))
    writer.close()
    with pytest.raises(AuditUnavailable):
        writer.record(allowed("too.late"))
    assert set(threading.enumerate()) == before
    assert actions(engine) == []


class Barrier:
    """Holds back the transactions of the writer while its lock is held."""

    def __init__(self, engine: Engine) -> None:
        self.lock = threading.Lock()
        self.reached = threading.Event()
        event.listen(engine, "begin", self._pass)

    def _pass(self, _: Any) -> None:
        if threading.current_thread().name == "audit":
            self.reached.set()
            with self.lock:
                pass


def test_an_outage_fails_waiting_events_and_keeps_recorded_ones(writer: AuditWriter, engine: Engine) -> None:
    barrier = Barrier(engine)
    hide_table(engine)
    with barrier.lock:
        writer.record(allowed("first"))
        refused = writer.commit(allowed("never.answered"))
        assert barrier.reached.wait(5)
        writer.record(allowed("second"))
    with pytest.raises(AuditUnavailable):
        refused.result(5)
    restore_table(engine)
    writer.commit_and_wait(allowed("third"))
    # The request of the refused event was refused too, so the event must not be written later.
    assert actions(engine) == ["first", "second", "third"]


def test_an_outage_refuses_further_events_until_it_ends(writer: AuditWriter, engine: Engine) -> None:
    """What is accepted during an outage is lost with the process, so nothing more is accepted."""
    hide_table(engine)
    writer.record(allowed("before.it.was.noticed"))
    with pytest.raises(AuditUnavailable):
        writer.commit(allowed("notices")).result(5)
    assert not writer.available
    with pytest.raises(AuditUnavailable):
        writer.record(allowed("refused"))
    restore_table(engine)
    writer.commit_and_wait(allowed("after"))
    assert writer.available
    writer.record(allowed("recorded.again"))
    writer.close()
    assert actions(engine) == ["before.it.was.noticed", "after", "recorded.again"]


@pytest.mark.only_on("postgresql")
def test_after_an_outage_events_are_written_over_new_connections(writer: AuditWriter, engine: Engine) -> None:
    writer.commit_and_wait(allowed("before"))
    databases.take_away(engine.url)
    writer.record(allowed("recorded"))
    with pytest.raises(AuditUnavailable):
        writer.commit(allowed("never.answered")).result(10)
    assert not writer.available
    databases.bring_back(engine.url)
    writer.commit_and_wait(allowed("after"))
    assert actions(engine) == ["before", "recorded", "after"]


@pytest.mark.only_on("postgresql")
def test_recorded_events_wait_while_the_server_is_read_only(writer: AuditWriter, engine: Engine) -> None:
    """As on a replica before its promotion."""
    with engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {engine.url.database} SET default_transaction_read_only = on")
    engine.dispose()
    writer.record(allowed("recorded"))
    with pytest.raises(AuditUnavailable):
        writer.commit(allowed("never.answered")).result(10)
    assert not writer.available
    with engine.begin() as connection:
        connection.exec_driver_sql("SET TRANSACTION READ WRITE")
        connection.exec_driver_sql(f"ALTER DATABASE {engine.url.database} RESET default_transaction_read_only")
    engine.dispose()
    writer.commit_and_wait(allowed("after"))
    assert actions(engine) == ["recorded", "after"]


def test_events_lost_at_shutdown_are_named_in_the_log(
    writer: AuditWriter, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    hide_table(engine)
    writer.record(allowed("token.issue", jti="the-jti"))
    writer.close()
    assert "1 audit events are lost" in caplog.text
    assert "token.issue the-jti" in caplog.text


@pytest.mark.threat("T-115")
def test_a_full_queue_refuses_and_drops_nothing(writer: AuditWriter, engine: Engine) -> None:
    hide_table(engine)
    for number in range(CAPACITY):
        writer.record(allowed(f"recorded.{number}"))
    with pytest.raises(AuditUnavailable):
        writer.record(allowed("one.too.many"))
    with pytest.raises(AuditUnavailable):
        writer.commit(allowed("one.too.many"))
    restore_table(engine)
    writer.close()
    assert actions(engine) == [f"recorded.{number}" for number in range(CAPACITY)]


def test_closing_without_a_database_ends(writer: AuditWriter, engine: Engine) -> None:
    hide_table(engine)
    writer.record(allowed("lost"))
    waiting = writer.commit(allowed("refused"))
    writer.close()
    with pytest.raises(AuditUnavailable):
        waiting.result(5)
    restore_table(engine)
    assert actions(engine) == []


@pytest.mark.threat("T-114")
@pytest.mark.parametrize("member", ["actor", "object", "jti", "reason"])
@pytest.mark.parametrize(
    "forgery", ["x\n2026-01-01 forged", "x\r", "\x1b[2Jx", "x\x00", "x\u2028", "x\u202e"], ids=repr
)
def test_control_characters_cannot_forge_a_line(writer: AuditWriter, engine: Engine, member: str, forgery: str) -> None:
    """CWE-117."""
    writer.commit_and_wait(allowed("token.issue", **{member: forgery}))
    [row] = stored(engine)
    assert row[member].isprintable()
    assert row[member].replace("\\x", "") != forgery


@pytest.mark.threat("T-106")
def test_nested_detail_contains_no_secret_and_forges_no_line(writer: AuditWriter, engine: Engine) -> None:
    """CWE-117, CWE-532: a remediation repeats what a caller sent, and `audit --request` prints it."""
    secret = "gths_" + "a" * 43
    detail = {
        "remediation": f"run {secret}",
        "deep": [{"\x1b[2Jname": ("x\n2026 forged", 1, None, True)}],
        "plain": "env:read",
    }
    writer.commit_and_wait(allowed("token.issue", detail=detail))
    [row] = stored(engine)
    assert row["detail"] == {
        "remediation": "run [masked]",
        "deep": [{"\\x1b[2Jname": ["x\\x0a2026 forged", 1, None, True]}],
        "plain": "env:read",
    }


def test_long_values_are_truncated_to_their_column(writer: AuditWriter, engine: Engine) -> None:
    writer.commit_and_wait(allowed("x", actor="\n" * 300, object="o" * 600, jti="j" * 100))
    [row] = stored(engine)
    assert (len(row["actor"]), len(row["object"]), len(row["jti"])) == (255, 512, 64)


def test_an_event_that_is_not_json_is_refused(
    writer: AuditWriter, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """It could only be lost later, after its request was answered."""
    for record in (writer.record, writer.commit, writer.commit_and_wait):
        with pytest.raises(AuditUnavailable):
            record(allowed("unstorable", detail={"value": object()}))
    assert "audit event unstorable cannot be stored" in caplog.text
    writer.commit_and_wait(allowed("next"))
    assert [(row["action"], row["sequence"]) for row in stored(engine)] == [("next", 1)]


def unstorable() -> AuditEvent:
    """Return an event that only the database refuses."""
    return AuditEvent("unstorable", None)  # type: ignore[arg-type]


def test_an_event_that_cannot_be_stored_does_not_stop_the_writer(
    writer: AuditWriter, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Such an event must not block later events or leave a request waiting forever."""
    with pytest.raises(AuditUnavailable):
        writer.commit(unstorable()).result(2)
    writer.commit(allowed("next")).result(2)
    assert actions(engine) == ["next"]
    assert "('unstorable', None) cannot be stored and is lost: IntegrityError" in caplog.text


def test_an_event_that_cannot_be_stored_does_not_block_the_others(writer: AuditWriter, engine: Engine) -> None:
    """If it stayed at the head of the queue, every later request would be refused."""
    writer.record(allowed("before"))
    writer.record(unstorable())
    writer.commit(allowed("next")).result(2)
    assert actions(engine) == ["before", "next"]


def test_an_outage_while_isolating_a_bad_event_loses_only_that_event(writer: AuditWriter, engine: Engine) -> None:
    @event.listens_for(engine, "checkin", once=True)
    def begin_outage(failed: DBAPIConnection, _: object) -> None:
        failed.cursor().execute("ALTER TABLE audit_event RENAME TO elsewhere")

    writer.record(unstorable())
    writer.record(allowed("kept"))
    refused = writer.commit(allowed("never.answered"))
    with pytest.raises(AuditUnavailable):
        refused.result(5)
    restore_table(engine)
    writer.commit_and_wait(allowed("after"))
    assert actions(engine) == ["kept", "after"]


def test_an_event_is_not_awaited_past_the_deadline(writer: AuditWriter, engine: Engine) -> None:
    with engine.begin(), deadline.renewed(0), pytest.raises(AuditUnavailable, match="takes too long"):
        writer.commit_and_wait(allowed("refused"))
    writer.commit_and_wait(allowed("in.time"))
    assert "in.time" in actions(engine)


@pytest.mark.anyio
async def test_an_event_is_not_awaited_past_the_deadline_on_an_event_loop(writer: AuditWriter, engine: Engine) -> None:
    with engine.begin(), deadline.renewed(0), pytest.raises(AuditUnavailable, match="takes too long"):
        await writer.commit_async(allowed("refused"))
    await writer.commit_async(allowed("in.time"))
    assert "in.time" in actions(engine)
