"""A cache of values that other processes may change: each is loaded again after a short, exact time."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from cachetools import LRUCache

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")

MAX_AGE = 1.0
"""Seconds. The default: a change of a client, a key or a secret takes effect within this time."""

_SIZE = 4096


class MustWait(Exception):
    """The result is not in memory, and the caller said that it must not wait."""


@dataclass(frozen=True, slots=True)
class _Load(Generic[ValueT]):
    started: float
    result: "Future[ValueT]" = field(default_factory=Future)


class LoadingCache(Generic[KeyT, ValueT]):
    """Returns what `load` returned for a key at most `max_age` seconds ago, and loads it otherwise.

    Threads that miss the same key at the same time share one load. Whatever `load` returns is remembered, None
    included, so that known and unknown keys cost the same. An exception is raised to every thread that waited for the
    load, and is not remembered. At most `size` keys are kept; the least recently used one makes room.
    """

    def __init__(
        self,
        load: Callable[[KeyT], ValueT],
        *,
        max_age: float = MAX_AGE,
        size: int = _SIZE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._max_age = max_age
        self._monotonic = monotonic
        self._lock = threading.Lock()
        # cachetools.TTLCache would count the age from the end of a load. A change that commits while the load runs
        # must not stay hidden for longer than max_age, so each value carries the time at which its load began.
        self._values: LRUCache[KeyT, tuple[float, ValueT]] = LRUCache(size)
        self._loads: dict[KeyT, _Load[ValueT]] = {}

    def get(self, key: KeyT, *, wait: bool = True) -> ValueT:
        """Return the value of a key. Raises whatever `load` raises, and MustWait without `wait` if it would load."""
        now = self._monotonic()
        with self._lock:
            known = self._values.get(key)
            if known is not None and now - known[0] < self._max_age:
                return known[1]
            if not wait:
                raise MustWait
            running = self._loads.get(key)
            # A load that began too long ago would return a value that is too old for this caller.
            joined = running is not None and now - running.started < self._max_age
            load = running if running is not None and joined else _Load(now)
            self._loads[key] = load
        return load.result.result() if joined else self._run(key, load)

    def put(self, key: KeyT, value: ValueT, started: float) -> None:
        """Remember a value that was loaded in another way, by a load that began at `started` of the same clock."""
        with self._lock:
            self._keep(key, (started, value))

    def _run(self, key: KeyT, load: _Load[ValueT]) -> ValueT:
        try:
            value = self._load(key)
        except BaseException as error:
            self._finish(key, load)
            load.result.set_exception(error)
            raise
        self._finish(key, load, (load.started, value))
        load.result.set_result(value)
        return value

    def _finish(self, key: KeyT, load: _Load[ValueT], entry: tuple[float, ValueT] | None = None) -> None:
        with self._lock:
            if self._loads.get(key) is load:
                del self._loads[key]
            if entry is not None:
                self._keep(key, entry)

    def _keep(self, key: KeyT, entry: tuple[float, ValueT]) -> None:
        known = self._values.get(key)
        # A later load of the same key may have finished first.
        if known is None or known[0] <= entry[0]:
            self._values[key] = entry
