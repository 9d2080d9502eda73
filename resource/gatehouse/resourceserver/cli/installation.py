"""What a command works with: settings and an open database."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from gatehouse.resourceserver.db.database import Database
from gatehouse.resourceserver.settings import Settings
from gatehouse.shared.service.cli import env_file_of
from gatehouse.shared.service.migrations import Schema
from gatehouse.shared.service.settings import load_settings

tools_option = click.option(
    "--tools", "tools_module", metavar="MODULE", help="Module whose CATALOGUE is served, in place of the setting."
)


def settings_of(ctx: click.Context, tools_module: str | None = None) -> Settings:
    """Read the settings that a command was given. Raises InvalidSettings."""
    return load_settings(Settings, env_file_of(ctx), **({} if tools_module is None else {"tools": tools_module}))


@contextmanager
def open_database(settings: Settings, catalogue_schema: Schema | None = None) -> Iterator[Database]:
    """Open the database for a command. Raises SchemaMismatch when it is not current."""
    database = Database(settings.database, catalogue_schema)
    try:
        database.require_current()
        yield database
    finally:
        database.close()
