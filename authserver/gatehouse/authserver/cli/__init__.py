"""The `authserver` command."""

from gatehouse.authserver.cli.access import access_matrix, explain
from gatehouse.authserver.cli.audit import audit
from gatehouse.authserver.cli.backup import export, import_
from gatehouse.authserver.cli.check import check
from gatehouse.authserver.cli.client import client
from gatehouse.authserver.cli.client_grant import grant
from gatehouse.authserver.cli.client_key import client_key
from gatehouse.authserver.cli.client_secret import secret
from gatehouse.authserver.cli.key import key
from gatehouse.authserver.cli.resource import resource
from gatehouse.authserver.cli.resource_credential import credential
from gatehouse.authserver.cli.sealing_key import sealing_key
from gatehouse.authserver.cli.serve import init, serve
from gatehouse.authserver.cli.token import token
from gatehouse.shared.service.cli import server_group


@server_group
def main() -> None:
    """The Gatehouse authorization server: short-lived access tokens for machine agents.

    Settings are variables named AUTHSERVER_..., or lines of --env-file. The defaults serve
    http://127.0.0.1:9000 from files in var/ and keys/ of the working directory.

    \b
    From nothing to a token:
      authserver init
      authserver resource add http://127.0.0.1:8000/mcp --name demo --scope env:read
      authserver client create --name agent --resource http://127.0.0.1:8000/mcp --scope env:read
      authserver serve
    """  # noqa: D301 - click reads the control character


client.add_command(explain)
client.add_command(grant)
client.add_command(secret)
client.add_command(client_key)
resource.add_command(credential)
for command in (init, check, serve, resource, client, access_matrix, token, key, sealing_key, audit, export, import_):
    main.add_command(command)
