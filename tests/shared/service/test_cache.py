"""The cache: a change takes effect within a second, whichever process made it."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from support.clock import FakeClock

from gatehouse.shared.service.cache import LoadingCache, MustWait


class Source:
    """A source that counts its loads."""

    def __init__(self) -> None:
        self.values: dict[str, str | None] = {}
        self.loads: list[str] = []

    def load(self, key: str) -> str | None:
        self.loads.append(key)
        return self.values.get(key)


class Gated:
    """A load that waits for the test: each call returns, or raises, what its own `outcomes` entry says."""

    def __init__(self) -> None:
        self.started = threading.Semaphore(0)
        self.outcomes: list[Future[str]] = []

    def __call__(self, _: str) -> str:
        outcome: Future[str] = Future()
        self.outcomes.append(outcome)
        self.started.release()
        return outcome.result(10)


@pytest.fixture
def source() -> Source:
    return Source()


def test_a_value_is_loaded_once_a_second(source: Source, clock: FakeClock) -> None:
    cache = LoadingCache(source.load, monotonic=clock)
    source.values["a"] = "old"
    assert cache.get("a") == "old"
    source.values["a"] = "new"
    clock.advance(0.75)
    assert cache.get("a") == "old"
    clock.advance(0.25)
    assert cache.get("a") == "new"
    assert source.loads == ["a", "a"]


def test_a_missing_value_is_cached_too(source: Source, clock: FakeClock) -> None:
    cache = LoadingCache(source.load, monotonic=clock)
    assert cache.get("a") is None
    assert cache.get("a") is None
    assert source.loads == ["a"]
    source.values["a"] = "here"
    clock.advance(1)
    assert cache.get("a") == "here"


def test_the_age_counts_from_the_start_of_the_load(clock: FakeClock) -> None:
    """A change that commits while a slow load runs must not stay hidden for longer than a second."""
    loads: list[float] = []

    def slow(_: str) -> float:
        loads.append(clock())
        clock.advance(0.5)
        return loads[-1]

    cache = LoadingCache(slow, monotonic=clock)
    first = cache.get("a")
    clock.advance(0.25)
    assert cache.get("a") == first
    clock.advance(0.25)
    assert cache.get("a") != first


def test_a_failed_load_is_not_cached(source: Source, clock: FakeClock) -> None:
    def load(key: str) -> str:
        value = source.load(key)
        if value is None:
            raise LookupError(key)
        return value

    cache = LoadingCache(load, monotonic=clock)
    with pytest.raises(LookupError):
        cache.get("a")
    source.values["a"] = "here"
    assert cache.get("a") == "here"


def test_the_least_recently_used_key_is_evicted(source: Source, clock: FakeClock) -> None:
    cache = LoadingCache(source.load, size=2, monotonic=clock)
    for key in ("a", "b", "a", "c", "a", "b"):
        cache.get(key)
    assert source.loads == ["a", "b", "c", "b"]


def test_the_age_and_the_size_are_parameters(source: Source, clock: FakeClock) -> None:
    cache = LoadingCache(source.load, max_age=0.25, monotonic=clock)
    cache.get("a")
    clock.advance(0.25)
    cache.get("a")
    assert source.loads == ["a", "a"]


@pytest.fixture
def in_thread() -> Callable[..., Future[str]]:
    """Run a function in a new thread, and return the future of its result."""
    pools: list[ThreadPoolExecutor] = []

    def start(function: Callable[[str], str], key: str) -> Future[str]:
        pools.append(ThreadPoolExecutor(1))
        future = pools[-1].submit(function, key)
        pools[-1].shutdown(wait=False)
        return future

    return start


def test_threads_that_miss_one_key_share_a_load(clock: FakeClock, in_thread: Callable[..., Future[str]]) -> None:
    """The last thread comes while the load runs, and still gets the value of that load."""
    load = Gated()
    cache = LoadingCache(load, monotonic=clock)
    first = in_thread(cache.get, "a")
    assert load.started.acquire(timeout=10)
    clock.advance(0.75)
    others = [in_thread(cache.get, "a") for _ in range(3)]
    load.outcomes[0].set_result("loaded")
    assert {future.result(10) for future in (first, *others)} == {"loaded"}
    assert len(load.outcomes) == 1


def test_a_load_of_one_key_does_not_delay_another(clock: FakeClock, in_thread: Callable[..., Future[str]]) -> None:
    load = Gated()
    cache = LoadingCache(load, monotonic=clock)
    slow, quick = in_thread(cache.get, "slow"), in_thread(cache.get, "quick")
    assert load.started.acquire(timeout=10)
    assert load.started.acquire(timeout=10)
    load.outcomes[1].set_result("second")
    load.outcomes[0].set_result("first")
    assert {slow.result(10), quick.result(10)} == {"first", "second"}


def test_a_failure_reaches_every_waiting_thread(clock: FakeClock, in_thread: Callable[..., Future[str]]) -> None:
    load = Gated()
    cache = LoadingCache(load, monotonic=clock)
    first = in_thread(cache.get, "a")
    assert load.started.acquire(timeout=10)
    second = in_thread(cache.get, "a")
    load.outcomes[0].set_exception(LookupError("a"))
    for future in (first, second):
        with pytest.raises(LookupError):
            future.result(10)


def test_a_load_that_began_too_long_ago_is_not_joined(clock: FakeClock, in_thread: Callable[..., Future[str]]) -> None:
    """Its value may be older than a second when it arrives, so a new load starts and its value is kept."""
    load = Gated()
    cache = LoadingCache(load, monotonic=clock)
    first = in_thread(cache.get, "a")
    assert load.started.acquire(timeout=10)
    clock.advance(1)
    second = in_thread(cache.get, "a")
    assert load.started.acquire(timeout=10)
    load.outcomes[1].set_result("new")
    assert second.result(10) == "new"
    load.outcomes[0].set_result("old")
    assert first.result(10) == "old"
    assert cache.get("a") == "new"


def test_a_caller_that_must_not_wait_gets_only_what_is_in_memory(source: Source, clock: FakeClock) -> None:
    source.values["a"] = "1"
    cache = LoadingCache(source.load, monotonic=clock)
    with pytest.raises(MustWait):
        cache.get("a", wait=False)
    assert source.loads == []
    cache.get("a")
    cache.get("unknown")
    assert [cache.get(key, wait=False) for key in ("a", "unknown")] == ["1", None]
    clock.advance(1)
    with pytest.raises(MustWait):
        cache.get("a", wait=False)
    assert source.loads == ["a", "unknown"]


def test_a_forgotten_value_is_loaded_again(source: Source, clock: FakeClock) -> None:
    cache = LoadingCache(source.load, monotonic=clock)
    source.values["a"] = "old"
    assert cache.get("a") == "old"
    source.values["a"] = "new"
    cache.forget("a")
    cache.forget("unknown")
    assert cache.get("a") == "new"


def test_a_load_that_began_before_its_key_was_forgotten_is_not_remembered(
    clock: FakeClock, in_thread: Callable[..., Future[str]]
) -> None:
    """It may have read what was there before the change."""
    load = Gated()
    cache = LoadingCache(load, monotonic=clock)
    first = in_thread(cache.get, "a")
    assert load.started.acquire(timeout=10)
    cache.forget("a")
    second = in_thread(cache.get, "a")
    assert load.started.acquire(timeout=10)
    load.outcomes[0].set_result("old")
    assert first.result(10) == "old"
    load.outcomes[1].set_result("new")
    assert second.result(10) == "new"
    assert cache.get("a") == "new"
    assert len(load.outcomes) == 2
