"""A cache whose entries live for at most one second: a change of client or key takes effect within it."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")

MAX_AGE = 1.0
"""Seconds."""


class OneSecondCache(Generic[KeyT, ValueT]):
    """Remembers what `load` returned, absence included, so that unknown and known keys cost the same."""

    def __init__(
        self,
        load: Callable[[KeyT], ValueT],
        *,
        size: int = 4096,
        max_age: float = MAX_AGE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._size = size
        self._max_age = max_age
        self._monotonic = monotonic
        self._entries: OrderedDict[KeyT, tuple[float, ValueT]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: KeyT) -> ValueT:
        """Return the value, loaded at most `max_age` seconds ago. Raises whatever `load` raises."""
        # The age counts from before the load: what changed meanwhile must not be hidden for longer.
        now = self._monotonic()
        with self._lock:
            entry = self._entries.get(key)
        if entry is not None and now - entry[0] < self._max_age:
            return entry[1]
        value = self._load(key)
        with self._lock:
            self._entries[key] = (now, value)
            self._entries.move_to_end(key)
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)
        return value
