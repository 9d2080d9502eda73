"""The `resourceserver` command."""

from gatehouse.resource.cli.audit import audit
from gatehouse.resource.cli.bridge import bridge
from gatehouse.resource.cli.check import check
from gatehouse.resource.cli.serve import init, serve
from gatehouse.resource.cli.tools import tools
from gatehouse.resource.cli.workspace import workspace
from gatehouse.shared.command_line import server_group


@server_group
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


for command in (init, check, serve, tools, workspace, audit, bridge):
    main.add_command(command)
