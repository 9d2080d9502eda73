"""The `resourceserver` command."""

from pathlib import Path

import click

from gatehouse.resource.cli.audit import audit
from gatehouse.resource.cli.serve import init, serve
from gatehouse.resource.cli.tools import tools
from gatehouse.resource.cli.workspace import workspace
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
    r"""The Gatehouse resource server: MCP tools behind access tokens and scopes.

    Settings are variables named RESOURCESERVER_..., or lines of --env-file. The defaults serve
    http://127.0.0.1:8000/mcp, and trust the issuer http://127.0.0.1:9000.

    \b
    From nothing to a served tool:
      resourceserver init
      resourceserver workspace create --name acme
      resourceserver tools
      resourceserver serve
    """
    ctx.obj = env_file


for command in (init, serve, tools, workspace, audit):
    main.add_command(command)
