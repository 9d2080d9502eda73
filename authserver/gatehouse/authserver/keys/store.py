"""The key ring that requests use: the active signing key, the peppers and the published key set."""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from gatehouse.authserver.db.database import Database
from gatehouse.authserver.keys.encryption import SealingKey
from gatehouse.authserver.keys.lifecycle import State
from gatehouse.authserver.keys.rotation import Rotation
from gatehouse.authserver.keys.sealed_keys import (
    WRONG_SEALING_KEY,
    DecryptedKeys,
    NoUsableKey,
    SealedKeys,
    add_key,
    add_pepper,
    decrypt_rows,
    lock_keys,
)
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.protocol.encoding import compact_json
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.service.cache import MAX_AGE, LoadingCache

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Every key that is in use, decrypted."""

    signing_key: SigningKey
    peppers: Mapping[str, bytes] = field(repr=False)
    """Peppers by id. A digest is checked with the pepper that made it; the newest pepper makes new ones."""
    newest_pepper: str
    jwks: bytes
    """The published key set (RFC 7517 5), as JSON."""
    etag: str


class KeyStore:
    """Loads the key ring at most once a second, and keeps the last one while the database is unavailable.

    With a `rotation`, the transitions that are due are applied before the first ring is returned, and before any ring
    whose key may no longer sign: after a backup is restored, no key signs past its time.
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
        self._sealed_keys = sealed_keys
        self._rotation = rotation
        self._planned = False
        self._last_good: KeyRing | None = None
        self._outage = False
        self._reported: set[str] = set()
        cache: LoadingCache[None, KeyRing] = LoadingCache(
            lambda _: self._load_or_keep(), max_age=max_age, monotonic=monotonic
        )
        self.ring: Callable[..., KeyRing] = partial(cache.get, None)
        """Returns the keys in use.

        With `wait=False`, it raises MustWait if the keys have to be read again.

        Raises:
            NoUsableKey: there is no signing key, or none decrypts.
            SQLAlchemyError: the database is unavailable, and no ring was ever loaded.
        """

    def _load_or_keep(self) -> KeyRing:
        try:
            self._last_good = self._load()
        except SQLAlchemyError as error:
            if self._last_good is None:
                raise
            if not self._outage:
                log.warning("keys cannot be loaded; the last ones stay in use: %s", type(error).__name__)
            self._outage = True
            return self._last_good
        self._outage = False
        return self._last_good

    def _load(self) -> KeyRing:
        decrypted = self._read()
        if self._rotation is not None and not (self._planned and self._rotation.may_sign(decrypted)):
            if self._rotation.run():
                decrypted = self._read()
            self._planned = True
        self._report(decrypted.undecryptable_rows)
        if decrypted.undecryptable:
            raise NoUsableKey(WRONG_SEALING_KEY)
        active = next((row.kid for row in decrypted.key_rows if row.state == "active"), None)
        if active not in decrypted.keys or not decrypted.peppers:
            raise NoUsableKey("No signing key is active. Run: authserver init")
        published = [key.public_jwk() for key in decrypted.keys.values()]
        jwks = compact_json({"keys": published}).encode()
        return KeyRing(
            signing_key=decrypted.keys[active],
            peppers=decrypted.peppers,
            newest_pepper=list(decrypted.peppers)[-1],
            jwks=jwks,
            etag=f'"{hashlib.sha256(jwks).hexdigest()[:32]}"',
        )

    def _read(self) -> DecryptedKeys:
        with self._database.read() as session:
            return self._sealed_keys.read(session)

    def _report(self, undecryptable: set[str]) -> None:
        """Log once which rows do not decrypt: they are not published, and secrets under them are refused."""
        if undecryptable - self._reported:
            names = ", ".join(sorted(undecryptable))
            log.error("these keys and peppers do not decrypt with the sealing key: %s", names)
        self._reported = undecryptable


def ensure_keys(session: Session, sealing_key: SealingKey, issuer: str, alg: str, clock: Clock) -> list[str]:
    """Create whatever is missing of: a signing key, a pepper, and a next key of the algorithm.

    Returns the new kids.

    Raises:
        NoUsableKey: there are keys, and none decrypts: a new one would hide that they are lost.
    """
    # Of two processes that run init at once, the second one finds what the first one created.
    lock_keys(session)
    decrypted = decrypt_rows(session, sealing_key, issuer)
    if decrypted.undecryptable:
        raise NoUsableKey(WRONG_SEALING_KEY)
    sealer, now = decrypted.sealer or sealing_key, int(clock())
    if not decrypted.pepper_rows:
        add_pepper(session, sealer, now)
    if any(row.alg == alg or row.state == "next" for row in decrypted.key_rows):
        return []
    state: State = "next" if any(row.state == "active" for row in decrypted.key_rows) else "active"
    return [add_key(session, sealer, issuer, SigningKey.generate(alg), state, now).kid]
