"""The deadline of a request."""

import pytest
from support.clock import FakeClock

from gatehouse.shared.service import deadline


@pytest.fixture(autouse=True)
def monotonic(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    monkeypatch.setattr(deadline, "monotonic", clock)
    return clock


def test_without_a_request_each_wait_has_the_whole_limit(monotonic: FakeClock) -> None:
    monotonic.advance(60)
    assert (deadline.remaining(), deadline.remaining(2)) == (deadline.WAIT_LIMIT, 2)


def test_all_waits_of_a_request_share_its_limit(monotonic: FakeClock) -> None:
    with deadline.renewed():
        deadline.begin(5)
        monotonic.advance(3)
        assert (deadline.remaining(), deadline.remaining(1)) == (2, 1)
        monotonic.advance(3)
        assert deadline.remaining() == 0
        deadline.begin(5)
        assert deadline.remaining() == 5, "the next request of the connection"


def test_work_does_not_count(monotonic: FakeClock) -> None:
    with deadline.renewed(5):
        monotonic.advance(1)
        with pytest.raises(ZeroDivisionError), deadline.Paused():
            monotonic.advance(60)
            with deadline.renewed(5):
                monotonic.advance(4)
                assert deadline.remaining() == 1, "a transaction of the tool"
            raise ZeroDivisionError
        assert deadline.remaining() == 4
