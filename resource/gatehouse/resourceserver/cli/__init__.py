"""The `resourceserver` command."""

from functools import partial

import click

from gatehouse.resourceserver.cli.audit import audit
from gatehouse.resourceserver.cli.bridge import bridge
from gatehouse.resourceserver.cli.catalogue_loading import load_catalogue
from gatehouse.resourceserver.cli.check import check
from gatehouse.resourceserver.cli.installation import settings_of
from gatehouse.resourceserver.cli.serve import init, serve
from gatehouse.resourceserver.cli.tools import tools
from gatehouse.shared.service.cli import Commands, Refusal, server_group
from gatehouse.shared.service.settings import InvalidSettings


class CatalogueCommands(Commands):
    """The server's commands, and the one that the configured catalogue adds."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List every command. A catalogue that cannot be loaded adds none."""
        commands = super().list_commands(ctx)
        try:
            added = _catalogue_command(ctx)
        except (Refusal, InvalidSettings):
            return commands
        return commands if added is None or added.name is None else sorted([*commands, added.name])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name. Raises Refusal when the catalogue that may have it cannot be loaded."""
        if (command := super().get_command(ctx, cmd_name)) is not None:
            return command
        added = _catalogue_command(ctx)
        return added if added is not None and added.name == cmd_name else None


def _catalogue_command(ctx: click.Context) -> click.Command | None:
    return load_catalogue(settings_of(ctx).tools).load_command()


@partial(server_group, cls=CatalogueCommands)
def main() -> None:
    """The Gatehouse resource server: MCP tools behind access tokens and scopes.

    Settings are variables named RESOURCESERVER_..., or lines of --env-file. The defaults serve
    http://127.0.0.1:8000/mcp, and trust the issuer http://127.0.0.1:9000.

    \b
    From nothing to a served tool:
      resourceserver init
      resourceserver workspace create --name acme
      resourceserver tools
      resourceserver serve
    """  # noqa: D301 - click reads the control character


for command in (init, check, serve, tools, audit, bridge):
    main.add_command(command)
