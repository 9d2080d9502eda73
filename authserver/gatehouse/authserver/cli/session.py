"""What an admin command works with: settings, an open database, and who is asking."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from gatehouse.authserver.administration import Administrator, Refused
from gatehouse.authserver.keys.sealing import load_sealing_key
from gatehouse.authserver.keys.store import KeyRing, KeyStore, NoUsableKey
from gatehouse.authserver.settings import Settings
from gatehouse.authserver.store.database import Database
from gatehouse.authserver.store.models import audit_event
from gatehouse.shared.audit import AuditWriter
from gatehouse.shared.command_line import Refusal
from gatehouse.shared.settings import load_settings


def settings_of(ctx: click.Context) -> Settings:
    """Read the settings that a command was given. Raises InvalidSettings."""
    env_file: Path | None = ctx.find_root().obj
    return load_settings(Settings, env_file)


@dataclass(frozen=True, slots=True)
class AdminSession:
    """One command's access to the installation."""

    settings: Settings
    database: Database
    admin: Administrator

    def keys(self) -> KeyRing:
        """Return the keys in use. Raises InvalidSettings or Refusal."""
        settings = self.settings
        try:
            return KeyStore(
                self.database, load_sealing_key(settings), settings.issuer, settings.signing_algorithm
            ).ring()
        except NoUsableKey as error:
            raise Refusal(str(error)) from None


@contextmanager
def admin_session(ctx: click.Context) -> Iterator[AdminSession]:
    """Open the database for a command; what the domain refuses becomes a refusal of the command."""
    settings = settings_of(ctx)
    database = Database(settings.database, pool_size=1)
    try:
        if settings.database.get_backend_name() == "sqlite" and not Path(str(settings.database.database)).exists():
            raise Refusal("There is no database yet. Run: authserver init")
        database.require_current()
        yield AdminSession(settings, database, Administrator(AuditWriter(database.engine, audit_event)))
    except Refused as refused:
        raise Refusal(str(refused)) from None
    finally:
        database.close()
