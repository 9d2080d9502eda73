"""The `resourceserver` command."""

from gatehouse.resourceserver.cli.audit import audit
from gatehouse.resourceserver.cli.bridge import bridge
from gatehouse.resourceserver.cli.check import check
from gatehouse.resourceserver.cli.serve import init, serve
from gatehouse.resourceserver.cli.tools import tools
from gatehouse.resourceserver.cli.workspace import workspace
from gatehouse.shared.service.cli import server_group


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
