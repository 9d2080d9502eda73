"""`authserver client trust`: which platform tokens authenticate a client."""

from functools import partial
from typing import Any

import click
from sqlalchemy.orm import Session

from gatehouse.authserver.cli.claims import parse_claims
from gatehouse.authserver.cli.client_record import rule_record
from gatehouse.authserver.cli.credentials import WITHIN_A_SECOND, list_credentials, revoke_credential
from gatehouse.authserver.cli.installation import open_installation
from gatehouse.authserver.clients.registry import existing_client
from gatehouse.authserver.workloads.claim_shapes import doubtful_conditions
from gatehouse.authserver.workloads.presets import audience_warnings, rule_warnings
from gatehouse.authserver.workloads.registration import existing_issuer
from gatehouse.authserver.workloads.registry import rules_of_client
from gatehouse.authserver.workloads.rule_registration import add_rule, remove_rule, rival_rules
from gatehouse.authserver.workloads.rules import Rule, remove_command
from gatehouse.shared.protocol.redaction import printable
from gatehouse.shared.service.cli import example, output_option
from gatehouse.shared.service.output import print_record

_COLUMNS = ("rule_id", "issuer", "claims", "created_at", "last_used_at")


def _listing(client_id: str, session: Session, _: int) -> list[dict[str, Any]]:
    existing_client(session, client_id)
    return [rule_record(owned) for owned in rules_of_client(session.connection(), client_id)]


def _rival_warning(rival: Rule) -> str:
    return (
        f"A token that also has the claims of the rule {rival.rule_id} of {rival.client_id} is refused, because it"
        f" would stand for two clients. To remove that rule: {remove_command(rival.client_id, rival.rule_id)}"
    )


@click.group()
@example(
    "authserver client trust add agent_0123456789abcdef0123 --issuer cluster"
    " --claim /kubernetes.io/namespace=prod --claim /kubernetes.io/serviceaccount/name=agent"
)
def trust() -> None:
    """Manage trust rules: which platform tokens stand for a client."""


@trust.command("add")
@click.argument("client_id")
@click.option("--issuer", required=True, metavar="NAME", help="The trusted issuer of the tokens.")
@click.option(
    "--claim",
    "claims",
    required=True,
    multiple=True,
    metavar="NAME=VALUE",
    callback=parse_claims,
    help="A claim that a token must have, with exactly this value, not a pattern; repeatable, and all must match. The"
    " name of a nested member begins with a slash (JSON Pointer), such as /kubernetes.io/namespace=prod.",
)
@output_option
@click.pass_context
@example(
    "authserver client trust add agent_0123456789abcdef0123 --issuer cluster"
    " --claim /kubernetes.io/namespace=prod --claim /kubernetes.io/serviceaccount/name=agent\n"
    "authserver client trust add agent_0123456789abcdef0123 --issuer github"
    " --claim repository_id=74 --claim ref=refs/heads/main"
)
def add(ctx: click.Context, client_id: str, issuer: str, claims: dict[str, str], output: str) -> None:
    """Let tokens with these claims authenticate a client.

    Everybody whom the platform serves shares the issuer. So among the claims must be the sub; or, for GitHub, the
    repository_id with environment or ref; or, for Kubernetes, the namespace and the name of the service account. The
    claims of each kind are listed by: authserver issuer claims KIND

    Claims that no token of the platform has are refused; those that its tokens probably do not have cause a warning.
    """
    with open_installation(ctx) as installation, installation.database.write() as session:
        rule = add_rule(session, installation.admin, client_id, issuer, claims)
        trusted = existing_issuer(session, issuer)
        rivals = rival_rules(session, trusted, rule)
    record = {"rule_id": rule.rule_id, "client_id": client_id, "issuer": issuer, "claims": dict(rule.conditions)}
    print_record(record, output)
    kind, conditions = trusted.kind, rule.conditions
    warnings = (
        *doubtful_conditions(kind, conditions),
        *rule_warnings(kind, conditions),
        *map(_rival_warning, rivals),
        *audience_warnings(trusted),
    )
    for warning in warnings:
        click.echo(f"Warning: {printable(warning)}", err=True)
    click.echo(WITHIN_A_SECOND, err=True)


@trust.command("list")
@click.argument("client_id")
@output_option
@click.pass_context
@example("authserver client trust list agent_0123456789abcdef0123")
def list_(ctx: click.Context, client_id: str, output: str) -> None:
    """List the trust rules of a client. The last use is up to two minutes out of date."""
    list_credentials(ctx, partial(_listing, client_id), _COLUMNS, output)


@trust.command("remove")
@click.argument("client_id")
@click.argument("rule_id")
@output_option
@click.pass_context
@example("authserver client trust remove agent_0123456789abcdef0123 rule_0123456789abcdef")
def remove(ctx: click.Context, client_id: str, rule_id: str, output: str) -> None:
    """Remove a trust rule of a client, and list the others.

    Tokens that the client has already obtained stay valid until they expire. To revoke them, run: authserver token
    revoke --client CLIENT_ID
    """
    change = partial(remove_rule, client_id=client_id, rule_id=rule_id)
    revoke_credential(ctx, change, partial(_listing, client_id), _COLUMNS, output)
