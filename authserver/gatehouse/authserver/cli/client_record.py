"""Prints a client, for every command that shows or changes one."""

from collections.abc import Sequence
from typing import Any

import click

from gatehouse.authserver.cli.credentials import lifetime_record
from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.workloads.registry import ClientRule
from gatehouse.shared.protocol.clock import iso_time
from gatehouse.shared.protocol.redaction import printable
from gatehouse.shared.protocol.scopes import format_scope
from gatehouse.shared.service.output import cell_text, print_record

BY_NEXT_POLL = "at every resource server by its next poll, which is every 5 s by default"
ENDS_TOKENS = f"Takes effect at the token endpoint within one second, and for issued tokens {BY_NEXT_POLL}."


def client_record(registered: Client, now: int) -> dict[str, Any]:
    """Return a client with the member names of RFC 7591 2."""
    return {
        "client_id": registered.client_id,
        "client_name": registered.client_name,
        "token_endpoint_auth_method": registered.token_endpoint_auth_method,
        "disabled": registered.disabled,
        "strict": registered.strict,
        "token_ttl": registered.token_ttl,
        "token_endpoint_audience": registered.token_endpoint_audience,
        "key_ids": sorted({key.kid for key in registered.as_of(now).keys}),
        "keys": key_records(registered, now),
        "claims": dict(registered.claims),
        "grants": [
            {"resource": resource, "scope": format_scope(scopes)} for resource, scopes in registered.grants.items()
        ],
        "client_id_issued_at": registered.created_at,
    }


def key_records(registered: Client, now: int) -> list[dict[str, Any]]:
    """Return the keys of a client with their lifetimes, the oldest first."""
    return [
        {
            "kid": key.kid,
            "thumbprint": key.thumbprint,
            "algs": [verification.alg for verification in key.verification],
            **lifetime_record(key.lifetime, now),
        }
        for key in sorted(registered.keys, key=lambda key: key.lifetime.oldest_first())
    ]


def rule_record(owned: ClientRule) -> dict[str, Any]:
    """Return a trust rule as it is printed."""
    used = owned.last_used_at
    return {
        "rule_id": owned.rule.rule_id,
        "issuer": owned.issuer,
        "claims": dict(owned.rule.conditions),
        "created_at": iso_time(owned.created_at),
        "last_used_at": None if used is None else iso_time(used),
    }


def print_client(
    registered: Client, now: int, output: str, rules: Sequence[ClientRule] | None = None, /, **first: str
) -> None:
    """Print a client, after the members that are shown only once. `rules` are its trust rules, if it can have any."""
    record = client_record(registered, now)
    trusted = [rule_record(owned) for owned in rules or ()]
    if output == "json":
        print_record({**first, **record, **({} if rules is None else {"trust_rules": trusted})}, output)
        return
    grants, keys = record.pop("grants"), record.pop("keys")
    record["client_id_issued_at"] = iso_time(registered.created_at)
    record.pop("client_id")
    print_record({"client_id": registered.client_id, **first, **record}, output)
    for key in (known for known in keys if known["state"] == "active"):
        used, until = key["last_used_at"] or "never", key["expires_at"] or "it is replaced"
        click.echo(f"key {printable(key['kid'])}: last used {used}, valid until {until}")
    if not grants:
        click.echo("No grants. Add one with: authserver client grant add")
    for entry in grants:
        click.echo(f'granted "{entry["scope"]}" at {entry["resource"]}')
    for rule in trusted:
        used = rule["last_used_at"] or "never"
        click.echo(f"trusts {rule['issuer']} where {cell_text(rule['claims'])}: {rule['rule_id']}, last used {used}")
    if rules == []:
        click.echo("No trust rules. Add one with: authserver client trust add")


def note_workspace(registered: Client) -> None:
    """Warn about a client without a workspace. A misspelt claim name is a legal claim and would not be noticed."""
    if "workspace_id" not in registered.claims:
        click.echo(
            "This client has no workspace. If the resource serves the bundled directory, its tools need "
            "--claim workspace_id=wks_... See: resourceserver workspace list",
            err=True,
        )
