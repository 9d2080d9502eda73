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


_SEALED_OTHERWISE = (
    "The keys in the database were sealed with another sealing key, or for another issuer. Put that one back, "
    "or begin anew with another database."
)


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
        self._outage = False
        self._reported: set[str] = set()
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
            if not self._outage:
                log.warning("keys cannot be read again, the last ones stay in use: %s", type(error).__name__)
            self._outage = True
            return self._last_good
        self._outage = False
        return self._last_good

    def _load(self) -> KeyRing:
        with self._database.read() as session:
            key_rows = session.scalars(
                select(SigningKeyRow).order_by(SigningKeyRow.created_at, SigningKeyRow.kid)
            ).all()
            pepper_rows = session.scalars(select(PepperRow).order_by(PepperRow.created_at, PepperRow.pepper_id)).all()
        opened = {row.kid: _open_key(self._sealing_key, self._issuer, row) for row in key_rows}
        opened_peppers = {row.pepper_id: _open_pepper(self._sealing_key, row) for row in pepper_rows}
        self._report_closed({name for name, key in {**opened, **opened_peppers}.items() if key is None})
        keys = [key for key in opened.values() if key is not None]
        peppers = {pepper_id: pepper for pepper_id, pepper in opened_peppers.items() if pepper is not None}
        signers = [key for key in keys if key.alg == self._alg]
        if not signers or not peppers:
            if (key_rows and not keys) or (pepper_rows and not peppers):
                raise NoUsableKey(_SEALED_OTHERWISE)
            raise NoUsableKey(f"There is no {self._alg} signing key yet. Run: authserver init")
        jwks = json.dumps({"keys": [key.public_jwk() for key in keys]}, separators=(",", ":")).encode()
        return KeyRing(
            signing_key=signers[-1],
            peppers=peppers,
            newest_pepper=list(peppers)[-1],
            jwks=jwks,
            etag=f'"{hashlib.sha256(jwks).hexdigest()[:32]}"',
        )

    def _report_closed(self, names: set[str]) -> None:
        """Say once which rows do not open: they are neither published nor used, and secrets under them are refused."""
        if names - self._reported:
            log.error("these keys and peppers do not open with the sealing key: %s", ", ".join(sorted(names)))
        self._reported = names


def _open_key(sealing_key: SealingKey, issuer: str, row: SigningKeyRow) -> SigningKey | None:
    try:
        document = sealing_key.unseal(row.sealed, *_key_purpose(issuer, row.kid, row.alg))
        return SigningKey.from_private_jwk(row.alg, document)
    except (CannotUnseal, InvalidKeySet):
        return None


def _open_pepper(sealing_key: SealingKey, row: PepperRow) -> bytes | None:
    try:
        return sealing_key.unseal(row.sealed, *_pepper_purpose(row.pepper_id))
    except CannotUnseal:
        return None


def _key_purpose(issuer: str, kid: str, alg: str) -> tuple[str, ...]:
    return ("signing_key", issuer, kid, alg)


def _pepper_purpose(pepper_id: str) -> tuple[str, ...]:
    return ("pepper", pepper_id)


def has_sealed_rows(session: Session) -> bool:
    """Tell whether the database holds anything that only its own sealing key opens."""
    return any(session.scalar(select(func.count()).select_from(row)) for row in (SigningKeyRow, PepperRow))


def ensure_keys(session: Session, sealing_key: SealingKey, issuer: str, alg: str, clock: Clock) -> list[str]:
    """Make the first signing key of the algorithm and the first pepper, where there is none. Return the new kids.

    Raises:
        NoUsableKey: there are keys, and none of them opens: another one would hide that they are lost.
    """
    if session.get_bind().dialect.name == "postgresql":
        # Of two processes that init at once, the second finds what the first made; SQLite's lock does the same.
        session.execute(text("SELECT pg_advisory_xact_lock(hashtext('gatehouse.keys'))"))
    now = int(clock())
    peppers = session.scalars(select(PepperRow)).all()
    if not peppers:
        pepper_id = f"pep_{secrets.token_hex(8)}"
        sealed = sealing_key.seal(secrets.token_bytes(32), *_pepper_purpose(pepper_id))
        session.add(PepperRow(pepper_id=pepper_id, sealed=sealed, created_at=now))
    elif not any(_open_pepper(sealing_key, row) for row in peppers):
        raise NoUsableKey(_SEALED_OTHERWISE)
    keys = session.scalars(select(SigningKeyRow)).all()
    if keys and not any(_open_key(sealing_key, issuer, row) for row in keys):
        raise NoUsableKey(_SEALED_OTHERWISE)
    if any(row.alg == alg for row in keys):
        return []
    key = SigningKey.generate(alg)
    sealed = sealing_key.seal(key.private_jwk(), *_key_purpose(issuer, key.kid, alg))
    session.add(SigningKeyRow(kid=key.kid, alg=alg, sealed=sealed, created_at=now))
    return [key.kid]
