"""Limits that are counted on a real Redis server: by several processes, and while it is away, slow or restarted."""

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from local_stack import LocalStack
from redis import Redis
from redis.exceptions import NoPermissionError
from support.documents import ROOT
from support.redis_server import SERVER, RedisServer

from gatehouse.shared.service import shared_counts
from gatehouse.shared.service.limits import Exceeded, Limits
from gatehouse.shared.service.metrics import UNCOUNTED
from gatehouse.shared.service.rates import Rate
from gatehouse.shared.service.shared_counts import PAUSE, SharedCounts, ping

if SERVER is None:
    pytest.skip("install redis-server or valkey-server", allow_module_level=True)

pytestmark = pytest.mark.anyio

FIVE = Rate(5, "minute")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait longer than a busy machine takes."""
    monkeypatch.setattr(shared_counts, "WAIT", 10)


def node(redis: RedisServer, workers: int = 1) -> Limits:
    return Limits(workers, SharedCounts(redis.url, "https://as.example.com", UNCOUNTED, time.monotonic), time.monotonic)


@pytest.mark.usefixtures("_patient")
async def test_all_processes_together_allow_exactly_the_rate(redis: RedisServer) -> None:
    nodes = [node(redis) for _ in range(3)]
    limits = [each.limit("calls", FIVE) for each in nodes]
    answers = await asyncio.gather(*(limit.hit("a") for limit in limits for _ in range(8)))
    refused = [answer for answer in answers if answer is not None]
    assert len(refused) == 19
    assert all(answer.allowed == "5/minute" and 1 <= answer.wait <= 60 for answer in refused)
    assert await limits[0].hit("b") is None
    for each in nodes:
        await each.close()


@pytest.fixture
def restricted(tmp_path: Path) -> Iterator[RedisServer]:
    """A server with the users of docs/deployment.md."""
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    [users] = re.findall(r"^user default off\nuser gatehouse .*$", page, re.MULTILINE)
    lines = users.replace("$(cat /etc/gatehouse/redis-password)", "secret").splitlines()
    server = RedisServer(tmp_path, lines, "gatehouse:secret@")
    server.start()
    yield server
    server.stop()


@pytest.mark.usefixtures("_patient")
async def test_the_user_of_the_page_may_count_and_nothing_else(
    restricted: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    limits = node(restricted)
    limit = limits.limit("calls", Rate(1, "minute"))
    assert await limit.peek("a") is None
    assert await limit.hit("a") is None
    assert await limit.hit("a") == await limit.peek("a") == Exceeded("calls", "1/minute", 60)
    await limits.close()
    assert caplog.text == "", "the server has counted"
    assert ping(restricted.url) is None
    assert ping(restricted.url.replace("gatehouse:secret@", "")) == "AuthenticationError"
    with Redis.from_url(restricted.url) as client:
        for command in (("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*"), ("LPUSH", "another", "1")):
            with pytest.raises(NoPermissionError):
                client.execute_command(*command)


@pytest.mark.usefixtures("_patient")
async def test_a_window_ends_on_the_server(redis: RedisServer) -> None:
    limits = node(redis)
    limit = limits.limit("calls", Rate(2, "second"))
    assert [await limit.hit("a") is None for _ in range(3)] == [True, True, False]
    await asyncio.sleep(1.1)
    assert await limit.hit("a") is None
    await limits.close()


async def test_a_suspended_server_delays_one_request_by_50_ms(redis: RedisServer) -> None:
    limits = node(redis, workers=5)
    limit = limits.limit("calls", FIVE)
    assert await limit.hit("a") is None
    with redis.suspended():
        started = time.monotonic()
        assert await limit.hit("a") is None
        first = time.monotonic() - started
        assert await limit.hit("a") == Exceeded("calls", "5/minute", 60), "the share of one of five workers"
        others = time.monotonic() - started - first
    print(f"\nsuspended: first request {first * 1000:.1f} ms, second {others * 1000:.2f} ms")
    await asyncio.sleep(PAUSE)
    assert await limit.hit("a") is None
    await limits.close()


async def test_a_burst_of_one_client_does_not_end_the_common_count(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    limits = node(redis)
    limit = limits.limit("calls", Rate(500, "minute"))

    async def call() -> bool:
        allowed = await limit.hit("a") is None
        # Occupy the event loop, as the rest of a request does.
        sum(range(20_000))
        return allowed

    answers = await asyncio.gather(*(call() for _ in range(600)))
    print(f"\nburst: {sum(answers)} of 600 calls allowed")
    assert not caplog.records, "the server is not away"
    await limits.close()


@pytest.mark.usefixtures("_patient")
async def test_a_restarted_server_counts_again(redis: RedisServer) -> None:
    limits = node(redis)
    limit = limits.limit("calls", Rate(1, "minute"))
    assert await limit.hit("a") is None
    assert await limit.hit("a") is not None
    redis.stop()
    assert await limit.hit("a") is None, "the process counts"
    assert await limit.hit("a") is not None
    redis.start()
    await asyncio.sleep(PAUSE)
    assert await limit.hit("a") is None, "the server has lost its counts"
    assert await limit.hit("a") is not None
    await limits.close()


def test_the_workers_of_a_server_count_together(redis: RedisServer, tmp_path: Path) -> None:
    settings = {"AUTHSERVER_LIMITS_URL": redis.url, "AUTHSERVER_LIMIT_TOKEN_REQUESTS": "20/hour"}
    stack = LocalStack(tmp_path / "stack", settings=settings)
    stack.init()
    client = stack.create_client("agent", "env:read")
    basic, form = (client["client_id"], client["client_secret"]), {"grant_type": "client_credentials"}
    try:
        stack.start("authserver")
        stack.wait_until_ready("authserver")
        # A connection each, so that both workers serve some of them.
        answers = [httpx2.post(f"{stack.issuer}/token", auth=basic, data=form).status_code for _ in range(40)]
    finally:
        stack.stop()
    assert answers == [200] * 20 + [429] * 20
