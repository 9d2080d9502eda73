"""What most commands share: `--tools`, the settings, and an open database."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from gatehouse.resourceserver.db.database import Database
from gatehouse.resourceserver.settings import Settings
from gatehouse.shared.service.cli import env_file_of
from gatehouse.shared.service.migrations import Schema
from gatehouse.shared.service.settings_reading import load_settings

tools_option = click.option(
    "--tools",
    "tools_module",
    metavar="MODULE",
    help="Use the CATALOGUE of this module. Overrides RESOURCESERVER_TOOLS.",
)


def settings_of(ctx: click.Context, tools_module: str | None = None) -> Settings:
    """Read the settings of a command. Raises InvalidSettings."""
    return load_settings(Settings, env_file_of(ctx), **tool_settings(tools_module))


def tool_settings(tools_module: str | None) -> dict[str, str]:
    """Return the settings that `--tools` overrides."""
    return {} if tools_module is None else {"tools": tools_module}


@contextmanager
def open_database(
    settings: Settings, catalogue_schema: Schema | None = None, *, patient: bool = False
) -> Iterator[Database]:
    """Open the database for a command. Raises SchemaMismatch if it is not current."""
    with Database(settings.database, catalogue_schema, patient=patient) as database:
        database.require_current()
        yield database
