"""The `resourceserver` command."""

from collections.abc import Mapping

import click

from gatehouse.shared.service.cli import Refusal, server_group

_COMMANDS = {
    "audit": (
        "gatehouse.resourceserver.cli.audit:audit",
        "Search, follow and export the audit log.",
    ),
    "bridge": ("gatehouse.resourceserver.cli.bridge:bridge", "Connect a stdio MCP client to a remote MCP server."),
    "check": ("gatehouse.resourceserver.cli.check:check", "Check everything that the server needs to start and serve."),
    "init": ("gatehouse.resourceserver.cli.init:init", "Create or upgrade the database."),
    "policy": (
        "gatehouse.resourceserver.cli.policy:policy",
        "Draft, check and confirm the policy of an MCP server.",
    ),
    "serve": ("gatehouse.resourceserver.cli.serve:serve", "Serve until SIGTERM or Ctrl-C."),
    "token": ("gatehouse.resourceserver.cli.token:token", "Print an access token for an MCP server."),
    "tools": ("gatehouse.resourceserver.cli.tools:tools", "List every tool with the scopes that it needs."),
}


def _catalogue_commands(ctx: click.Context) -> Mapping[str, click.Command]:
    """Return the command of the configured catalogue. Raises Refusal if the catalogue cannot be loaded."""
    # These modules import the MCP SDK, which most commands do not need.
    from gatehouse.resourceserver.cli.catalogue_loading import load_command, load_served  # noqa: PLC0415
    from gatehouse.resourceserver.cli.installation import settings_of  # noqa: PLC0415
    from gatehouse.shared.service.settings import InvalidSettings  # noqa: PLC0415

    try:
        command = load_command(load_served(settings_of(ctx)))
    except InvalidSettings as error:
        raise Refusal(str(error)) from None
    return {} if command is None or command.name is None else {command.name: command}


@server_group(_COMMANDS, _catalogue_commands)
def main() -> None:
    """The Gatehouse resource server: MCP tools behind access tokens and scopes.

    Settings come from environment variables named RESOURCESERVER_... or from the file of --env-file. To list them,
    run `resourceserver check --explain`. By default, the server serves http://127.0.0.1:8000/mcp and trusts the issuer
    http://127.0.0.1:9000.

    \b
    Getting started:
      resourceserver init
      resourceserver tools
      resourceserver serve
    """  # noqa: D301 - click reads the control character
