"""What admin commands work with: settings, an open database, and the administrator."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import click
from sqlalchemy.exc import SQLAlchemyError

from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import audit_event
from gatehouse.authserver.keys.encryption import SealingKey, has_sealing_key, load_sealing_key, lost_sealing_key
from gatehouse.authserver.keys.rotation import SERVER, Rotation, policy_of
from gatehouse.authserver.keys.sealed_keys import NoUsableKey, SealedKeys, has_sealed_rows
from gatehouse.authserver.keys.store import KeyRing, KeyStore
from gatehouse.authserver.settings import Settings
from gatehouse.shared.service.administrator import Administrator, CommandRefused, administrator
from gatehouse.shared.service.cli import Refusal, env_file_of
from gatehouse.shared.service.migrations import SchemaMismatch
from gatehouse.shared.service.settings_reading import load_settings


def settings_of(ctx: click.Context) -> Settings:
    """Read the settings of a command. Raises InvalidSettings."""
    return load_settings(Settings, env_file_of(ctx))


@dataclass(frozen=True, slots=True)
class Installation:
    """One command's access to the installation."""

    settings: Settings
    database: Database
    admin: Administrator

    def sealing_key(self) -> SealingKey:
        """Return the sealing key. Raises InvalidSettings, which tells a lost key from one not created yet."""
        if not has_sealing_key(self.settings) and self._holds_sealed_rows():
            raise lost_sealing_key(self.settings)
        return load_sealing_key(self.settings)

    def _holds_sealed_rows(self) -> bool:
        try:
            self.database.require_current()
            with self.database.read() as session:
                return has_sealed_rows(session)
        except (SchemaMismatch, SQLAlchemyError):
            return False

    def keys(self, *, to_sign: bool = False) -> KeyRing:
        """Return the keys in use; with `to_sign`, apply the transitions that are due first.

        Raises:
            InvalidSettings: there is no usable sealing key.
            Refusal: no signing key or pepper decrypts.
        """
        rotation = self.rotation()
        try:
            return KeyStore(self.database, rotation.sealed_keys, rotation if to_sign else None).ring()
        except NoUsableKey as error:
            raise Refusal(str(error)) from None

    def rotation(self, actor: str = SERVER) -> Rotation:
        """Return the key rotation, recorded under an actor of the audit log. Raises InvalidSettings."""
        settings, admin = self.settings, self.admin
        sealed_keys = SealedKeys(self.sealing_key, settings.issuer)
        return Rotation(self.database, sealed_keys, policy_of(settings), admin.audit, admin.clock, actor)


@contextmanager
def open_installation(ctx: click.Context, *, patient: bool = False) -> Iterator[Installation]:
    """Open the database for a command. A refusal of the domain becomes a refusal of the command."""
    settings = settings_of(ctx)
    with Database(settings.database, patient=patient) as database:
        database.require_current()
        try:
            yield Installation(settings, database, administrator(audit_event, settings.audit_keys))
        except CommandRefused as refused:
            raise Refusal(str(refused)) from None
