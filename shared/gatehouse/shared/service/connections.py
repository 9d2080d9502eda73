"""The connections of a process, with limits of number and of the time that their clients have."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Final

from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.service.transport_refusals import TransportRefusals

if TYPE_CHECKING:
    from gatehouse.shared.service.connection import Connection

HEADER_TIMEOUT: Final = 10.0
"""Seconds for the header of a request: from the connection, or from the first byte of each later request."""

BODY_TIMEOUT: Final = 20.0
"""Seconds from the end of the header to the end of the body. A total, so that no trickle of bytes extends it."""

IDLE_TIMEOUT: Final = 75.0
"""Seconds between two requests."""

WRITE_TIMEOUT: Final = 30.0
"""Seconds in which a client must read what blocks a response: the 64 KiB that the process buffers for it."""

CLOSE_TIMEOUT: Final = 2.0
"""Seconds in which the client must close its side after the server has closed its own."""

DRAIN_IDLE: Final = 2.0
"""Seconds that a connection must have been idle to be closed when the server stops.

One that was used more recently is likely to be used again: its next response announces the close instead.
"""

_FILES_RESERVED: Final = 256
"""File descriptors left to databases, logs, the issuer's keys and status lists, and tools."""

_MAX_CONNECTIONS: Final = 4096
"""Connections of one process, however many files it may open. One that is idle needs about 20 KiB."""

SPARE: Final = 8
"""Files that are left to other uses when the system has no more of them than the connections occupy."""

REDUCED_FOR: Final = 60.0
"""Seconds until as many connections are accepted again."""


log = logging.getLogger(__name__)


def connection_limit(files: int) -> int:
    """Return how many connections a process serves at a time if it may open this many files."""
    return max(1, min(_MAX_CONNECTIONS, files - min(_FILES_RESERVED, files // 2)))


class Wait(Enum):
    """What the client of a connection must do next, with the seconds that it has."""

    REQUEST = ("request", HEADER_TIMEOUT)
    """Send the first byte after connecting."""
    HEADER = ("header", HEADER_TIMEOUT)
    BODY = ("body", BODY_TIMEOUT)
    NEXT_REQUEST = ("next request", IDLE_TIMEOUT)
    READ = ("read", WRITE_TIMEOUT)
    """Read the response."""
    CLOSE = ("close", CLOSE_TIMEOUT)

    @property
    def seconds(self) -> float:
        """How long the client may take."""
        return self.value[1]


class Connections:
    """The connections of one process."""

    def __init__(self, limit: int, refusals: TransportRefusals, monotonic: Clock) -> None:
        self.limit = self._most = limit
        self._reduced = 0.0
        self.refusals = refusals
        self.monotonic = monotonic
        self.open: set[Connection] = set()
        self.strangers: OrderedDict[Connection, None] = OrderedDict()
        """Connections that wait for a client that has not sent a whole request yet, longest first."""
        self.known: OrderedDict[Connection, None] = OrderedDict()
        """Connections that wait for a client that has sent a whole request before, longest first."""
        self.draining = False
        """The server stops: every response announces that its connection closes."""

    @property
    def waiting(self) -> list["Connection"]:
        """Connections that wait for their client."""
        return [*self.strangers, *self.known]

    @property
    def has_waiting(self) -> bool:
        """Whether there is a connection that waits for its client."""
        return bool(self.strangers or self.known)

    def make_room(self) -> bool:
        """Abort the connection that has waited for its client the longest. False if none waits for its client.

        One that has never sent a whole request goes first.
        """
        for connection in self.strangers or self.known:
            connection.abort()
            return True
        return False

    def reduce(self) -> None:
        """Make room and lower the limit for a minute, because the system has no file for another connection."""
        self._reduced = self.monotonic()
        self.limit = max(SPARE, min(self.limit, len(self.open) - SPARE))
        for _ in range(SPARE):
            self.make_room()

    def expire(self) -> None:
        """Close the connections whose client has used up its time. Called once a second."""
        now = self.monotonic()
        if now - self._reduced >= REDUCED_FOR:
            self.limit = self._most
        self._each_waiting(lambda connection: connection.expire(now))
        self.refusals.flush()

    def close_idle(self) -> None:
        """Close the connections that have been idle for long enough to stop. Called repeatedly while draining."""
        now = self.monotonic()

        def close(connection: "Connection") -> None:
            if connection.waits_for in {Wait.REQUEST, Wait.NEXT_REQUEST} and now - connection.since >= DRAIN_IDLE:
                connection.close_unless_received()

        self._each_waiting(close)
        self.expire()

    def _each_waiting(self, act: Callable[["Connection"], None]) -> None:
        """Call a function for each connection that waits for its client. One for which it fails is aborted."""
        for connection in self.waiting:
            try:
                act(connection)
            except Exception:
                # Whatever a transport raises about one connection: an exception would end the worker.
                log.exception("a connection cannot be closed in order")
                with suppress(Exception):
                    connection.abort()
