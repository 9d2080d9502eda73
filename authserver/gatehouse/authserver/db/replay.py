"""What may be used once (RFC 7523 3, item 7; RFC 7519 4.1.7)."""

import hashlib

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError

from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import SpentAssertionRow
from gatehouse.shared.protocol.clock import LEEWAY, Clock


class ReplayStore:
    """Spends identifiers by one INSERT each: of two uses at once, on any node, one wins."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def spend(self, purpose: str, client_id: str, jti: str, expires_at: int) -> bool:
        """Spend a `jti` of a client for one purpose. Tell whether it was still to be had.

        It is kept until `expires_at` (seconds since the epoch) and twice the leeway: once because that long the
        assertion is accepted, and once because another node, whose clock is behind the one that removes it, accepts it
        for as long as it is behind. Only for assertions that are verified: else anybody could spend another client's.
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
        """Forget what has expired."""
        with self._database.write() as session:
            session.execute(delete(SpentAssertionRow).where(SpentAssertionRow.expires_at < int(self._clock())))
