"""Lists the commands of a command line, including those of lazy groups, and what their lists cut."""

from collections.abc import Iterator
from typing import Final

import click

WIDTH: Final = 78
"""Columns of a help text on a terminal of 80 or more."""


def every_command(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    """Yield the path of every command and of every group below `group`."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from every_command(command, *path, name)


def cut_summaries(group: click.Group, *path: str) -> Iterator[str]:
    """Yield the lines of the command lists of `group`, and of the groups below it, that end before the sentence."""
    context = click.Context(group)
    formatter = click.HelpFormatter(width=WIDTH)
    group.format_commands(context, formatter)
    yield from (" ".join([*path, line.strip()]) for line in formatter.getvalue().splitlines() if line.endswith("..."))
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from cut_summaries(command, *path, name)
