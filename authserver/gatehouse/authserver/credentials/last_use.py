"""Records when each credential was last used, and writes it to the database in the background.

A request only notes the time in memory. The process writes each credential at most once a minute. A crash loses the
times of the last 70 seconds or so, and nothing else.
"""

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import TypeAlias, cast

from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import ClientKeyRow, ClientSecretRow, CredentialRow, ResourceCredentialRow
from gatehouse.shared.protocol.clock import Clock

INTERVAL = 60
"""Minimum seconds between two writes of one credential."""

_AT_ONCE = 100
"""Credentials per transaction. SQLite has one writer, and requests wait for it."""

StoredCredential: TypeAlias = type[ClientSecretRow] | type[ClientKeyRow] | type[ResourceCredentialRow]
_Credential: TypeAlias = tuple[StoredCredential, tuple[str, ...]]


class LastUse:
    """The uses that this process has seen."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._noted: dict[_Credential, int] = {}
        self._written: dict[_Credential, int] = {}
        self._lock = threading.Lock()

    def note(self, row: StoredCredential, *key: str) -> None:
        """Note that a credential, named by its primary key, was used now."""
        now = int(self._clock())
        with self._lock:
            self._noted[row, key] = now

    def write(self, *, everything: bool = False) -> None:
        """Write the times that are due, or `everything`. Raises SQLAlchemyError; unwritten times stay noted."""
        due = self._take(everything=everything)
        try:
            for batch in _batches(due):
                self._write(batch)
                for credential in batch:
                    del due[credential]
        finally:
            with self._lock:
                for credential, used_at in due.items():
                    # A use noted meanwhile is newer.
                    self._noted.setdefault(credential, used_at)
                    self._written.pop(credential, None)

    def close(self) -> None:
        """Write everything, if the database is available."""
        with suppress(Exception):
            self.write(everything=True)

    def _take(self, *, everything: bool) -> dict[_Credential, int]:
        now = int(self._clock())
        with self._lock:
            # If the clock is set back, a credential must not go unwritten until the clock has caught up.
            self._written = {known: at for known, at in self._written.items() if abs(now - at) < INTERVAL}
            due = [credential for credential in self._noted if everything or credential not in self._written]
            self._written.update(dict.fromkeys(due, now))
            return {credential: self._noted.pop(credential) for credential in due}

    def _write(self, batch: dict[_Credential, int]) -> None:
        with self._database.write() as session:
            for (row, key), used_at in batch.items():
                # Skip a row that a command has locked, and a credential that was deleted.
                found = cast("CredentialRow | None", session.get(row, key, with_for_update={"skip_locked": True}))
                if found is not None and (found.last_used_at or 0) < used_at:
                    found.last_used_at = used_at


def _batches(due: dict[_Credential, int]) -> Iterator[dict[_Credential, int]]:
    credentials = list(due)
    for start in range(0, len(credentials), _AT_ONCE):
        yield {credential: due[credential] for credential in credentials[start : start + _AT_ONCE]}
