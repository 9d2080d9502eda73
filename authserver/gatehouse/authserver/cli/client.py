"""`authserver client`: register, show, change and delete clients."""

from pathlib import Path
from typing import Any

import click

from gatehouse.authserver.cli.claims import parse_claims
from gatehouse.authserver.cli.client_record import (
    ENDS_TOKENS,
    client_record,
    note_workspace,
    print_client,
)
from gatehouse.authserver.cli.credentials import WITHIN_A_SECOND, shown_once
from gatehouse.authserver.cli.installation import open_installation
from gatehouse.authserver.cli.key_files import ChosenKeys, key_file_options
from gatehouse.authserver.clients import registration
from gatehouse.authserver.clients.registry import REGISTERED_METHODS, WORKLOAD_IDENTITY, existing_client, load_clients
from gatehouse.authserver.workloads.registry import rules_of_client
from gatehouse.shared.protocol.claims import MAX_LIFETIME
from gatehouse.shared.service.cli import LazyGroup, confirm, example, join_scopes, output_option
from gatehouse.shared.service.output import print_record, print_records

_COMMANDS = {
    "explain": (
        "gatehouse.authserver.cli.access:explain",
        "Show what a client can use, and how to allow the rest.",
    ),
    "grant": ("gatehouse.authserver.cli.client_grant:grant", "Add and remove the scopes that a client may have."),
    "key": ("gatehouse.authserver.cli.client_key:client_key", "Manage the public keys of private_key_jwt clients."),
    "secret": ("gatehouse.authserver.cli.client_secret:secret", "Rotate, list and revoke client secrets."),
    "trust": (
        "gatehouse.authserver.cli.client_trust:trust",
        "Manage trust rules: which platform tokens stand for a client.",
    ),
}


@click.group(cls=LazyGroup, lazy=_COMMANDS)
@example("authserver client list\nauthserver client explain agent_0123456789abcdef0123 --catalogue catalogue.json")
def client() -> None:
    """Register clients, and manage their grants and credentials."""


@client.command()
@click.option("--name", required=True, help="Display name.")
@click.option("--resource", required=True, metavar="URL", help="The registered resource that the client calls.")
@click.option(
    "--scope",
    required=True,
    multiple=True,
    callback=join_scopes,
    metavar='"A B"',
    help="The scopes to grant at the resource.",
)
@click.option(
    "--auth-method",
    "auth_method",
    type=click.Choice(REGISTERED_METHODS),
    metavar="METHOD",
    help=f"How the client authenticates: {', '.join(REGISTERED_METHODS)}.  [default: private_key_jwt with a key, else"
    " client_secret_basic]",
)
@key_file_options
@click.option(
    "--claim",
    "claims",
    multiple=True,
    metavar="NAME=VALUE",
    callback=parse_claims,
    help="A claim to add to its tokens, such as workspace_id=wks_01k5v3j8qz7m2x9c4d6f8g0h1t; repeatable.",
)
@click.option(
    "--ttl",
    "token_ttl",
    type=click.IntRange(1, MAX_LIFETIME),
    help="Lifetime of its tokens in seconds.  [default: the server's]",
)
@click.option(
    "--strict", is_flag=True, help="Reject token requests for scopes that are not granted. Default: omit those scopes."
)
@click.option("--token-endpoint-audience", is_flag=True, help="Accept assertions whose audience is the token endpoint.")
@output_option
@click.pass_context
@example(
    'authserver client create --name ci-agent --resource https://mcp.example.com/mcp --scope "env:read org:read"'
    " --claim workspace_id=wks_01k5v3j8qz7m2x9c4d6f8g0h1t\n"
    "authserver client create --name ci-agent --resource https://mcp.example.com/mcp --scope env:read"
    " --generate-key ci-agent.pem\n"
    "authserver client create --name ci-agent --resource https://mcp.example.com/mcp --scope env:read"
    " --auth-method workload_identity"
)
def create(
    ctx: click.Context,
    /,
    auth_method: str | None,
    jwks: Path | None,
    generate_key: Path | None,
    output: str,
    **values: Any,
) -> None:
    """Register a client. Without a key, it gets a secret, which is shown only once.

    A client with the method workload_identity has neither: it authenticates with tokens of its platform.
    """
    chosen = ChosenKeys.of(jwks, generate_key)
    if chosen.public is not None and auth_method == WORKLOAD_IDENTITY:
        raise click.UsageError(
            f"A client of {WORKLOAD_IDENTITY} has neither a secret nor a key. Leave out --generate-key and --jwks."
        )
    if chosen.public is not None and auth_method not in {None, "private_key_jwt"}:
        raise click.UsageError(
            f"A client with keys has no secret for --auth-method {auth_method}. Leave out one of the two."
        )
    method = auth_method or ("client_secret_basic" if chosen.public is None else "private_key_jwt")
    with open_installation(ctx) as installation:
        keys, now = installation.keys(), installation.admin.now()
        registered = registration.Registration(auth_method=method, jwks=chosen.public, **values)
        # Before the transaction commits: if the key file or the secret cannot be written, no client is registered.
        with chosen.written(), installation.database.write() as session:
            created, secret = registration.create_client(session, installation.admin, keys, registered)
            if secret is not None:
                with shown_once("client_secret", output):
                    print_client(created, now, output, client_secret=secret)
    if secret is None:
        print_client(created, now, output, **chosen.record())
    chosen.note_ignored()
    note_workspace(created)
    if method == WORKLOAD_IDENTITY:
        click.echo(
            "No platform token authenticates this client yet. Add a rule with: "
            f"authserver client trust add {created.client_id} --issuer NAME --claim NAME=VALUE",
            err=True,
        )


@client.command("list")
@output_option
@click.pass_context
@example("authserver client list")
def list_(ctx: click.Context, output: str) -> None:
    """List the clients."""
    with open_installation(ctx) as installation, installation.database.read() as session:
        now = installation.admin.now()
        records = [client_record(registered, now) for registered in load_clients(session.connection())]
    print_records(records, ("client_id", "client_name", "token_endpoint_auth_method", "disabled", "claims"), output)


@client.command()
@click.argument("client_id")
@output_option
@click.pass_context
@example("authserver client show agent_0123456789abcdef0123")
def show(ctx: click.Context, client_id: str, output: str) -> None:
    """Show a client with its grants and trust rules."""
    with open_installation(ctx) as installation, installation.database.read() as session:
        registered = existing_client(session, client_id)
        is_workload = registered.token_endpoint_auth_method == WORKLOAD_IDENTITY
        rules = rules_of_client(session.connection(), client_id) if is_workload else None
    print_client(registered, installation.admin.now(), output, rules)


@client.command()
@click.argument("client_id")
@output_option
@click.pass_context
@example("authserver client disable agent_0123456789abcdef0123")
def disable(ctx: click.Context, client_id: str, output: str) -> None:
    """Disable a client and revoke its tokens."""
    _set_disabled(ctx, client_id, output, disabled=True)


@client.command()
@click.argument("client_id")
@output_option
@click.pass_context
@example("authserver client enable agent_0123456789abcdef0123")
def enable(ctx: click.Context, client_id: str, output: str) -> None:
    """Enable a disabled client. Its revoked tokens stay revoked."""
    _set_disabled(ctx, client_id, output, disabled=False)


def _set_disabled(ctx: click.Context, client_id: str, output: str, *, disabled: bool) -> None:
    with open_installation(ctx) as installation, installation.database.write() as session:
        changed = registration.set_disabled(session, installation.admin, client_id, disabled=disabled)
    print_client(changed, installation.admin.now(), output)
    click.echo(ENDS_TOKENS if disabled else WITHIN_A_SECOND, err=True)


@client.command()
@click.argument("client_id")
@click.option("--name", help="Display name.")
@click.option("--ttl", "token_ttl", type=click.IntRange(1, MAX_LIFETIME), help="Lifetime of its tokens in seconds.")
@click.option("--default-ttl", is_flag=True, help="Use the server's token lifetime instead of the client's own.")
@click.option(
    "--strict/--no-strict",
    default=None,
    help="Reject token requests for scopes that are not granted, or omit those scopes.",
)
@click.option(
    "--token-endpoint-audience/--no-token-endpoint-audience",
    default=None,
    help="Accept or reject assertions whose audience is the token endpoint.",
)
@click.option(
    "--claim",
    "claims",
    multiple=True,
    metavar="NAME=VALUE",
    callback=parse_claims,
    help="Set a claim of its tokens; repeatable.",
)
@click.option(
    "--remove-claim", "removed", multiple=True, metavar="NAME", help="Remove a claim from its tokens; repeatable."
)
@output_option
@click.pass_context
@example(
    "authserver client update agent_0123456789abcdef0123 --ttl 120 --claim workspace_id=wks_01k5v3j8qz7m2x9c4d6f8g0h1t"
)
def update(
    ctx: click.Context,
    /,
    client_id: str,
    claims: dict[str, str],
    removed: tuple[str, ...],
    output: str,
    **members: Any,
) -> None:
    """Change a client. Tokens that were already issued do not change."""
    change = registration.Update(claims={**dict.fromkeys(removed), **claims}, **members)
    if change == registration.Update():
        raise click.UsageError("Nothing to change: give at least one option, such as --ttl 120. See: --help")
    if change.token_ttl is not None and change.default_ttl:
        raise click.UsageError("Give --ttl or --default-ttl, not both.")
    with open_installation(ctx) as installation, installation.database.write() as session:
        changed = registration.update_client(session, installation.admin, client_id, change)
    print_client(changed, installation.admin.now(), output)
    note_workspace(changed)
    click.echo(WITHIN_A_SECOND, err=True)


@client.command()
@click.argument("client_id")
@click.option("--yes", is_flag=True, help="Skip the confirmation prompt.")
@output_option
@click.pass_context
@example("authserver client delete agent_0123456789abcdef0123 --yes")
def delete(ctx: click.Context, client_id: str, yes: bool, output: str) -> None:
    """Delete a client, and revoke its tokens.

    Its credentials and grants are deleted too.
    """
    confirm(f"Delete the client {client_id}, its credentials and its grants?", yes=yes)
    with open_installation(ctx) as installation, installation.database.write() as session:
        registration.delete_client(session, installation.admin, client_id)
    print_record({"client_id": client_id, "deleted": True}, output)
    click.echo(ENDS_TOKENS, err=True)
