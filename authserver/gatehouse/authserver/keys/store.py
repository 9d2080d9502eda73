"""Signing keys and peppers in the database, and the key ring that requests use."""

import hashlib
import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from gatehouse.authserver.cache import OneSecondCache
from gatehouse.authserver.keys.sealing import CannotUnseal, SealingKey
from gatehouse.authserver.store.database import Database
from gatehouse.authserver.store.models import PepperRow, SigningKeyRow
from gatehouse.shared.clock import Clock
from gatehouse.shared.jose import InvalidKeySet, SigningKey

log = logging.getLogger(__name__)


class NoUsableKey(Exception):
    """No signing key or pepper opens with the sealing key. The message names the mend."""


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
    """Reads the key ring, at most once a second, and keeps the last good one while the database is away."""

    def __init__(
        self,
        database: Database,
        sealing_key: SealingKey,
        issuer: str,
        alg: str,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._sealing_key = sealing_key
        self._issuer = issuer
        self._alg = alg
        self._last_good: KeyRing | None = None
        self._cache: OneSecondCache[None, KeyRing] = OneSecondCache(lambda _: self._load_or_keep(), monotonic=monotonic)

    def ring(self) -> KeyRing:
        """Return the keys in use.

        Raises:
            NoUsableKey: there is no signing key of the configured algorithm, or none opens.
            SQLAlchemyError: the database is away and was never reached.
        """
        return self._cache.get(None)

    def _load_or_keep(self) -> KeyRing:
        try:
            self._last_good = self._load()
        except SQLAlchemyError as error:
            if self._last_good is None:
                raise
            log.warning("keys cannot be read again, the last ones stay in use: %s", type(error).__name__)
        return self._last_good

    def _load(self) -> KeyRing:
        with self._database.read() as session:
            key_rows = session.scalars(
                select(SigningKeyRow).order_by(SigningKeyRow.created_at, SigningKeyRow.kid)
            ).all()
            pepper_rows = session.scalars(select(PepperRow).order_by(PepperRow.created_at, PepperRow.pepper_id)).all()
        keys = [key for row in key_rows if (key := self._open_key(row)) is not None]
        peppers = {row.pepper_id: pepper for row in pepper_rows if (pepper := self._open_pepper(row)) is not None}
        signers = [key for key in keys if key.alg == self._alg]
        if not signers or not peppers:
            raise NoUsableKey(
                f"No {self._alg} signing key opens with this sealing key. Run: authserver init; "
                "if the sealing key or the issuer was changed, put the old one back."
            )
        jwks = json.dumps({"keys": [key.public_jwk() for key in keys]}, separators=(",", ":")).encode()
        return KeyRing(
            signing_key=signers[-1],
            peppers=peppers,
            newest_pepper=list(peppers)[-1],
            jwks=jwks,
            etag=f'"{hashlib.sha256(jwks).hexdigest()[:32]}"',
        )

    def _open_key(self, row: SigningKeyRow) -> SigningKey | None:
        try:
            document = self._sealing_key.unseal(row.sealed, *_key_purpose(self._issuer, row.kid, row.alg))
            key = SigningKey.from_private_jwk(row.alg, document)
        except (CannotUnseal, InvalidKeySet):
            log.error("signing key %s does not open: it is neither published nor used", row.kid)
            return None
        return key

    def _open_pepper(self, row: PepperRow) -> bytes | None:
        try:
            return self._sealing_key.unseal(row.sealed, *_pepper_purpose(row.pepper_id))
        except CannotUnseal:
            log.error("pepper %s does not open: secrets made with it are refused", row.pepper_id)
            return None


def _key_purpose(issuer: str, kid: str, alg: str) -> tuple[str, ...]:
    return ("signing_key", issuer, kid, alg)


def _pepper_purpose(pepper_id: str) -> tuple[str, ...]:
    return ("pepper", pepper_id)


def ensure_keys(session: Session, sealing_key: SealingKey, issuer: str, alg: str, clock: Clock) -> list[str]:
    """Make the first signing key of the algorithm and the first pepper, where there is none. Return the new kids."""
    if session.get_bind().dialect.name == "postgresql":
        # Of two processes that init at once, the second finds what the first made; SQLite's lock does the same.
        session.execute(text("SELECT pg_advisory_xact_lock(hashtext('gatehouse.keys'))"))
    now = int(clock())
    if not session.scalar(select(func.count()).select_from(PepperRow)):
        pepper_id = f"pep_{secrets.token_hex(8)}"
        sealed = sealing_key.seal(secrets.token_bytes(32), *_pepper_purpose(pepper_id))
        session.add(PepperRow(pepper_id=pepper_id, sealed=sealed, created_at=now))
    if session.scalar(select(func.count()).select_from(SigningKeyRow).where(SigningKeyRow.alg == alg)):
        return []
    key = SigningKey.generate(alg)
    sealed = sealing_key.seal(key.private_jwk(), *_key_purpose(issuer, key.kid, alg))
    session.add(SigningKeyRow(kid=key.kid, alg=alg, sealed=sealed, created_at=now))
    return [key.kid]
