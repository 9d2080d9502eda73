"""Signing keys and peppers in the database, and the key ring that requests use."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import PepperRow, SigningKeyRow
from gatehouse.authserver.keys.encryption import SealingKey
from gatehouse.authserver.keys.lifecycle import State
from gatehouse.authserver.keys.rotation import Rotation
from gatehouse.authserver.keys.sealed_keys import (
    SEALED_OTHERWISE,
    DecryptedKeys,
    NoUsableKey,
    SealedKeys,
    add_key,
    add_pepper,
    lock_keys,
    open_rows,
)
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.service.cache import MAX_AGE, LoadingCache

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Every key that is in use, opened."""

    signing_key: SigningKey
    peppers: Mapping[str, bytes] = field(repr=False)
    """Pepper by its id. Digests are checked with the one that made them; the newest makes new ones."""
    newest_pepper: str
    jwks: bytes
    """The published key set (RFC 7517 5), as JSON."""
    etag: str


class KeyStore:
    """Reads the key ring, at most once a second, and keeps the last good one while the database is away.

    With a `rotation`, the moves that are due are made before the first ring is given, and before any ring whose key
    may not sign any more: a backup that was restored never signs with a key whose time is over.
    """

    def __init__(
        self,
        database: Database,
        sealed_keys: SealedKeys,
        rotation: Rotation | None = None,
        *,
        max_age: float = MAX_AGE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._cabinet = sealed_keys
        self._rotation = rotation
        self._planned = False
        self._last_good: KeyRing | None = None
        self._outage = False
        self._reported: set[str] = set()
        self._cache: LoadingCache[None, KeyRing] = LoadingCache(
            lambda _: self._load_or_keep(), max_age=max_age, monotonic=monotonic
        )

    def ring(self) -> KeyRing:
        """Return the keys in use.

        Raises:
            NoUsableKey: there is no signing key, or none opens.
            SQLAlchemyError: the database is away and was never reached.
        """
        return self._cache.get(None)

    def _load_or_keep(self) -> KeyRing:
        try:
            self._last_good = self._load()
        except SQLAlchemyError as error:
            if self._last_good is None:
                raise
            if not self._outage:
                log.warning("keys cannot be read again, the last ones stay in use: %s", type(error).__name__)
            self._outage = True
            return self._last_good
        self._outage = False
        return self._last_good

    def _load(self) -> KeyRing:
        contents = self._read()
        if self._rotation is not None and not (self._planned and self._rotation.may_sign(contents)):
            if self._rotation.run():
                contents = self._read()
            self._planned = True
        self._report_closed(contents.closed)
        if contents.undecryptable:
            raise NoUsableKey(SEALED_OTHERWISE)
        active = next((row.kid for row in contents.key_rows if row.state == "active"), None)
        if active not in contents.keys or not contents.peppers:
            raise NoUsableKey("No signing key is active. Run: authserver init")
        published = [key.public_jwk() for key in contents.keys.values()]
        jwks = json.dumps({"keys": published}, separators=(",", ":")).encode()
        return KeyRing(
            signing_key=contents.keys[active],
            peppers=contents.peppers,
            newest_pepper=list(contents.peppers)[-1],
            jwks=jwks,
            etag=f'"{hashlib.sha256(jwks).hexdigest()[:32]}"',
        )

    def _read(self) -> DecryptedKeys:
        with self._database.read() as session:
            return self._cabinet.read(session)

    def _report_closed(self, names: set[str]) -> None:
        """Say once which rows do not open: they are neither published nor used, and secrets under them are refused."""
        if names - self._reported:
            log.error("these keys and peppers do not open with the sealing key: %s", ", ".join(sorted(names)))
        self._reported = names


def has_sealed_rows(session: Session) -> bool:
    """Tell whether the database holds anything that only its own sealing key opens."""
    return any(session.scalar(select(func.count()).select_from(row)) for row in (SigningKeyRow, PepperRow))


def ensure_keys(session: Session, sealing_key: SealingKey, issuer: str, alg: str, clock: Clock) -> list[str]:
    """Make the first signing key, the first pepper, and a next key of the algorithm, where there is none.

    Returns the new kids.

    Raises:
        NoUsableKey: there are keys, and none of them opens: another one would hide that they are lost.
    """
    # Of two processes that init at once, the second finds what the first made.
    lock_keys(session)
    contents = open_rows(session, sealing_key, issuer)
    if contents.undecryptable:
        raise NoUsableKey(SEALED_OTHERWISE)
    sealer, now = contents.sealer or sealing_key, int(clock())
    if not contents.pepper_rows:
        add_pepper(session, sealer, now)
    if any(row.alg == alg or row.state == "next" for row in contents.key_rows):
        return []
    state: State = "next" if any(row.state == "active" for row in contents.key_rows) else "active"
    return [add_key(session, sealer, issuer, SigningKey.generate(alg), state, now).kid]


__all__ = ["KeyRing", "KeyStore", "NoUsableKey", "ensure_keys", "has_sealed_rows"]
