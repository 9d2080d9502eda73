"""The chains of the audit log: each row is authenticated together with the row of the same writer before it.

A writer is not a process but a chain of rows that were committed one after the other. A process has one chain for its
batches, and one for each of its transactions that commit at the same time. Rows get their numbers and links right
before they are inserted, and a chain is continued only after the database has confirmed the commit. So neither a
rollback nor an outage nor a lost answer to a COMMIT leaves a gap: whatever is missing in a chain was removed.
"""

import itertools
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from gatehouse.shared.service.audit.keys import AuditKeys

MAX_GAP: Final = 3600 * 1000
"""Milliseconds between the times of two rows of a chain, at most. Pruning relies on it: it tells from the time of a row
where the next row of its chain can be."""


class AuditRow(NamedTuple):
    """The values of one event as a database driver stores them."""

    time: int
    """Milliseconds since the epoch."""
    request_id: str | None
    actor: str | None
    jti: str | None
    action: str
    object: str | None
    outcome: str
    reason: str | None
    detail: str
    """JSON."""


CHAIN_COLUMNS: Final = ("writer", "sequence", "kid")

AUTHENTICATED: Final = (*CHAIN_COLUMNS, *AuditRow._fields)
"""The columns that a link authenticates, in this order: all but the id, which the database assigns, and the link."""

LINKED: Final = ("link", *AUTHENTICATED)
"""The columns of a row that is ready to be inserted."""


class Chain(NamedTuple):
    """A chain up to its last committed row."""

    writer: str
    sequence: int = 0
    link: str = ""
    time: int | None = None
    """The time of the last row; None if there is none."""
    kid: str = ""
    """The key of all rows. With another key, another chain begins: nothing may follow the rows of a retired one."""


class Chains:
    """Creates and extends the chains of one process."""

    def __init__(self, keys: Callable[[], AuditKeys]) -> None:
        """`keys` is called for each batch of rows, so that commands that record nothing need no keys."""
        self._keys = keys
        self._process = f"w_{secrets.token_hex(8)}"
        self._numbers = itertools.count(1)

    def new(self) -> Chain:
        """Return an empty chain. Its writer is never used again."""
        return Chain(f"{self._process}.{next(self._numbers)}")

    def extend(self, chain: Chain, rows: Sequence[AuditRow]) -> tuple[Sequence[tuple[Any, ...]], Chain]:
        """Return rows with the values of LINKED, and the chain that they are the end of once they are committed.

        Raises:
            InvalidSettings: there are no usable keys.
        """
        keys = self._keys()
        kid = keys.kid
        writer, sequence, link, time, _ = chain if chain.kid == kid or not chain.sequence else self.new()
        linked = []
        for row in rows:
            if time is not None and abs(row.time - time) > MAX_GAP:
                writer, sequence, link, *_ = self.new()
            sequence, time = sequence + 1, row.time
            values = (writer, sequence, kid, *row)
            link = event_link(keys, link, values)
            linked.append((link, *values))
        return linked, Chain(writer, sequence, link, time, kid)


def is_authentic(keys: AuditKeys, previous: str, link: str, values: Sequence[Any]) -> bool:
    """Tell whether a row with the values of AUTHENTICATED is as it was written, after the row with the link `previous`.

    Raises KeyError if there is no such key.
    """
    # SQLite stores bytes in any column, and JSON does not tell them from text.
    return not any(isinstance(value, bytes) for value in values) and event_link(keys, previous, values) == link


def event_link(keys: AuditKeys, previous: str, values: Sequence[Any]) -> str:
    """Return the link of a row with the values of AUTHENTICATED, after the row with the link `previous`.

    `previous` is empty for the first row of a chain. Raises KeyError if there is no such key.
    """
    return keys.authenticate(values[2], "event", previous, *values)
