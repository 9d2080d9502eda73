"""`authserver resource credential`: what a resource asks about tokens with."""

from typing import Any

import click

from gatehouse.authserver.cli.installation import open_installation
from gatehouse.authserver.clients.resource_credentials import (
    MAX_OVERLAP,
    ResourceCredential,
    create_credential,
    list_credentials,
    rotate_credential,
)
from gatehouse.shared.command_line import example, iso_time, output_option, print_record, print_records


@click.group()
def credential() -> None:
    """Credentials for introspection: made here, shown once, kept as digests. They obtain no token."""


def _record(known: ResourceCredential) -> dict[str, Any]:
    return {
        "credential_id": known.credential_id,
        "resource": known.resource,
        "begins": known.begins,
        "created_at": iso_time(known.created_at),
        "expires_at": None if known.expires_at is None else iso_time(known.expires_at),
    }


def _print_once(created: ResourceCredential, secret: str, output: str) -> None:
    record = _record(created)
    print_record({"credential_id": record.pop("credential_id"), "secret": secret, **record}, output)
    if output == "table":
        click.echo("Keep secret now: it is not stored and cannot be shown again.", err=True)


@credential.command()
@click.argument("url")
@output_option
@click.pass_context
@example("authserver resource credential create https://mcp.example.com/mcp")
def create(ctx: click.Context, url: str, output: str) -> None:
    """Give the resource URL a credential to ask with whether tokens for it are live."""
    with open_installation(ctx) as installation:
        keys = installation.keys()
        with installation.database.write() as session:
            created, secret = create_credential(session, installation.admin, keys, url)
    _print_once(created, secret, output)


@credential.command()
@click.argument("credential_id")
@click.option(
    "--overlap",
    type=click.IntRange(0, MAX_OVERLAP),
    default=0,
    show_default=True,
    metavar="SECONDS",
    help="How long the old one is accepted beside the new one.",
)
@output_option
@click.pass_context
@example("authserver resource credential rotate rsc_0123456789abcdef --overlap 86400")
def rotate(ctx: click.Context, credential_id: str, overlap: int, output: str) -> None:
    """Replace a credential by a new one. The old one is refused after the overlap, and within one second of it."""
    with open_installation(ctx) as installation:
        keys = installation.keys()
        with installation.database.write() as session:
            created, secret = rotate_credential(session, installation.admin, keys, credential_id, overlap)
    _print_once(created, secret, output)


@credential.command("list")
@output_option
@click.pass_context
@example("authserver resource credential list")
def list_(ctx: click.Context, output: str) -> None:
    """List the credentials that are accepted: whose they are, how each begins, and when it was made."""
    with open_installation(ctx) as installation, installation.database.read() as session:
        records = [_record(known) for known in list_credentials(session, installation.admin.now())]
    print_records(records, ("credential_id", "resource", "begins", "created_at", "expires_at"), output)
