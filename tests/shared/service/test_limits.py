"""Limits that a process applies by itself."""

import pytest
from support.clock import FakeClock

from gatehouse.shared.service.limits import Exceeded, InFlight, Limit, Limits, MovingWindow
from gatehouse.shared.service.rates import UNLIMITED, Rate

pytestmark = pytest.mark.anyio

TEN = Rate(10, "minute")


def limit(clock: FakeClock, rate: Rate = TEN, workers: int = 1) -> Limit:
    return Limits(workers, None, clock).limit("calls", rate)


async def test_requests_past_the_rate_wait_until_the_oldest_is_a_minute_old(clock: FakeClock) -> None:
    limited = limit(clock)
    assert await limited.hit("a") is None
    clock.advance(20.5)
    assert [await limited.hit("a") for _ in range(9)] == [None] * 9
    assert await limited.hit("a") == Exceeded("calls", "10/minute", 40)
    clock.advance(39)
    assert await limited.hit("a") == Exceeded("calls", "10/minute", 1)
    clock.advance(0.5)
    assert await limited.hit("a") is None
    assert await limited.hit("a") == Exceeded("calls", "10/minute", 21)


async def test_no_minute_has_more_requests_than_the_rate(clock: FakeClock) -> None:
    """A fixed window allows twice the rate at its border, and a sliding one estimates."""
    limited, allowed = limit(clock), []
    for _ in range(600):
        if await limited.hit("a") is None:
            allowed.append(clock())
        clock.advance(0.7)
    assert len(allowed) == 70
    assert max(sum(start <= time < start + 60 for time in allowed) for start in allowed) == 10


async def test_a_refused_request_does_not_prolong_the_wait(clock: FakeClock) -> None:
    limited = limit(clock, Rate(1, "minute"))
    assert await limited.hit("a") is None
    for _ in range(59):
        clock.advance(1)
        assert await limited.hit("a") is not None
    clock.advance(1)
    assert await limited.hit("a") is None


async def test_peeking_tells_what_a_request_would_get_and_counts_nothing(clock: FakeClock) -> None:
    limited = limit(clock, Rate(2, "minute"))
    for _ in range(2):
        assert [await limited.peek("a") for _ in range(3)] == [None] * 3
        assert await limited.hit("a") is None
        clock.advance(20)
    assert [await limited.peek("a") for _ in range(3)] == [await limited.hit("a")] * 3
    assert await limited.peek("a") == Exceeded("calls", "2/minute", 20)
    clock.advance(20)
    assert await limited.peek("a") is None
    assert await limited.peek("b") is None
    assert [await limited.hit("a"), await limited.peek("a")] == [None, Exceeded("calls", "2/minute", 20)]
    assert await limit(clock, UNLIMITED).peek("a") is None


async def test_each_key_has_its_own_count(clock: FakeClock) -> None:
    limited = limit(clock, Rate(1, "minute"))
    assert await limited.hit("a") is None
    assert await limited.hit("a") is not None
    assert await limited.hit("b") is None


async def test_a_limit_that_is_off_counts_nothing(clock: FakeClock) -> None:
    limited = limit(clock, UNLIMITED)
    assert [await limited.hit("a") for _ in range(1000)] == [None] * 1000


async def test_each_worker_allows_its_share_and_reports_the_whole_rate(clock: FakeClock) -> None:
    workers = [limit(clock, TEN, workers=3) for _ in range(3)]
    for worker in workers:
        assert [await worker.hit("a") for _ in range(4)] == [None] * 4
        assert await worker.hit("a") == Exceeded("calls", "10/minute", 60)


def test_keys_without_requests_in_the_window_are_forgotten(clock: FakeClock) -> None:
    window = MovingWindow(TEN, clock)
    for number in range(100):
        window.hit(f"a{number}")
    clock.advance(60)
    window.hit("b")
    assert len(window) == 1


@pytest.mark.threat("T-154")
def test_the_number_of_keys_is_bounded(clock: FakeClock) -> None:
    """Anyone can send any client_id. The key that was used the longest ago makes room."""
    window = MovingWindow(Rate(1, "minute"), clock, size=3)
    for key in ("a", "b", "c"):
        assert window.hit(key) == 0
    assert window.hit("a") > 0
    for number in range(100):
        assert window.hit(f"d{number}") == 0
        assert window.hit("a") > 0, "a key in use keeps its count"
        assert len(window) == 3
    assert window.hit("b") == 0


async def test_closing_limits_without_shared_counts_does_nothing(clock: FakeClock) -> None:
    await Limits(1, None, clock).close()


def test_requests_in_flight_are_limited_per_key() -> None:
    flights = InFlight("concurrent_calls", 2)
    assert [flights.enter("a"), flights.enter("a"), flights.enter("b")] == [None] * 3
    assert flights.enter("a") == Exceeded("concurrent_calls", "2 at once", 1)
    flights.leave("a")
    assert flights.enter("a") is None
    flights.leave("a")
    flights.leave("a")
    flights.leave("b")
    assert len(flights) == 0


def test_0_allows_any_number_of_requests_in_flight() -> None:
    flights = InFlight("concurrent_calls", 0)
    assert [flights.enter("a") for _ in range(100)] == [None] * 100
