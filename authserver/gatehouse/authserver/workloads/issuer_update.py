"""Changes the keys and the limits of a trusted issuer, whose trust rules stay."""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.orm import Session

from gatehouse.authserver.workloads.registration import (
    check_keys,
    check_max_lifetime,
    existing_issuer,
    lock_issuer,
    refuse_shared_keys,
    thumbprints,
)
from gatehouse.authserver.workloads.registry import TrustedIssuer, load_issuers
from gatehouse.shared.protocol.clock import LEEWAY
from gatehouse.shared.service.administrator import Administrator, CommandRefused
from gatehouse.shared.service.audit.events import AuditAction

_PROPAGATION: Final = 2
"""Seconds until every process uses a change, and the fraction of a second that stored times leave out."""


@dataclass(frozen=True, slots=True)
class IssuerUpdate:
    """Changes of a trusted issuer. Fields that are None stay unchanged."""

    jwks: bytes | None = None
    """A key set, in place of the one that an admin gave."""
    max_lifetime: int | None = None
    one_time: bool | None = None


def last_repetition(before: TrustedIssuer, now: int) -> int:
    """Return the time after which no token is accepted that was accepted by `now`, under the limits from before.

    A token that was accepted under a larger `max_lifetime`, lowered since, can be accepted again after that time.
    """
    return now + before.max_lifetime + 2 * LEEWAY + _PROPAGATION


def update_issuer(session: Session, admin: Administrator, name: str, update: IssuerUpdate) -> TrustedIssuer:
    """Change a trusted issuer. The audit event has the old and the new value of whatever changed.

    Which tokens were used is stored only while they are accepted once. So one that was used before `one_time` began may
    be accepted once more, and one that was used while it held is accepted again after its end.

    Raises:
        CommandRefused: no such issuer, a value out of bounds, its keys are fetched, or the key set cannot be used.
    """
    check_max_lifetime(update.max_lifetime)
    row = lock_issuer(session, name)
    before = existing_issuer(session, name)
    detail: dict[str, Any] = {}
    for field in ("max_lifetime", "one_time"):
        old, new = getattr(before, field), getattr(update, field)
        if new is not None and new != old:
            setattr(row, field, new)
            detail |= {f"old_{field}": old, field: new}
    if update.jwks is not None:
        if before.location.is_fetched:
            raise CommandRefused(
                f"The keys of {name} are fetched. To give them yourself, remove it with its rules (`authserver issuer"
                f" remove {name}`), add it with --jwks-file, and add the rules again."
            )
        check_keys(update.jwks, row.kind, row.algorithms)
        row.jwks, row.fetched_at = update.jwks.decode(), admin.now()
    changed = existing_issuer(session, name)
    if update.jwks is not None:
        refuse_shared_keys(changed, load_issuers(session.connection()))
        detail |= {"old_thumbprints": thumbprints(before), "thumbprints": thumbprints(changed)}
    if detail:
        admin.record(session, AuditAction.ISSUER_UPDATE, name, **detail)
    return changed
