"""Replaces the sealing key: seals every private key and pepper with a new one.

The order makes it safe to be killed at any moment: the new key is on disk (or in the environment) before the first row
is sealed with it, all rows are sealed in one transaction, and the old key is removed after the commit. Until then every
process decrypts with either key, so repeating the command completes an interrupted rotation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from gatehouse.authserver.db.database import Database
from gatehouse.authserver.keys.encryption import (
    SealingKey,
    activate_next_sealing_key,
    create_next_sealing_key,
    load_sealing_key,
)
from gatehouse.authserver.keys.sealed_keys import decrypt_rows, key_purpose, lock_keys, pepper_purpose
from gatehouse.authserver.settings import Settings
from gatehouse.shared.service.administrator import Administrator, CommandRefused
from gatehouse.shared.service.audit.events import AuditAction
from gatehouse.shared.service.files import locked_folder


@dataclass(frozen=True, slots=True)
class RotationOutcome:
    """The outcome of a rotation: how many rows were sealed with the new key."""

    signing_keys: int
    peppers: int
    undecryptable: Sequence[str]
    """Kids and pepper ids of rows that decrypt with neither key. They were left unchanged."""


def prepare_sealing_key(settings: Settings) -> bool:
    """Write the next sealing key beside the current one, unless it exists. Return whether it was written.

    Raises:
        InvalidSettings: there is no usable sealing key.
    """
    load_sealing_key(settings)
    return create_next_sealing_key(settings)


def rotate_sealing_key(settings: Settings, database: Database, admin: Administrator) -> RotationOutcome:
    """Seal every signing key and pepper with the next sealing key, and make that the current one.

    Raises:
        CommandRefused: the environment holds one key only, or no row decrypts with the available keys.
        InvalidSettings: there is no usable sealing key.
    """
    if settings.sealing_key is not None:
        return _rotate(settings, database, admin)
    with locked_folder(settings.keys_dir):
        prepare_sealing_key(settings)
        outcome = _rotate(settings, database, admin)
        activate_next_sealing_key(settings)
    return outcome


def _rotate(settings: Settings, database: Database, admin: Administrator) -> RotationOutcome:
    sealing_key = load_sealing_key(settings)
    if sealing_key.next_key is None:
        raise CommandRefused(
            "AUTHSERVER_SEALING_KEY holds one key. Set it to OLD,NEW on every node, then repeat the command. "
            "To generate a new key, run: authserver sealing-key rotate --prepare"
        )
    with database.write() as session:
        lock_keys(session)
        outcome = _seal_rows(session, sealing_key, sealing_key.next_key, settings.issuer)
        admin.record(
            session,
            AuditAction.SEALING_KEY_ROTATE,
            settings.issuer,
            signing_keys=outcome.signing_keys,
            peppers=outcome.peppers,
            undecryptable=list(outcome.undecryptable),
        )
    return outcome


def _seal_rows(session: Session, sealing_key: SealingKey, next_key: SealingKey, issuer: str) -> RotationOutcome:
    decrypted = decrypt_rows(session, sealing_key, issuer)
    if decrypted.sealer is None or decrypted.undecryptable:
        raise CommandRefused(
            "No key in the database decrypts with this sealing key. Restore the right sealing key first."
        )
    for row in decrypted.key_rows:
        if row.kid in decrypted.keys:
            purpose = key_purpose(issuer, row.kid, row.alg)
            row.sealed = next_key.seal(sealing_key.unseal(row.sealed, *purpose), *purpose)
    for pepper in decrypted.pepper_rows:
        if pepper.pepper_id in decrypted.peppers:
            plaintext = decrypted.peppers[pepper.pepper_id]
            pepper.sealed = next_key.seal(plaintext, *pepper_purpose(pepper.pepper_id))
    return RotationOutcome(len(decrypted.keys), len(decrypted.peppers), sorted(decrypted.undecryptable_rows))
