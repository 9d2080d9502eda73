"""Wraps everything that is sealed anew, with another sealing key.

The order is what makes it safe to be killed at any moment: the new key is on disk (or in the environment) before the
first row is wrapped with it, all rows are wrapped in one transaction, and the old key goes after that has committed.
Until then every process opens with either key, so the same command, repeated, ends what was begun.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from gatehouse.authserver.administration import Refused
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.keys.encryption import (
    SealingKey,
    create_next_sealing_key,
    load_sealing_key,
    one_reseal_at_a_time,
    put_next_sealing_key_in_place,
)
from gatehouse.authserver.keys.sealed_keys import key_purpose, lock_keys, open_rows, pepper_purpose
from gatehouse.authserver.settings import Settings
from gatehouse.shared.service.administrator import Administrator
from gatehouse.shared.service.audit import AuditAction


@dataclass(frozen=True, slots=True)
class Resealed:
    """What a reseal did."""

    signing_keys: int
    peppers: int
    left: Sequence[str]
    """Rows that opened with neither key, before as after."""


def prepare(settings: Settings) -> bool:
    """Write the next sealing key beside the present one, unless it is there. Raises InvalidSettings."""
    load_sealing_key(settings)
    return create_next_sealing_key(settings)


def reseal(settings: Settings, database: Database, admin: Administrator) -> Resealed:
    """Wrap every private half and pepper with the next sealing key, and put that in place.

    Raises:
        Refused: the environment holds one key only, or nothing opens with the keys that there are.
        InvalidSettings: there is no usable sealing key.
    """
    if settings.sealing_key is not None:
        return _wrap(settings, database, admin)
    with one_reseal_at_a_time(settings):
        prepare(settings)
        done = _wrap(settings, database, admin)
        put_next_sealing_key_in_place(settings)
    return done


def _wrap(settings: Settings, database: Database, admin: Administrator) -> Resealed:
    sealing_key = load_sealing_key(settings)
    if sealing_key.newest is None:
        raise Refused(
            "AUTHSERVER_SEALING_KEY holds one key. Write OLD,NEW there, on every node, and then repeat the command. "
            "A new key is printed by: authserver key reseal --prepare"
        )
    with database.write() as session:
        lock_keys(session)
        done = _wrap_rows(session, sealing_key, sealing_key.newest, settings.issuer)
        admin.record(
            session,
            AuditAction.SEALING_KEY_ROTATE,
            settings.issuer,
            signing_keys=done.signing_keys,
            peppers=done.peppers,
            left=list(done.left),
        )
    return done


def _wrap_rows(session: Session, sealing_key: SealingKey, newest: SealingKey, issuer: str) -> Resealed:
    contents = open_rows(session, sealing_key, issuer)
    if contents.sealer is None or contents.undecryptable:
        raise Refused("Nothing in the database opens with this sealing key. Put the right one back first.")
    for row in contents.key_rows:
        if row.kid in contents.keys:
            purpose = key_purpose(issuer, row.kid, row.alg)
            row.sealed = newest.seal(sealing_key.unseal(row.sealed, *purpose), *purpose)
    for pepper in contents.pepper_rows:
        if pepper.pepper_id in contents.peppers:
            purpose = pepper_purpose(pepper.pepper_id)
            pepper.sealed = newest.seal(sealing_key.unseal(pepper.sealed, *purpose), *purpose)
    return Resealed(len(contents.keys), len(contents.peppers), sorted(contents.closed))
