"""Replay protection: identifiers that may be used once (RFC 7523 3, item 7; RFC 7519 4.1.7)."""

import hashlib

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError

from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import SpentAssertionRow
from gatehouse.shared.protocol.clock import LEEWAY, Clock


class ReplayStore:
    """Marks identifiers as used with one INSERT each: of two concurrent uses, on any node, one succeeds."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def spend(self, purpose: str, client_id: str, jti: str, expires_at: int) -> bool:
        """Mark a `jti` of a client as used for one purpose. Return whether it was unused.

        It is kept until `expires_at` (seconds since the epoch) plus twice the leeway: once because the assertion is
        accepted that long, and once because a node with a slower clock accepts it for longer. Call this for verified
        assertions only: else anyone could use up another client's identifiers.
        """
        row = SpentAssertionRow(
            purpose=purpose,
            client_id=client_id,
            jti_digest=hashlib.sha256(jti.encode()).digest(),
            expires_at=expires_at + 2 * LEEWAY,
        )
        try:
            with self._database.write() as session:
                session.add(row)
        except IntegrityError:
            return False
        return True

    def prune(self) -> None:
        """Delete expired identifiers."""
        with self._database.write() as session:
            session.execute(delete(SpentAssertionRow).where(SpentAssertionRow.expires_at < int(self._clock())))
