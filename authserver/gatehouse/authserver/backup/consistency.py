"""What an import checks that no single row shows, and that no constraint of the database enforces."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from gatehouse.authserver.clients.registry import WORKLOAD_IDENTITY
from gatehouse.authserver.db.models import (
    ClientRow,
    ResourceScopeRow,
    StatusBlockRow,
    StatusListRow,
    TrustedIssuerRow,
    TrustRuleRow,
)
from gatehouse.authserver.workloads.kinds import KINDS
from gatehouse.authserver.workloads.rules import InvalidRule, check_conditions, rule_anchor
from gatehouse.shared.service.administrator import CommandRefused


def check_across_rows(session: Session) -> None:
    """Check the rows of an export, after all of them were inserted.

    Raises:
        CommandRefused: rows contradict each other.
    """
    _check_scopes(session)
    _check_status_blocks(session)
    _check_trust_rules(session)


def _check_scopes(session: Session) -> None:
    rows = session.execute(select(ResourceScopeRow.resource, ResourceScopeRow.scope, ResourceScopeRow.implies)).all()
    scopes = {(row.resource, row.scope) for row in rows}
    for resource, scope, implies in rows:
        if any((resource, implied) not in scopes for implied in implies):
            raise _contradiction(f"{scope} of {resource} implies an unknown scope")


def _check_status_blocks(session: Session) -> None:
    of_list = StatusListRow.list_id == StatusBlockRow.list_id
    is_free = StatusBlockRow.start + StatusBlockRow.size > StatusListRow.next_index
    if session.scalar(select(StatusBlockRow.list_id).join(StatusListRow, of_list).where(is_free).limit(1)):
        raise _contradiction("a client's block has status list indices that are free")


def _check_trust_rules(session: Session) -> None:
    """Check that registration would create each rule, for its client and for its kind of trusted issuer."""
    rule, issuer = TrustRuleRow, TrustedIssuerRow
    columns = (rule.rule_id, rule.anchor, rule.conditions, issuer.kind, issuer.issuer)
    rows = session.execute(
        select(*columns, ClientRow.token_endpoint_auth_method)
        .join(issuer, issuer.name == rule.issuer)
        .join(ClientRow, ClientRow.client_id == rule.client_id)
    )
    for rule_id, anchor, conditions, kind_name, iss, method in rows:
        kind = KINDS[kind_name]
        try:
            checked = check_conditions(kind, iss, conditions)
            as_registered = conditions == checked and anchor == rule_anchor(kind, checked)
        except InvalidRule as error:
            raise _contradiction(f"the trust rule {rule_id} is invalid: {error}") from None
        if not as_registered or method != WORKLOAD_IDENTITY:
            raise _contradiction(f"the trust rule {rule_id} is not one that registration would create")


def _contradiction(problem: str) -> CommandRefused:
    return CommandRefused(f"In the export, {problem.rstrip('.')}. Nothing was imported.")
