"""Refusals past a limit are recorded once, and then by number."""

import asyncio
from typing import Any, cast

import pytest
from support.clock import FakeClock

from gatehouse.shared.service import refusals
from gatehouse.shared.service.audit.events import AuditAction, AuditEvent
from gatehouse.shared.service.audit.writer import AuditUnavailable, AuditWriter
from gatehouse.shared.service.limits import Exceeded
from gatehouse.shared.service.metrics import Meter, rate_limited
from gatehouse.shared.service.refusals import RefusalRecorder

pytestmark = pytest.mark.anyio

CALLS = Exceeded("calls", "600/minute", 3)
RATE_LIMITED = rate_limited("calls", "tool_calls")
EVENT = AuditEvent(
    AuditAction.TOOL_CALL,
    "refused",
    actor="agent_1",
    object="whoami",
    jti="jti-1",
    request_id="req_1",
    reason="exceeds the limit",
    detail={"status": 429},
)
ABOUT = {"limit": "calls", "allowed": "600/minute", "address": "192.0.2.1"}


class FakeAudit:
    """Keeps the events, or accepts none."""

    def __init__(self) -> None:
        self.committed: list[AuditEvent] = []
        self.recorded: list[AuditEvent] = []
        self.recording = asyncio.Event()
        self.away = False

    async def commit_async(self, event: AuditEvent) -> None:
        self._keep(self.committed, event)

    def record(self, event: AuditEvent) -> None:
        self._keep(self.recorded, event)
        self.recording.set()

    def counts(self) -> list[tuple[str | None, int]]:
        return [(event.actor, event.detail["count"]) for event in self.recorded]

    def _keep(self, events: list[AuditEvent], event: AuditEvent) -> None:
        if self.away:
            raise AuditUnavailable("away")
        events.append(event)


@pytest.fixture
def audit() -> FakeAudit:
    return FakeAudit()


def recorder(audit: FakeAudit, clock: FakeClock, **options: Any) -> RefusalRecorder:
    return RefusalRecorder(cast("AuditWriter", audit), Meter(enabled=False).counters(RATE_LIMITED), clock, **options)


async def refuse(log: RefusalRecorder, times: int = 1, **changes: Any) -> None:
    for _ in range(times):
        await log.record(EVENT._replace(**changes), CALLS, "192.0.2.1")


async def test_other_refusals_are_each_recorded(audit: FakeAudit, clock: FakeClock) -> None:
    log = recorder(audit, clock)
    for _ in range(5):
        await log.record(EVENT)
    assert audit.committed == [EVENT] * 5
    assert audit.recorded == []


async def test_the_first_is_recorded_at_once_and_then_a_number_each_minute(audit: FakeAudit, clock: FakeClock) -> None:
    log = recorder(audit, clock)
    await refuse(log, 100)
    assert audit.committed == [EVENT._replace(detail={"status": 429, **ABOUT})]
    clock.advance(59)
    log.flush()
    assert audit.recorded == []
    clock.advance(1)
    log.flush()
    [number] = audit.recorded
    assert (number.action, number.outcome, number.actor) == (AuditAction.TOOL_CALL, "refused", "agent_1")
    assert (number.object, number.jti, number.request_id) == (None, None, None)
    assert number.reason == "further requests exceeded the limit calls"
    assert number.detail == {**ABOUT, "count": 99}
    await refuse(log, 7)
    clock.advance(60)
    await refuse(log)
    assert audit.counts() == [("agent_1", 99), ("agent_1", 7)]
    assert len(audit.committed) == 1


async def test_a_minute_without_refusals_ends_the_count(audit: FakeAudit, clock: FakeClock) -> None:
    log = recorder(audit, clock)
    await refuse(log)
    clock.advance(60)
    log.flush()
    await refuse(log)
    assert len(audit.committed) == 2
    assert audit.recorded == []


@pytest.mark.parametrize(
    "other",
    [
        (EVENT._replace(actor="agent_2"), CALLS, "192.0.2.1"),
        (EVENT._replace(action=AuditAction.MCP_REQUEST), CALLS, "192.0.2.1"),
        (EVENT, CALLS._replace(limit="concurrent_calls"), "192.0.2.1"),
        (EVENT, CALLS, "192.0.2.2"),
    ],
    ids=["client", "action", "limit", "address"],
)
async def test_limit_client_address_and_action_are_counted_apart(
    audit: FakeAudit, clock: FakeClock, other: tuple[AuditEvent, Exceeded, str]
) -> None:
    log = recorder(audit, clock)
    await refuse(log, 2)
    await log.record(*other)
    assert len(audit.committed) == 2


async def test_what_the_client_chooses_is_not_counted_apart(audit: FakeAudit, clock: FakeClock) -> None:
    """A client can name any tool, and would otherwise write a row for each name."""
    log = recorder(audit, clock)
    for number in range(100):
        await refuse(log, object=f"tool_{number}", request_id=f"req_{number}", reason=f"reason {number}")
    assert len(audit.committed) == 1


async def test_the_number_of_aggregates_is_bounded(audit: FakeAudit, clock: FakeClock) -> None:
    log = recorder(audit, clock, size=2)
    for actor in ("a", "b", "c", "d"):
        await refuse(log, 3, actor=actor)
    assert len(audit.committed) == 4
    assert audit.counts() == [("a", 2), ("b", 2)]


async def test_the_end_records_every_number(audit: FakeAudit, clock: FakeClock) -> None:
    log = recorder(audit, clock)
    async with log.running():
        await refuse(log, 3, actor="a")
        await refuse(log, 1, actor="b")
        await refuse(log, 2, actor="c")
    assert audit.counts() == [("a", 2), ("c", 1)]


async def test_a_running_recorder_flushes_by_itself(
    audit: FakeAudit, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "_FLUSH_INTERVAL", 0)
    log = recorder(audit, clock)
    async with log.running():
        await refuse(log, 3)
        clock.advance(60)
        async with asyncio.timeout(30):
            await audit.recording.wait()
    assert audit.counts() == [("agent_1", 2)]


async def test_an_outage_loses_no_number(audit: FakeAudit, clock: FakeClock) -> None:
    log = recorder(audit, clock)
    audit.away = True
    with pytest.raises(AuditUnavailable):
        await refuse(log)
    await refuse(log, 2)
    clock.advance(60)
    log.flush()
    audit.away = False
    clock.advance(60)
    log.flush()
    assert audit.counts() == [("agent_1", 3)]


async def test_every_refusal_past_a_limit_is_counted_in_a_metric(audit: FakeAudit, clock: FakeClock) -> None:
    meter = Meter(enabled=True)
    log = RefusalRecorder(cast("AuditWriter", audit), meter.counters(RATE_LIMITED), clock)
    await log.record(EVENT)
    await refuse(log, 3)
    await log.record(EVENT, Exceeded("tool_calls:whoami", "30/minute", 3))
    assert meter.registry is not None
    counted = [
        meter.registry.get_sample_value("gatehouse_rate_limited_total", {"limit": limit})
        for limit in ("calls", "tool_calls")
    ]
    assert counted == [3, 1]
