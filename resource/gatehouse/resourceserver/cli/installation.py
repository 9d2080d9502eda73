"""What most commands share: `--tools` and `--upstream`, the settings, and an open database."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from gatehouse.resourceserver.db.database import Database
from gatehouse.resourceserver.settings import Settings
from gatehouse.shared.service.cli import env_file_of
from gatehouse.shared.service.migrations import Schema
from gatehouse.shared.service.settings_reading import load_settings

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

upstream_option = click.option(
    "--upstream",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Use the MCP server of this policy file. Overrides RESOURCESERVER_UPSTREAM.",
)


def served_options(command: CommandT) -> CommandT:
    """Add `--tools` and `--upstream`: what the server serves. The command gets `tools` and `upstream`."""
    tools = click.option(
        "--tools", metavar="MODULE", help="Use the CATALOGUE of this module. Overrides RESOURCESERVER_TOOLS."
    )
    return tools(upstream_option(command))


def settings_of(ctx: click.Context, **options: Any) -> Settings:
    """Read the settings of a command. `options` that are not None take precedence. Raises InvalidSettings."""
    return load_settings(Settings, env_file_of(ctx), **given(options))


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that a command was called with."""
    return {name: value for name, value in options.items() if value is not None}


@contextmanager
def open_database(
    settings: Settings, catalogue_schema: Schema | None = None, *, patient: bool = False
) -> Iterator[Database]:
    """Open the database for a command. Raises SchemaMismatch if it is not current."""
    with Database(settings.database, catalogue_schema, patient=patient) as database:
        database.require_current()
        yield database
