"""Adds and removes trust rules. Every change commits together with its audit event."""

import secrets
from collections.abc import Mapping
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from gatehouse.authserver.clients.registry import WORKLOAD_IDENTITY, locked_client
from gatehouse.authserver.db.models import TrustRuleRow
from gatehouse.authserver.workloads.claim_shapes import check_can_match
from gatehouse.authserver.workloads.registration import existing_issuer
from gatehouse.authserver.workloads.registry import TrustedIssuer, rules_of_client
from gatehouse.authserver.workloads.rules import (
    InvalidRule,
    Rule,
    check_conditions,
    may_both_match,
    remove_command,
    rule_anchor,
)
from gatehouse.shared.service.administrator import Administrator, CommandRefused
from gatehouse.shared.service.audit.events import AuditAction

MAX_RULES: Final = 64
"""Of one client."""


def add_rule(
    session: Session, admin: Administrator, client_id: str, issuer_name: str, conditions: Mapping[str, str]
) -> Rule:
    """Let tokens of a trusted issuer with these claims authenticate a client.

    Raises:
        CommandRefused: an unknown client or issuer, a client with credentials of its own, or claims that do not
            identify a workload, that no token has, or that another rule has.
    """
    client = locked_client(session, client_id)
    if client.token_endpoint_auth_method != WORKLOAD_IDENTITY:
        raise CommandRefused(
            f"The client authenticates by {client.token_endpoint_auth_method}, and a client has one method."
            f" Register one for its platform: authserver client create --auth-method {WORKLOAD_IDENTITY} --name NAME"
            " --resource URL --scope SCOPE"
        )
    issuer = existing_issuer(session, issuer_name)
    try:
        checked = check_conditions(issuer.kind, issuer.issuer, conditions)
        check_can_match(issuer.kind, checked)
        anchor = rule_anchor(issuer.kind, checked)
    except InvalidRule as error:
        raise CommandRefused(str(error)) from None
    own = rules_of_client(session.connection(), client_id)
    if len(own) >= MAX_RULES:
        raise CommandRefused(f"A client has at most {MAX_RULES} trust rules.")
    for row in session.scalars(
        select(TrustRuleRow).where(TrustRuleRow.issuer == issuer.name, TrustRuleRow.anchor == anchor)
    ):
        if row.conditions == checked:
            raise CommandRefused(
                f"The rule {row.rule_id} of {row.client_id} has the same claims."
                f" To remove it: {remove_command(row.client_id, row.rule_id)}"
            )
    rule_id = f"rule_{secrets.token_hex(8)}"
    session.add(
        TrustRuleRow(
            rule_id=rule_id,
            client_id=client_id,
            issuer=issuer.name,
            anchor=anchor,
            conditions=checked,
            created_at=admin.now(),
        )
    )
    session.flush()
    admin.record(session, AuditAction.CLIENT_TRUST_ADD, client_id, rule=rule_id, issuer=issuer.name, conditions=checked)
    return Rule(rule_id, client_id, checked)


def rival_rules(session: Session, issuer: TrustedIssuer, rule: Rule) -> list[Rule]:
    """Return the rules of other clients that a token can match together with a rule, so that it is refused."""
    row, anchor = TrustRuleRow, rule_anchor(issuer.kind, rule.conditions)
    found = session.scalars(select(row).where(row.issuer == issuer.name, row.anchor == anchor).order_by(row.rule_id))
    others = [Rule(one.rule_id, one.client_id, one.conditions) for one in found]
    return [other for other in others if other.client_id != rule.client_id and may_both_match(rule, other)]


def remove_rule(session: Session, admin: Administrator, client_id: str, rule_id: str) -> None:
    """Remove a trust rule of a client. Raises CommandRefused if the client has no such rule."""
    locked_client(session, client_id)
    row = session.get(TrustRuleRow, rule_id)
    if row is None or row.client_id != client_id:
        raise CommandRefused(f"The client has no rule {rule_id}. See: authserver client trust list {client_id}")
    session.delete(row)
    session.flush()
    admin.record(
        session, AuditAction.CLIENT_TRUST_REMOVE, client_id, rule=rule_id, issuer=row.issuer, conditions=row.conditions
    )
