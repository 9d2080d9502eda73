"""The threads of requests, and what becomes of a call when they stop."""

import threading
from collections.abc import Iterator

import pytest
from support.waiting import wait_until

from gatehouse.shared.service.deadline import DeadlineExceeded
from gatehouse.shared.service.request_threads import RequestThreads


@pytest.fixture
def threads() -> Iterator[RequestThreads]:
    pool = RequestThreads(1, "test")
    yield pool
    pool.stop()


def test_a_call_returns_and_raises_what_its_function_does(threads: RequestThreads) -> None:
    assert threads.submit(divmod, 7, 2).result() == (3, 1)
    assert isinstance(threads.submit(divmod, 7, 0).exception(), ZeroDivisionError)


def test_a_call_that_runs_when_the_threads_stop_is_completed(threads: RequestThreads) -> None:
    may_end = threading.Event()
    running, waiting = threads.submit(may_end.wait), threads.submit(divmod, 7, 2)
    wait_until(running.running)
    stopping = threading.Thread(target=threads.stop)
    stopping.start()
    wait_until(lambda: is_refused(threads))
    assert stopping.is_alive()
    may_end.set()
    stopping.join()
    assert running.result()
    assert isinstance(waiting.exception(), DeadlineExceeded), "its request must get a response"


def is_refused(threads: RequestThreads) -> bool:
    try:
        threads.submit(int)
    except DeadlineExceeded:
        return True
    return False


def test_a_call_after_the_stop_is_refused_like_one_during_an_overload(threads: RequestThreads) -> None:
    assert threads.submit(divmod, 7, 2).result() == (3, 1)
    threads.stop()
    with pytest.raises(DeadlineExceeded):
        threads.submit(divmod, 7, 2)
