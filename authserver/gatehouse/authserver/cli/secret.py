"""`authserver client secret`: what a client proves itself by, where it has no key."""

import click

from gatehouse.authserver.cli.client_record import WITHIN_A_SECOND, print_secret
from gatehouse.authserver.cli.installation import open_installation
from gatehouse.authserver.clients import administration
from gatehouse.shared.command_line import confirm, example, iso_time, output_option, print_records


@click.group()
@example("authserver client secret rotate agent_0123456789abcdef0123")
def secret() -> None:
    """Secrets: made here, shown once, kept as digests."""


@secret.command()
@click.argument("client_id")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
@click.pass_context
@example("authserver client secret rotate agent_0123456789abcdef0123 --yes")
def rotate(ctx: click.Context, client_id: str, yes: bool, output: str) -> None:
    """Give a client a new secret. The old one is refused within one second."""
    confirm(f"Replace the secret of {client_id}? The old one stops working.", yes=yes)
    with open_installation(ctx) as installation:
        keys = installation.keys()
        with installation.database.write() as session:
            changed, client_secret = administration.rotate_secret(session, installation.admin, keys, client_id)
            # Before the transaction ends: where nobody reads the new secret, the old one stays.
            print_secret(changed, output, client_secret)
    click.echo(WITHIN_A_SECOND, err=True)


@secret.command("list")
@click.argument("client_id")
@output_option
@click.pass_context
@example("authserver client secret list agent_0123456789abcdef0123")
def list_(ctx: click.Context, client_id: str, output: str) -> None:
    """List the secrets of a client: how each begins, and when it was made."""
    with open_installation(ctx) as installation, installation.database.read() as session:
        records = [
            {"secret_id": secret_id, "begins": hint, "created_at": iso_time(created_at)}
            for secret_id, hint, created_at in administration.list_secrets(session, client_id)
        ]
    print_records(records, ("secret_id", "begins", "created_at"), output)
