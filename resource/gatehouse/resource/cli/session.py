"""What a command works with: settings and an open database."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from gatehouse.resource.directory.errors import DirectoryError
from gatehouse.resource.settings import Settings
from gatehouse.resource.store.database import AdminDatabase
from gatehouse.shared.command_line import Refusal
from gatehouse.shared.settings import load_settings


def settings_of(ctx: click.Context) -> Settings:
    """Read the settings that a command was given. Raises InvalidSettings."""
    env_file: Path | None = ctx.find_root().obj
    return load_settings(Settings, env_file)


@contextmanager
def admin_database(settings: Settings) -> Iterator[AdminDatabase]:
    """Open the database for a command; what the directory refuses becomes a refusal of the command."""
    database = AdminDatabase(settings.database)
    try:
        if settings.database.get_backend_name() == "sqlite" and not Path(str(settings.database.database)).exists():
            raise Refusal("There is no database yet. Run: resourceserver init")
        database.require_current()
        yield database
    except DirectoryError as error:
        raise Refusal(str(error)) from None
    finally:
        database.close()
