"""The sealed rows of the database, decrypted."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from gatehouse.authserver.db.models import PepperRow, SigningKeyRow
from gatehouse.authserver.keys.encryption import DecryptionFailed, SealingKey
from gatehouse.authserver.keys.lifecycle import KeyLifecycle, State
from gatehouse.shared.protocol.jws import InvalidKeySet, SigningKey
from gatehouse.shared.service.settings import InvalidSettings

STATES: dict[str, State] = {"next": "next", "active": "active", "retiring": "retiring"}
"""Lifecycle states by their value in the database."""

_parse = lru_cache(maxsize=8)(SigningKey.from_private_jwk)
"""Every process reads the rows once a second, and parsing an RSA key takes 50 ms, for which a request would wait."""

WRONG_SEALING_KEY = (
    "The keys in the database were sealed with another sealing key, or for another issuer. Restore that one, "
    "or start again with an empty database."
)


class NoUsableKey(Exception):
    """No signing key or pepper decrypts with the sealing key. The message says how to fix it."""


@dataclass(frozen=True, slots=True)
class DecryptedKeys:
    """The sealed rows of the database, oldest first, and the plaintext of those that decrypt."""

    key_rows: Sequence[SigningKeyRow]
    pepper_rows: Sequence[PepperRow]
    keys: dict[str, SigningKey] = field(repr=False)
    """Signing keys by kid."""
    peppers: dict[str, bytes] = field(repr=False)
    """Peppers by id."""
    sealer: SealingKey | None
    """The key that the rows are sealed with, which new rows must use too. None if no row decrypts."""

    @property
    def undecryptable_rows(self) -> set[str]:
        """The kids and pepper ids of rows that do not decrypt. They are neither published nor used."""
        names = {row.kid for row in self.key_rows} | {row.pepper_id for row in self.pepper_rows}
        return names - self.keys.keys() - self.peppers.keys()

    @property
    def undecryptable(self) -> bool:
        """Whether no signing key or no pepper decrypts though there are rows: the sealing key or issuer is wrong."""
        return bool((self.key_rows and not self.keys) or (self.pepper_rows and not self.peppers))

    def lifecycles(self) -> list[KeyLifecycle]:
        """Return the lifecycle of every signing key that decrypts."""
        return [lifecycle_of(row) for row in self.key_rows if row.kid in self.keys]


def lifecycle_of(row: SigningKeyRow) -> KeyLifecycle:
    """Return a signing key's lifecycle from its row."""
    return KeyLifecycle(row.kid, row.alg, STATES[row.state], row.published_at, row.retired_at)


class SealedKeys:
    """Decrypts the rows of one issuer, and loads the sealing key again when a rotation may have replaced it."""

    def __init__(self, load_sealing_key: Callable[[], SealingKey], issuer: str) -> None:
        self._load = load_sealing_key
        self._sealing_key = load_sealing_key()
        self.issuer = issuer

    def read(self, session: Session) -> DecryptedKeys:
        """Read and decrypt every sealed row."""
        decrypted = decrypt_rows(session, self._sealing_key, self.issuer)
        if not decrypted.undecryptable_rows:
            return decrypted
        try:
            self._sealing_key = self._load()
        except (InvalidSettings, OSError):
            # It was readable at the start. The key in memory still decrypts the same rows.
            return decrypted
        return decrypt_rows(session, self._sealing_key, self.issuer)


def decrypt_rows(session: Session, sealing_key: SealingKey, issuer: str) -> DecryptedKeys:
    """Read every sealed row and decrypt it once."""
    key_rows = session.scalars(select(SigningKeyRow).order_by(SigningKeyRow.created_at, SigningKeyRow.kid)).all()
    pepper_rows = session.scalars(select(PepperRow).order_by(PepperRow.created_at, PepperRow.pepper_id)).all()
    keys, peppers = {}, {}
    sealer = None
    for row in key_rows:
        try:
            found, plaintext = sealing_key.find_key(row.sealed, *key_purpose(issuer, row.kid, row.alg))
            keys[row.kid] = _parse(row.alg, plaintext)
        except (DecryptionFailed, InvalidKeySet):
            continue
        sealer = found
    for pepper in pepper_rows:
        try:
            sealer, peppers[pepper.pepper_id] = sealing_key.find_key(pepper.sealed, *pepper_purpose(pepper.pepper_id))
        except DecryptionFailed:
            continue
    return DecryptedKeys(key_rows, pepper_rows, keys, peppers, sealer)


def has_sealed_rows(session: Session) -> bool:
    """Tell whether the database holds anything that only its own sealing key decrypts."""
    return any(session.scalar(select(func.count()).select_from(row)) for row in (SigningKeyRow, PepperRow))


def lock_keys(session: Session) -> None:
    """Block other changes of keys until the transaction ends. On SQLite, a writer holds the write lock already."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(hashtext('gatehouse.keys'))"))


def add_key(
    session: Session, sealer: SealingKey, issuer: str, key: SigningKey, state: State, now: int
) -> SigningKeyRow:
    """Store a new signing key, published from now on."""
    row = SigningKeyRow(
        kid=key.kid,
        alg=key.alg,
        sealed=sealer.seal(key.private_jwk(), *key_purpose(issuer, key.kid, key.alg)),
        created_at=now,
        state=state,
        published_at=now,
        activated_at=now if state == "active" else None,
    )
    session.add(row)
    session.flush()
    return row


def add_pepper(session: Session, sealer: SealingKey, now: int) -> None:
    """Generate and store a pepper."""
    pepper_id = f"pep_{secrets.token_hex(8)}"
    sealed = sealer.seal(secrets.token_bytes(32), *pepper_purpose(pepper_id))
    session.add(PepperRow(pepper_id=pepper_id, sealed=sealed, created_at=now))


def key_purpose(issuer: str, kid: str, alg: str) -> tuple[str, ...]:
    """Return the purpose that the private half of a signing key is sealed for."""
    return ("signing_key", issuer, kid, alg)


def pepper_purpose(pepper_id: str) -> tuple[str, ...]:
    """Return the purpose that a pepper is sealed for."""
    return ("pepper", pepper_id)
