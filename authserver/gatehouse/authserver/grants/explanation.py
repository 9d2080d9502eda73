"""Why a client was not granted what it asked for, for the operator: what the caller is told stays the same.

The public answer must not tell which resources and scopes there are, so the work is the same for each cause, too.
"""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from gatehouse.authserver.errors import OAuthError
from gatehouse.authserver.grants.client_credentials import ScopeNotGranted
from gatehouse.authserver.resources.registry import declared_scopes, list_identifiers
from gatehouse.shared.protocol.scopes import cut_scope, separator_hint


def explain(session: Session, refusal: ScopeNotGranted) -> OAuthError:
    """Return the refusal with the reason and the remediation that what is registered allows to name.

    A grant fixes it only where the resource and the scope exist.
    """
    identifiers = list_identifiers(session)
    declared = declared_scopes(session, refusal.resource)
    if refusal.resource not in identifiers:
        reason, remediation = _not_registered(refusal.resource, identifiers)
    elif unknown := refusal.missing - declared:
        reason = f"{refusal.resource} has no scope {cut_scope(unknown)}; it has: {cut_scope(declared)}"
        remediation = f"Ask for a scope that the resource has.{separator_hint(unknown)}"
    else:
        return refusal
    return OAuthError(refusal.error, refusal.description, reason=reason, remediation=remediation)


def _not_registered(resource: str, identifiers: Sequence[str]) -> tuple[str, str]:
    alike = [known for known in identifiers if _fold(known) == _fold(resource)]
    if alike:
        return (
            f"{resource} is not registered; {alike[0]} is",
            f"Name the resource as it is registered: {alike[0]}",
        )
    return f"{resource} is not registered", "authserver resource list"


def _fold(resource: str) -> str:
    return resource.rstrip("/").lower()
