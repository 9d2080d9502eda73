"""The `authserver` command."""

from pathlib import Path

import click

from gatehouse.authserver.cli.audit import audit
from gatehouse.authserver.cli.client import client
from gatehouse.authserver.cli.resource import resource
from gatehouse.authserver.cli.serve import init, serve
from gatehouse.shared.command_line import Commands


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--env-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read settings from this file; variables of the environment win.",
)
@click.version_option(package_name="gatehouse")
@click.pass_context
def main(ctx: click.Context, env_file: Path | None) -> None:
    r"""The Gatehouse authorization server: short-lived access tokens for machine agents.

    Settings are variables named AUTHSERVER_..., or lines of --env-file. The defaults serve
    http://127.0.0.1:9000 from files in var/ and keys/ of the working directory.

    \b
    From nothing to a token:
      authserver init
      authserver resource add http://127.0.0.1:8000/mcp --name demo --scope env:read
      authserver client create --name agent --resource http://127.0.0.1:8000/mcp --scope env:read
      authserver serve
    """
    ctx.obj = env_file


for command in (init, serve, resource, client, audit):
    main.add_command(command)
