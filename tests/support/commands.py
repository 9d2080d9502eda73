"""Lists the commands of a command line, including those of lazy groups."""

from collections.abc import Iterator

import click


def every_command(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    """Yield the path of every command and of every group below `group`."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from every_command(command, *path, name)
