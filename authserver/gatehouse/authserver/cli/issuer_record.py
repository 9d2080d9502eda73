"""Prints trusted issuers, for every command that shows or changes one."""

from collections.abc import Collection, Sequence
from typing import Any

import click
from sqlalchemy.orm import Session

from gatehouse.authserver.cli.installation import Installation
from gatehouse.authserver.workloads.key_state import describe_age, key_age, key_problem, key_warning
from gatehouse.authserver.workloads.registry import KeyLocation, TrustedIssuer, load_issuers, shared_keys
from gatehouse.authserver.workloads.rules import Rule
from gatehouse.shared.protocol.clock import iso_time
from gatehouse.shared.protocol.redaction import printable
from gatehouse.shared.service.output import print_record, print_records


def issuer_record(issuer: TrustedIssuer, own: str, shared: Collection[str], now: int) -> dict[str, Any]:
    """Return a trusted issuer as it is printed.

    `own` is the identifier of this server, the audience of issuers without one. `shared` are the thumbprints of keys
    that several enabled issuers have.
    """
    return {
        "name": issuer.name,
        "issuer": issuer.issuer,
        "kind": issuer.kind.name,
        "disabled": issuer.disabled,
        "audience": issuer.audience or own,
        "token_endpoint_audience": issuer.token_endpoint_audience,
        "algorithms": list(issuer.algorithms),
        "max_lifetime": issuer.max_lifetime,
        "one_time": issuer.one_time,
        "created_at": iso_time(issuer.created_at),
        "keys_from": _origin(issuer.location),
        "ca_file": issuer.location.ca_file,
        "bearer_token_file": issuer.location.bearer_token_file,
        "keys_at": None if issuer.fetched_at is None else iso_time(issuer.fetched_at),
        "keys_age": key_age(issuer, now),
        "keys_problem": key_problem(issuer, shared, now) or key_warning(issuer, now),
        "keys": [
            {"kid": kid, "algs": [key.alg for key in keys], "thumbprint": keys[0].thumbprint}
            for kid, keys in issuer.keys.items()
        ],
    }


def stored_record(installation: Installation, session: Session, issuer: TrustedIssuer) -> dict[str, Any]:
    """Return a trusted issuer as it is printed, beside the others that are stored."""
    enabled = [one for one in load_issuers(session.connection()) if not one.disabled]
    return issuer_record(issuer, installation.settings.issuer, shared_keys(enabled), installation.admin.now())


def _origin(location: KeyLocation) -> str:
    return location.jwks_uri or ("discovery" if location.discovery else "file")


def print_issuer(record: dict[str, Any], output: str, rules: Sequence[Rule] | None = None) -> None:
    """Print a record of `issuer_record`, with its trust rules if they are given."""
    listed = [
        {"rule_id": rule.rule_id, "client_id": rule.client_id, "claims": dict(rule.conditions)} for rule in rules or ()
    ]
    if output == "json":
        print_record({**record, **({} if rules is None else {"trust_rules": listed})}, output)
        return
    shown = {name: value for name, value in record.items() if name != "keys"}
    if shown["keys_age"] is not None:
        shown["keys_age"] = describe_age(shown["keys_age"])
    print_record(shown, output)
    for key in record["keys"]:
        click.echo(f"key {printable(key['kid'])} for {' '.join(key['algs'])}, thumbprint {key['thumbprint']}")
    if listed:
        print_records(listed, ("rule_id", "client_id", "claims"), output)
