"""How much a program may write, how much of it is logged, and when it is started again."""

import pytest
from support.clock import FakeClock

from gatehouse.resourceserver.upstream.stdio.throttles import Allowance, Backoff, LimitedLog
from gatehouse.resourceserver.upstream.upstream import UpstreamUnavailable


def test_an_allowance_is_a_burst_and_then_a_rate() -> None:
    clock = FakeClock()
    allowance = Allowance(3, 1, clock)
    assert [allowance.spend() for _ in range(3)] == [True, True, True]
    assert allowance.due_in == 0
    assert not allowance.spend()
    assert allowance.due_in == 1
    clock.advance(2)
    assert [allowance.spend() for _ in range(2)] == [True, False]
    clock.advance(1000)
    assert not allowance.spend(4), "more than the burst"


def test_a_log_is_limited_and_says_how_much_is_missing() -> None:
    clock, written = FakeClock(), list[str]()
    log = LimitedLog(written.append, 2, clock)
    for text in "abcd":
        log.add(text)
    assert written == ["a", "b"]
    clock.advance(1)
    log.add("e")
    assert written == ["a", "b", "(2 more lines, which are not logged)", "e"]
    log.report()
    assert len(written) == 4


def test_a_backoff_doubles_up_to_a_minute_and_starts_again_after_a_long_run() -> None:
    clock = FakeClock()
    backoff, pauses = Backoff(clock), []
    for _ in range(9):
        backoff.check()
        backoff.fail()
        start = clock.now
        while True:
            try:
                backoff.check()
            except UpstreamUnavailable:
                clock.advance(1)
            else:
                break
        pauses.append(clock.now - start)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    clock.advance(61)
    backoff.fail()
    clock.advance(0.5)
    with pytest.raises(UpstreamUnavailable, match="the program failed, and is not started again for"):
        backoff.check()
    clock.advance(0.5)
    backoff.check()
    backoff.fail()
    backoff.succeed()
    backoff.fail()
    clock.advance(1)
    backoff.check()
