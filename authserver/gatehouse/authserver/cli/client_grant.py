"""`authserver client grant`: the scopes of a client."""

import click

from gatehouse.authserver.cli.client_record import print_client
from gatehouse.authserver.cli.credentials import WITHIN_A_SECOND
from gatehouse.authserver.cli.installation import open_installation
from gatehouse.authserver.clients import registration
from gatehouse.shared.service.cli import example, join_scopes, output_option


@click.group()
@example(
    "authserver client grant add agent_0123456789abcdef0123 --resource https://mcp.example.com/mcp --scope env:write"
)
def grant() -> None:
    """Add and remove the scopes that a client may have at a resource."""


@grant.command("add")
@click.argument("client_id")
@click.option("--resource", required=True, metavar="URL", help="The resource.")
@click.option("--scope", required=True, multiple=True, callback=join_scopes, metavar='"A B"', help="The scopes to add.")
@output_option
@click.pass_context
@example(
    'authserver client grant add agent_0123456789abcdef0123 --resource https://mcp.example.com/mcp --scope "env:write"'
)
def add(ctx: click.Context, client_id: str, resource: str, scope: str, output: str) -> None:
    """Grant more scopes at a resource to a client.

    The client keeps the scopes that it has.
    """
    with open_installation(ctx) as installation, installation.database.write() as session:
        changed = registration.add_grant(session, installation.admin, client_id, resource, scope)
    print_client(changed, installation.admin.now(), output)
    click.echo(WITHIN_A_SECOND, err=True)


@grant.command("remove")
@click.argument("client_id")
@click.option("--resource", required=True, metavar="URL", help="The resource.")
@click.option(
    "--scope", required=True, multiple=True, callback=join_scopes, metavar='"A B"', help="The scopes to remove."
)
@output_option
@click.pass_context
@example(
    "authserver client grant remove agent_0123456789abcdef0123 --resource https://mcp.example.com/mcp"
    ' --scope "env:write"'
)
def remove(ctx: click.Context, client_id: str, resource: str, scope: str, output: str) -> None:
    """Remove scopes from a client. Issued tokens keep them until they expire."""
    with open_installation(ctx) as installation, installation.database.write() as session:
        changed = registration.remove_grant(session, installation.admin, client_id, resource, scope)
    print_client(changed, installation.admin.now(), output)
    click.echo(WITHIN_A_SECOND, err=True)
