"""Keys that several requests wait for are loaded in groups."""

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from support.clock import FakeClock
from support.http_client import run

from gatehouse.shared.service import cache, deadline
from gatehouse.shared.service.cache import MAX_GROUP, GroupLoadingCache

Values = dict[str, str | None]
Cache = GroupLoadingCache[str, str | None]


class Source:
    """Knows no key, and notes every group that is loaded."""

    def __init__(self) -> None:
        self.groups: list[Sequence[str]] = []

    def __call__(self, keys: Sequence[str]) -> Values:
        self.groups.append(keys)
        return dict.fromkeys(keys)


class Gate(Source):
    """Loads when the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.reached = threading.Event()

    def __call__(self, keys: Sequence[str]) -> Values:
        self.reached.set()
        assert self.open.wait(10)
        return super().__call__(keys)


async def get_all(values: Cache, keys: Sequence[str]) -> list[Any]:
    return await asyncio.gather(*(values.get_async(key, None) for key in keys), return_exceptions=True)


async def while_loading(values: Cache, gate: Gate, ask: Callable[[], Awaitable[Any]]) -> Any:
    """Ask for something while the key `a` is being loaded."""
    loading = asyncio.ensure_future(values.get_async("a", None))
    await asyncio.to_thread(gate.reached.wait, 10)
    try:
        return await ask()
    finally:
        gate.open.set()
        assert await loading is None


def test_a_group_has_at_most_64_keys() -> None:
    source = Source()
    keys = [f"{number}" for number in range(MAX_GROUP + 1)]
    assert run(get_all(GroupLoadingCache(source), keys)) == [None] * 65
    assert [len(group) for group in source.groups] == [64, 1]


@pytest.mark.parametrize(
    ("keys", "loaded"), [(["a"], []), (["b", "a"], [["b"]])], ids=["the only one", "one of a group"]
)
def test_a_key_that_was_loaded_while_it_waited_is_not_loaded_again(keys: list[str], loaded: list[list[str]]) -> None:
    gate = Gate()
    values = GroupLoadingCache(gate)

    async def ask() -> Any:
        waiting = asyncio.ensure_future(get_all(values, keys))
        # One turn of the loop for it, one for the requests that it makes, and one to spare.
        for _ in range(3):
            await asyncio.sleep(0)
        return waiting

    async def both() -> None:
        assert await (await while_loading(values, gate, ask)) == [None] * len(keys)

    run(both())
    assert gate.groups == [["a"], *loaded]


def test_a_group_does_not_replace_a_newer_value(clock: FakeClock) -> None:
    def load(keys: Sequence[str]) -> Values:
        if clock() > started:
            return {"a": "newer"}
        clock.advance(0.5)
        # A thread loads the key while the group is loaded.
        assert values.get("a") == "newer"
        return dict.fromkeys(keys, "older")

    started = clock()
    values: Cache = GroupLoadingCache(load, monotonic=clock)
    assert run(values.get_async("a", None)) == "older"
    assert values.get("a") == "newer"


def test_a_request_does_not_wait_beyond_its_deadline() -> None:
    gate = Gate()
    values = GroupLoadingCache(gate)

    async def ask() -> None:
        with deadline.renewed(0), pytest.raises(deadline.DeadlineExceeded):
            await values.get_async("a", None)
        with deadline.renewed(0), pytest.raises(deadline.DeadlineExceeded):
            await values.get_async("b", None)

    run(while_loading(values, gate, ask))


def test_the_number_of_keys_that_wait_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the database hangs, a client that connects and gives up again and again must not fill the memory."""
    gate = Gate()
    values = GroupLoadingCache(gate)
    monkeypatch.setattr(cache, "MAX_WAITING", 2)

    async def ask() -> None:
        for key in ("b", "c"):
            with deadline.renewed(0), pytest.raises(deadline.DeadlineExceeded):
                await values.get_async(key, None)
        with pytest.raises(deadline.DeadlineExceeded):
            await values.get_async("d", None)

    run(while_loading(values, gate, ask))
    assert run(values.get_async("d", None)) is None
    assert gate.groups == [["a"], ["b", "c"], ["d"]]


@pytest.mark.parametrize(
    "error", [ValueError("not JSON"), OperationalError("SELECT", None, Exception("not UTF-8"))], ids=["row", "driver"]
)
def test_a_key_that_cannot_be_loaded_fails_only_its_own_request(error: Exception) -> None:
    def load(keys: Sequence[str]) -> Values:
        if "corrupt" in keys:
            raise error
        return dict.fromkeys(keys)

    assert run(get_all(GroupLoadingCache(load), ["a", "corrupt", "b"])) == [None, error, None]


def test_during_an_outage_every_request_fails(caplog: pytest.LogCaptureFixture) -> None:
    groups: list[Sequence[str]] = []

    def fail(keys: Sequence[str]) -> Values:
        groups.append(keys)
        raise OperationalError("SELECT", None, Exception("gone"))

    async def give_up() -> None:
        values = GroupLoadingCache(fail)
        with deadline.renewed(0), pytest.raises(deadline.DeadlineExceeded):
            await values.get_async("c", None)
        assert all(isinstance(error, OperationalError) for error in await get_all(values, ["a", "b"]))

    run(give_up())
    gc.collect()
    assert groups == [["c"], ["a", "b"], ["a"], ["b"]]
    assert caplog.text == ""


def test_while_the_database_hangs_keys_are_not_tried_one_by_one(clock: FakeClock) -> None:
    """The requests of a group have given up before, and those of the next group wait."""
    groups: list[Sequence[str]] = []

    def hang(keys: Sequence[str]) -> Values:
        groups.append(keys)
        clock.advance(deadline.WAIT_LIMIT)
        raise OperationalError("SELECT", None, Exception("timeout"))

    values: Cache = GroupLoadingCache(hang, monotonic=clock)
    assert all(isinstance(error, OperationalError) for error in run(get_all(values, ["a", "b", "c"])))
    assert groups == [["a", "b", "c"]]
