"""Counts on a Redis server: what is asked of it, and what happens while it does not answer."""

import time
from collections.abc import AsyncIterator
from functools import partial
from unittest.mock import ANY

import anyio
import pytest
from anyio.lowlevel import checkpoint
from support.clock import FakeClock
from support.fake_redis import FakeRedis

from gatehouse.authserver.settings import Settings
from gatehouse.shared.service import shared_counts
from gatehouse.shared.service.check_command import limits_step
from gatehouse.shared.service.limits import Exceeded, Limits, create_limits
from gatehouse.shared.service.metrics import UNCOUNTED
from gatehouse.shared.service.rates import Rate
from gatehouse.shared.service.setting_values import check_limits_url
from gatehouse.shared.service.shared_counts import SharedCounts, ping, redis_url, shown_limits_url

pytestmark = pytest.mark.anyio

ONE = Rate(1, "minute")


@pytest.fixture
async def redis(anyio_backend: str) -> AsyncIterator[FakeRedis]:
    server = FakeRedis()
    async with server.listening():
        yield server


class Tally:
    """Counts."""

    def __init__(self) -> None:
        self.number = 0

    def inc(self, amount: float = 1, /) -> None:
        self.number += int(amount)


@pytest.fixture
def fallbacks() -> Tally:
    """The requests for which the server did not answer."""
    return Tally()


@pytest.fixture
async def counts(
    redis: FakeRedis, clock: FakeClock, fallbacks: Tally, anyio_backend: str
) -> AsyncIterator[SharedCounts]:
    shared = SharedCounts(redis.url, "https://as.example.com", fallbacks, clock)
    yield shared
    await shared.close()


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait longer than a busy machine takes. Only a test about a silent server waits for less."""
    monkeypatch.setattr(shared_counts, "WAIT", 10)
    monkeypatch.setattr(shared_counts, "MAX_DELAY", 10)


async def test_the_server_decides_for_all_processes(
    counts: SharedCounts, redis: FakeRedis, clock: FakeClock, fallbacks: Tally
) -> None:
    limit = Limits(2, counts, clock).limit("calls", ONE)
    assert [await limit.hit("a") for _ in range(5)] == [None] * 5
    redis.allows, redis.oldest = False, time.time() - 45
    exceeded = await limit.hit("a")
    assert exceeded is not None
    assert (exceeded.limit, exceeded.allowed) == ("calls", "1/minute")
    assert 1 <= exceeded.wait <= 15
    assert await limit.peek("a") == exceeded._replace(wait=ANY)
    redis.oldest = 0
    assert await limit.hit("a") == Exceeded("calls", "1/minute", 1), "at least a second"
    redis.allows, counted = True, len(redis.keys)
    assert await limit.peek("a") is None
    assert len(redis.keys) == counted
    assert fallbacks.number == 0


async def test_keys_are_digests_of_owner_limit_and_key(redis: FakeRedis, clock: FakeClock) -> None:
    names = [("as", "calls", "a"), ("rs", "calls", "a"), ("as", "other", "a"), ("as", "calls", "b\x00/é")]
    for owner, limit, key in names:
        shared = SharedCounts(redis.url, owner, UNCOUNTED, clock)
        assert await shared.hit(limit, ONE, key) == 0
        await shared.close()
    assert len(set(redis.keys)) == 4
    assert all(key.isascii() and len(key) < 120 for key in redis.keys)


async def test_without_the_server_each_process_applies_its_share(
    clock: FakeClock, fallbacks: Tally, caplog: pytest.LogCaptureFixture
) -> None:
    redis = FakeRedis()
    counts = SharedCounts(redis.url, "owner", fallbacks, clock)
    limit = Limits(2, counts, clock).limit("calls", Rate(4, "minute"))
    assert [await limit.hit("a") for _ in range(2)] == [None] * 2
    assert await limit.hit("a") == Exceeded("calls", "4/minute", 60)
    clock.advance(1)
    assert await limit.hit("a") == Exceeded("calls", "4/minute", 59), "another attempt, and no further line"
    assert fallbacks.number == 4
    async with redis.listening():
        clock.advance(1)
        assert await limit.hit("a") is None
        assert len(redis.keys) == 1
    await counts.close()
    shown = f"redis://127.0.0.1:{redis.port}/0"
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"limits: {shown} does not answer (ConnectionError); each process allows its share until it does",
        f"limits: {shown} answers again",
    ]


async def test_a_slow_server_is_not_asked_again_for_a_second(
    counts: SharedCounts, redis: FakeRedis, clock: FakeClock, fallbacks: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await counts.hit("calls", ONE, "a") == 0
    redis.silent = True
    monkeypatch.setattr(shared_counts, "WAIT", 0)
    assert await counts.hit("calls", ONE, "a") is None
    monkeypatch.setattr(shared_counts, "WAIT", 3600)
    clock.advance(0.9)
    assert await counts.hit("calls", ONE, "a") is None
    redis.silent = False
    clock.advance(0.2)
    assert await counts.hit("calls", ONE, "a") == 0
    assert fallbacks.number == 2


async def test_one_request_tries_again_while_the_others_do_not_wait(
    counts: SharedCounts, redis: FakeRedis, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await counts.hit("calls", ONE, "a") == 0
    redis.silent = True
    monkeypatch.setattr(shared_counts, "WAIT", 0)
    assert await counts.hit("calls", ONE, "a") is None
    monkeypatch.setattr(shared_counts, "WAIT", 3600)
    clock.advance(1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(counts.hit, "calls", ONE, "a")
        await checkpoint()
        assert await counts.hit("calls", ONE, "a") is None
        tasks.cancel_scope.cancel()


@pytest.mark.threat("T-153")
async def test_a_burst_of_one_client_does_not_turn_the_counts_off(
    counts: SharedCounts, redis: FakeRedis, fallbacks: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits in line for a connection does not wait for the server."""
    assert await counts.hit("calls", ONE, "a") == 0
    redis.released.clear()
    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(counts.hit, "calls", ONE, "a")
        await anyio.wait_all_tasks_blocked()
        monkeypatch.setattr(shared_counts, "WAIT", 0)
        for _ in range(100):
            tasks.start_soon(counts.hit, "calls", ONE, "a")
        for _ in range(10):
            await checkpoint()
        monkeypatch.setattr(shared_counts, "WAIT", 10)
        redis.released.set()
    assert await counts.hit("calls", ONE, "b") == 0
    assert len(redis.keys) == 110
    assert fallbacks.number == 0


async def test_what_waits_in_line_learns_that_the_server_is_away(
    counts: SharedCounts, redis: FakeRedis, fallbacks: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.silent = True
    monkeypatch.setattr(shared_counts, "WAIT", 0)
    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(counts.hit, "calls", ONE, "a")
        await checkpoint()
        monkeypatch.setattr(shared_counts, "WAIT", 3600)
    assert fallbacks.number == 100


@pytest.mark.threat("T-153")
async def test_a_busy_process_does_not_blame_the_server(
    counts: SharedCounts, redis: FakeRedis, clock: FakeClock, fallbacks: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop ends a wait late if it was busy, and then may not have read an answer that has arrived."""
    monkeypatch.setattr(shared_counts, "MAX_DELAY", -1)
    for _ in range(3):
        monkeypatch.setattr(shared_counts, "WAIT", 0)
        assert await counts.hit("calls", ONE, "a") is None, "this request is counted in the process"
        clock.advance(0.9)
        monkeypatch.setattr(shared_counts, "WAIT", 10)
        assert await counts.hit("calls", ONE, "a") == 0, "the next one asks the server"
    assert fallbacks.number == 3


async def test_a_busy_process_notices_within_a_second_that_the_server_is_away(
    counts: SharedCounts, redis: FakeRedis, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_counts, "MAX_DELAY", -1)
    monkeypatch.setattr(shared_counts, "WAIT", 0)
    assert await counts.hit("calls", ONE, "a") is None
    clock.advance(1)
    assert await counts.hit("calls", ONE, "a") is None
    monkeypatch.setattr(shared_counts, "WAIT", 3600)
    assert await counts.hit("calls", ONE, "a") is None, "not asked"
    assert not redis.keys


async def test_the_settings_name_the_server(redis: FakeRedis) -> None:
    settings = Settings(limits_url=redis.url.replace("redis", "valkey"))
    limits = create_limits(settings, settings.issuer, UNCOUNTED)
    assert await limits.limit("calls", ONE).hit("a") is None
    assert len(redis.keys) == 1
    await limits.close()
    _, check = limits_step(settings)
    told = await anyio.to_thread.run_sync(check)
    assert told == f"counted at valkey://127.0.0.1:{redis.port}/0 for all workers and nodes"


async def test_ping_names_what_failed(redis: FakeRedis) -> None:
    assert await anyio.to_thread.run_sync(partial(ping, redis.url)) is None
    assert await anyio.to_thread.run_sync(partial(ping, FakeRedis().url)) == "ConnectionError"


@pytest.mark.parametrize(
    "url",
    [
        *("redis://127.0.0.1", "redis://:secret@redis.internal:6379/1", "rediss://user:p%40ss@[::1]:6380"),
        *("valkey://cache:6379/0", "valkeys://cache"),
    ],
)
def test_urls_of_both_servers_are_accepted(url: str) -> None:
    assert check_limits_url(url) == url
    assert redis_url(url).startswith("redis")
    assert "secret" not in shown_limits_url(url)
    assert "p%40ss" not in shown_limits_url(url)
