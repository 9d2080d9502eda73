"""Caches of values that other processes may change: each is loaded again after a short, exact time."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from cachetools import LRUCache

from gatehouse.shared.service.deadline import WAIT_LIMIT, DeadlineExceeded, before_deadline

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")

MAX_AGE = 1.0
"""Seconds. The default: a change of a client, a key or a secret takes effect within this time."""

SIZE = 4096
"""Keys that a cache keeps by default."""

MAX_GROUP: Final = 64
"""Keys that are loaded at once, at most."""

MAX_WAITING: Final = 4096
"""Keys that may wait to be loaded. While the database hangs, those of requests that have given up would add up."""


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
        size: int = SIZE,
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

    def forget(self, key: KeyT) -> None:
        """Load a key again at its next use. What a running load returns is not remembered."""
        with self._lock:
            self._values.pop(key, None)
            self._loads.pop(key, None)

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
            # Another load may have taken its place, because this one took too long or the key was forgotten.
            if self._loads.get(key) is load:
                del self._loads[key]
                if entry is not None:
                    self._keep(key, entry)

    def _keep(self, key: KeyT, entry: tuple[float, ValueT]) -> None:
        known = self._values.get(key)
        # A later load of the same key may have finished first.
        if known is None or known[0] <= entry[0]:
            self._values[key] = entry


class GroupLoadingCache(LoadingCache[KeyT, ValueT]):
    """A LoadingCache for an event loop: the keys that requests wait for are loaded in groups.

    While one group is loaded, the next one forms. Otherwise each request of a large fleet, whose keys are rarely in
    memory, would need a thread and a transaction of its own.
    """

    def __init__(
        self,
        load: Callable[[Sequence[KeyT]], Mapping[KeyT, ValueT]],
        *,
        max_age: float = MAX_AGE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create the cache. `load` returns a value for each key that it is given."""
        super().__init__(lambda key: load([key])[key], max_age=max_age, monotonic=monotonic)
        self._load_group = load
        self._waiting: dict[KeyT, asyncio.Future[ValueT]] = {}
        self._loading: asyncio.Task[None] | None = None

    async def get_async(self, key: KeyT, pool: Executor | None) -> ValueT:
        """Return the value of a key. It is loaded in a thread of the pool if it has to be loaded.

        Raises:
            DeadlineExceeded, SQLAlchemyError: the database is unavailable, or too many keys wait to be loaded.
        """
        with suppress(MustWait):
            return self.get(key, wait=False)
        waiting = self._waiting.get(key)
        if waiting is None:
            if len(self._waiting) >= MAX_WAITING:
                raise DeadlineExceeded
            waiting = self._waiting[key] = asyncio.get_running_loop().create_future()
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._load_waiting(pool))
        # Other requests may wait for the same key.
        return await before_deadline(asyncio.shield(waiting))

    async def _load_waiting(self, pool: Executor | None) -> None:
        """Load group after group, in a thread, until no request waits."""
        while self._waiting:
            if group := self._next_group():
                await self._settle(group, pool)

    def _next_group(self) -> "dict[KeyT, asyncio.Future[ValueT]]":
        """Return what to load next. Keys that were loaded while they waited are not loaded again."""
        group = {}
        for key in list(self._waiting)[:MAX_GROUP]:
            waiting = self._waiting.pop(key)
            try:
                waiting.set_result(self.get(key, wait=False))
            except MustWait:
                group[key] = waiting
        return group

    async def _settle(self, group: "dict[KeyT, asyncio.Future[ValueT]]", pool: Executor | None) -> None:
        """Load a group. If that fails, load one key after the other: a row that cannot be read fails only its own."""
        began = self._monotonic()
        try:
            # The thread does not get the deadline of a request, because several wait.
            values = await asyncio.get_running_loop().run_in_executor(pool, self._load_and_keep, list(group))
        except Exception as error:  # noqa: BLE001 - whatever a corrupt row or the database raises
            for key, waiting in group.items():
                # While the database hangs, each attempt takes its time. The requests have then given up.
                if len(group) > 1 and self._monotonic() - began < WAIT_LIMIT:
                    await self._settle({key: waiting}, pool)
                    continue
                waiting.set_exception(error)
                # All requests may have given up. The error would then be logged as one that nobody handled.
                waiting.exception()
            return
        for key, waiting in group.items():
            waiting.set_result(values[key])

    def _load_and_keep(self, keys: Sequence[KeyT]) -> Mapping[KeyT, ValueT]:
        started = self._monotonic()
        values = self._load_group(keys)
        with self._lock:
            for key, value in values.items():
                self._keep(key, (started, value))
        return values
