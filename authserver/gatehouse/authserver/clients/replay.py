"""Replay protection: the assertions of clients, and platform tokens for one use, are accepted once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from sqlalchemy import Connection, delete

from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.group_commit import GroupCommit, WriteAgain
from gatehouse.authserver.db.models import SpentAssertionRow
from gatehouse.authserver.errors import AuthFailure, invalid_client
from gatehouse.shared.protocol.clock import LEEWAY, Clock
from gatehouse.shared.service.database import placeholder

CLIENT_ASSERTION: Final = "token_endpoint"
"""The purpose that the assertion of a client is spent for."""

PLATFORM_TOKEN: Final = "platform_token"  # noqa: S105 - a purpose
"""The purpose that a platform token for one use is spent for."""

NEW_ASSERTION: Final = "Make a new assertion, with a new jti, for each request."
"""The remediation of an assertion that was used before, or that can be used no more."""

_ASK_AGAIN = (
    "Request a new token from the platform for each token request. If the platform hands out the same one again, add"
    " the trusted issuer with --one-time no."
)

_INSERT_UNUSED = (
    "INSERT INTO spent_assertion (purpose, client_id, jti_digest, expires_at) VALUES {} ON CONFLICT DO NOTHING"
)


@dataclass(frozen=True, slots=True, order=True)
class AcceptedAssertion:
    """A valid assertion that stands for a client, if it is unused."""

    client_id: str
    jti_digest: bytes
    """SHA-256 of what identifies it: its `jti`, or what the issuer of a platform token signed."""
    expires_at: float
    """Its `exp`, in seconds since the epoch."""
    purpose: str = CLIENT_ASSERTION
    """What it is spent for; part of the primary key in the database."""


class ReplayStore:
    """Marks each `jti` as used with one INSERT: of two concurrent uses, on any node, one succeeds.

    Only the `jti` of an AcceptedAssertion is marked: otherwise anyone could use up the identifiers of another client.
    Its row is committed before the answer leaves. If the answer is lost, the assertion is spent all the same, and the
    client has to make a new one.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._group = GroupCommit(database, _insert_unused, name="spent assertions")

    def spend_and_wait(self, accepted: AcceptedAssertion) -> None:
        """Mark the `jti` of an assertion as used. Not for use on an event loop.

        Raises:
            OAuthError: `invalid_client`: it was used before.
            DeadlineExceeded, SQLAlchemyError: it may be used now, or not.
        """
        _require_unused(accepted, is_unused=self._group.write_and_wait(accepted))

    async def spend_async(self, accepted: AcceptedAssertion) -> None:
        """Mark the `jti` of an assertion as used, without blocking the event loop. Raises as `spend_and_wait`."""
        _require_unused(accepted, is_unused=await self._group.write_async(accepted))

    def check_unused(self, accepted: AcceptedAssertion) -> None:
        """Refuse an assertion whose `jti` was used before, and leave it unused otherwise. Not for use on an event loop.

        Raises:
            OAuthError: `invalid_client`: it was used before.
            SQLAlchemyError: the database is unavailable.
        """
        key = (accepted.purpose, accepted.client_id, accepted.jti_digest)
        with self._database.read() as session:
            _require_unused(accepted, is_unused=session.get(SpentAssertionRow, key) is None)

    def prune(self) -> None:
        """Delete the identifiers of expired assertions. Raises SQLAlchemyError."""
        with self._database.write() as session:
            session.execute(delete(SpentAssertionRow).where(SpentAssertionRow.expires_at < int(self._clock())))

    def close(self) -> None:
        """Write what requests wait for, and stop."""
        self._group.close()


def _insert_unused(connection: Connection, assertions: Sequence[AcceptedAssertion]) -> Sequence[bool]:
    """Insert assertions. Return, for each, whether it was unused."""
    statement = _INSERT_UNUSED.format(_row(connection))
    inserted = connection.exec_driver_sql(statement, _values(assertions)).rowcount
    if inserted < len(assertions) > 1:
        raise WriteAgain(_insert_and_compare)
    return [inserted == len(assertions)] * len(assertions)


def _insert_and_compare(connection: Connection, assertions: Sequence[AcceptedAssertion]) -> Sequence[bool]:
    """Do the same with one statement that says which were unused. It takes longer.

    A client that repeats assertions costs the others of its group one more transaction.
    """
    values = _values(assertions)
    statement = (
        f"{_INSERT_UNUSED.format(', '.join([_row(connection)] * len(values)))} RETURNING purpose, client_id, jti_digest"
    )
    inserted = connection.exec_driver_sql(statement, tuple(chain.from_iterable(values)))
    unused = {tuple(row) for row in inserted}
    results = []
    for accepted in assertions:
        key = accepted.purpose, accepted.client_id, accepted.jti_digest
        results.append(key in unused)
        # A group may hold the same assertion twice.
        unused.discard(key)
    return results


def _row(connection: Connection) -> str:
    return f"({', '.join([placeholder(connection.dialect)] * 4)})"


def _values(assertions: Sequence[AcceptedAssertion]) -> list[tuple[Any, ...]]:
    # An assertion is accepted until its leeway ends, and by a node with a slower clock until another one has ended.
    return [
        (accepted.purpose, accepted.client_id, accepted.jti_digest, math.ceil(accepted.expires_at) + 2 * LEEWAY)
        # The order of all processes: an INSERT waits for another transaction that inserts the same key.
        for accepted in sorted(assertions)
    ]


def _require_unused(accepted: AcceptedAssertion, *, is_unused: bool) -> None:
    if is_unused:
        return
    if accepted.purpose == CLIENT_ASSERTION:
        raise invalid_client(AuthFailure.ASSERTION_REPLAYED, "assertion: jti was used before", NEW_ASSERTION)
    raise invalid_client(AuthFailure.ASSERTION_REPLAYED, "platform token: it was used before", _ASK_AGAIN)
