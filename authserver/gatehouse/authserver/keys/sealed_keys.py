"""What lies sealed in the database, opened."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from gatehouse.authserver.db.models import PepperRow, SigningKeyRow
from gatehouse.authserver.keys.encryption import DecryptionFailed, SealingKey
from gatehouse.authserver.keys.lifecycle import Key, State
from gatehouse.shared.protocol.jws import InvalidKeySet, SigningKey
from gatehouse.shared.service.settings import InvalidSettings

STATES: dict[str, State] = {"next": "next", "active": "active", "retiring": "retiring"}
"""As they are stored."""

_parse = lru_cache(maxsize=8)(SigningKey.from_private_jwk)
"""Every process opens the rows once a second, and to read an RSA key takes 50 ms: a request would wait for it."""

SEALED_OTHERWISE = (
    "The keys in the database were sealed with another sealing key, or for another issuer. Put that one back, "
    "or start again with another database."
)


class NoUsableKey(Exception):
    """No signing key or pepper opens with the sealing key. The message says how to fix it."""


@dataclass(frozen=True, slots=True)
class DecryptedKeys:
    """The sealed rows of the database, oldest first, and what is in those that open."""

    key_rows: Sequence[SigningKeyRow]
    pepper_rows: Sequence[PepperRow]
    keys: dict[str, SigningKey] = field(repr=False)
    peppers: dict[str, bytes] = field(repr=False)
    sealer: SealingKey | None
    """The key that the rows are sealed with: new rows have to be sealed with the same. None when no row opens."""

    @property
    def closed(self) -> set[str]:
        """The names of the rows that do not open. They are neither published nor used."""
        names = {row.kid for row in self.key_rows} | {row.pepper_id for row in self.pepper_rows}
        return names - self.keys.keys() - self.peppers.keys()

    @property
    def undecryptable(self) -> bool:
        """Whether there are keys, or peppers, and none of them opens: the sealing key or the issuer is another."""
        return bool((self.key_rows and not self.keys) or (self.pepper_rows and not self.peppers))

    def lives(self) -> list[Key]:
        """Return the lives of the keys that open."""
        return [lifetime_of(row) for row in self.key_rows if row.kid in self.keys]


def lifetime_of(row: SigningKeyRow) -> Key:
    """Return what is known of a key's life, from its row."""
    return Key(row.kid, row.alg, STATES[row.state], row.published_at, row.retired_at)


class SealedKeys:
    """Opens the rows of one issuer; reads the sealing key again when a reseal may have replaced it."""

    def __init__(self, load_sealing_key: Callable[[], SealingKey], issuer: str) -> None:
        self._load = load_sealing_key
        self._sealing_key = load_sealing_key()
        self.issuer = issuer

    def read(self, session: Session) -> DecryptedKeys:
        """Return what the database holds."""
        contents = open_rows(session, self._sealing_key, self.issuer)
        if not contents.closed:
            return contents
        try:
            self._sealing_key = self._load()
        except (InvalidSettings, OSError):
            # It was there at the start. Without it, what opened until now still does.
            return contents
        return open_rows(session, self._sealing_key, self.issuer)


def open_rows(session: Session, sealing_key: SealingKey, issuer: str) -> DecryptedKeys:
    """Read and open every sealed row."""
    key_rows = session.scalars(select(SigningKeyRow).order_by(SigningKeyRow.created_at, SigningKeyRow.kid)).all()
    pepper_rows = session.scalars(select(PepperRow).order_by(PepperRow.created_at, PepperRow.pepper_id)).all()
    keys, peppers = {}, {}
    sealer = None
    for row in key_rows:
        purpose = key_purpose(issuer, row.kid, row.alg)
        try:
            keys[row.kid] = _parse(row.alg, sealing_key.unseal(row.sealed, *purpose))
        except (DecryptionFailed, InvalidKeySet):
            continue
        sealer = sealing_key.find_key(row.sealed, *purpose)
    for pepper in pepper_rows:
        purpose = pepper_purpose(pepper.pepper_id)
        try:
            peppers[pepper.pepper_id] = sealing_key.unseal(pepper.sealed, *purpose)
        except DecryptionFailed:
            continue
        sealer = sealing_key.find_key(pepper.sealed, *purpose)
    return DecryptedKeys(key_rows, pepper_rows, keys, peppers, sealer)


def lock_keys(session: Session) -> None:
    """Let nobody else change keys until the transaction ends. On SQLite, a writer has the lock since it began."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(hashtext('gatehouse.keys'))"))


def add_key(
    session: Session, sealer: SealingKey, issuer: str, key: SigningKey, state: State, now: int
) -> SigningKeyRow:
    """Store a new key, published from now on."""
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
    """Make and store a pepper."""
    pepper_id = f"pep_{secrets.token_hex(8)}"
    sealed = sealer.seal(secrets.token_bytes(32), *pepper_purpose(pepper_id))
    session.add(PepperRow(pepper_id=pepper_id, sealed=sealed, created_at=now))


def key_purpose(issuer: str, kid: str, alg: str) -> tuple[str, ...]:
    """Return what a sealed private half is for."""
    return ("signing_key", issuer, kid, alg)


def pepper_purpose(pepper_id: str) -> tuple[str, ...]:
    """Return what a sealed pepper is for."""
    return ("pepper", pepper_id)
