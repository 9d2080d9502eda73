"""The `authserver` command."""

from gatehouse.shared.service.cli import server_group

_COMMANDS = {
    "access-matrix": ("gatehouse.authserver.cli.access:access_matrix", "Show which client can call which tool."),
    "audit": (
        "gatehouse.authserver.cli.audit:audit",
        "Search, follow and export the audit log.",
    ),
    "check": ("gatehouse.authserver.cli.check:check", "Check everything that the server needs to start."),
    "client": ("gatehouse.authserver.cli.client:client", "Register clients, and manage their grants and credentials."),
    "export": ("gatehouse.authserver.cli.backup:export", "Export this installation to a file."),
    "import": ("gatehouse.authserver.cli.backup:import_", "Import an exported installation into an empty database."),
    "init": ("gatehouse.authserver.cli.init:init", "Create the keys, and create or upgrade the database."),
    "issuer": (
        "gatehouse.authserver.cli.issuer:issuer",
        "Trust platforms whose tokens authenticate workloads.",
    ),
    "key": ("gatehouse.authserver.cli.key:key", "List, rotate and revoke signing keys."),
    "resource": (
        "gatehouse.authserver.cli.resource:resource",
        "Register resources and their scopes.",
    ),
    "restore": ("gatehouse.authserver.cli.restore:restore", "Use a database that was restored from a backup."),
    "sealing-key": (
        "gatehouse.authserver.cli.sealing_key:sealing_key",
        "Rotate the key that encrypts signing keys and peppers.",
    ),
    "serve": ("gatehouse.authserver.cli.serve:serve", "Serve until SIGTERM or Ctrl-C."),
    "token": ("gatehouse.authserver.cli.token:token", "Issue, inspect and revoke access tokens."),
}


@server_group(_COMMANDS)
def main() -> None:
    """The Gatehouse authorization server: short-lived access tokens for machine clients.

    Settings come from environment variables named AUTHSERVER_... or from the file of --env-file. To list them, run
    `authserver check --explain`. By default, the server listens at http://127.0.0.1:9000 and keeps its files in var/
    and keys/ of the working directory.

    \b
    Getting started:
      authserver init
      authserver resource add http://127.0.0.1:8000/mcp --name demo --scope env:read
      authserver client create --name agent --resource http://127.0.0.1:8000/mcp --scope env:read
      authserver serve
    """  # noqa: D301 - click reads the control character
