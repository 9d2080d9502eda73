"""Adds, changes and removes trusted issuers. Every change commits together with its audit event."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from gatehouse.authserver.db.models import TrustedIssuerRow, TrustRuleRow
from gatehouse.authserver.workloads.issuer_keys import parse_issuer_keys
from gatehouse.authserver.workloads.kinds import KINDS, SPIFFE_SCHEME, Kind
from gatehouse.authserver.workloads.registry import (
    MAX_SHARED,
    KeyLocation,
    TrustedIssuer,
    load_issuers,
    shared_keys,
)
from gatehouse.shared.protocol.jws import KEY_TYPES, InvalidKeySet
from gatehouse.shared.protocol.redaction import as_word, quoted
from gatehouse.shared.protocol.visible_text import is_visible
from gatehouse.shared.service.administrator import Administrator, CommandRefused
from gatehouse.shared.service.audit.events import AuditAction
from gatehouse.shared.service.fetch import is_fetchable

MAX_ISSUERS: Final = 256
"""All of them are read at once."""

MAX_LIFETIME: Final = 24 * 3600
"""Seconds. The highest `max_lifetime`."""

DEFAULT_CLUSTER_ISSUER: Final = "https://kubernetes.default.svc.cluster.local"
"""The issuer of every cluster that was not given one of its own."""

GITHUB_ISSUER: Final = "https://token.actions.githubusercontent.com"
"""The issuer of GitHub Actions. An enterprise can have one of its own below it."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_.-]{0,62}[a-z0-9])?", re.ASCII)
_TRUST_DOMAIN = re.compile(r"spiffe://[a-z0-9._-]{1,255}", re.ASCII)


@dataclass(frozen=True, slots=True)
class IssuerRegistration:
    """A trusted issuer to add. None stands for the default of its kind."""

    name: str
    issuer: str
    kind: str
    location: KeyLocation
    jwks: bytes | None = None
    """The key set, given by the admin or fetched just now."""
    audience: str | None = None
    token_endpoint_audience: bool = False
    algorithms: Sequence[str] = ()
    max_lifetime: int | None = None
    one_time: bool | None = None


def add_issuer(session: Session, admin: Administrator, registration: IssuerRegistration) -> TrustedIssuer:
    """Add a trusted issuer.

    Raises:
        CommandRefused: the name is taken, a value is malformed or out of bounds, a key is that of another issuer, or
            the issuer cannot be told from others.
    """
    kind, algorithms = check_issuer(registration)
    present = load_issuers(session.connection())
    if any(issuer.name == registration.name for issuer in present):
        raise CommandRefused(
            f"There is already a trusted issuer named {registration.name}: see `authserver issuer show"
            f" {registration.name}`."
        )
    if len(present) >= MAX_ISSUERS:
        raise CommandRefused(f"There are {MAX_ISSUERS} trusted issuers, which is the limit.")
    if sum(issuer.issuer == registration.issuer for issuer in present) >= MAX_SHARED:
        raise CommandRefused(
            f"{MAX_SHARED} trusted issuers have the iss {registration.issuer}, which is the limit. If it is the same"
            " platform as one of them, use that: see `authserver issuer list`. If not, give clusters issuers of their"
            " own (--service-account-issuer of the API server)."
        )
    now, max_lifetime = admin.now(), registration.max_lifetime or kind.max_lifetime
    one_time = kind.one_time if registration.one_time is None else registration.one_time
    session.add(
        TrustedIssuerRow(
            name=registration.name,
            issuer=registration.issuer,
            kind=kind.name,
            audience=registration.audience,
            token_endpoint_audience=registration.token_endpoint_audience,
            algorithms=list(algorithms),
            max_lifetime=max_lifetime,
            one_time=one_time,
            discovery=registration.location.discovery,
            jwks_uri=registration.location.jwks_uri,
            ca_file=registration.location.ca_file,
            bearer_token_file=registration.location.bearer_token_file,
            created_at=now,
            **_stored_keys(registration, kind, algorithms, now),
        )
    )
    session.flush()
    issuers = load_issuers(session.connection())
    added = next(issuer for issuer in issuers if issuer.name == registration.name)
    refuse_shared_keys(added, issuers)
    admin.record(
        session,
        AuditAction.ISSUER_ADD,
        added.name,
        issuer=added.issuer,
        kind=kind.name,
        audience=added.audience,
        token_endpoint_audience=added.token_endpoint_audience,
        algorithms=list(algorithms),
        max_lifetime=max_lifetime,
        one_time=one_time,
        jwks_uri=added.location.jwks_uri,
        ca_file=added.location.ca_file,
        bearer_token_file=added.location.bearer_token_file,
        thumbprints=thumbprints(added),
    )
    return added


def check_issuer(registration: IssuerRegistration) -> tuple[Kind, tuple[str, ...]]:
    """Check the values of a registration, as far as they are there. Return the kind and the algorithms.

    Raises:
        CommandRefused: a value is malformed or out of bounds, or the keys cannot be found.
    """
    if _NAME.fullmatch(registration.name) is None:
        raise CommandRefused(
            "The name has 1 to 64 lower-case letters, digits, dots, dashes and underscores, and begins and ends with a"
            f" letter or a digit, unlike {as_word(quoted(registration.name))}."
        )
    kind = KINDS.get(registration.kind)
    if kind is None:
        raise CommandRefused(f"The kind must be one of: {', '.join(KINDS)}.")
    _check_identifier(kind, registration.issuer)
    _check_location(kind, registration)
    _check_audience(registration)
    check_max_lifetime(registration.max_lifetime)
    algorithms = tuple(registration.algorithms) or kind.algorithms
    if unknown := sorted(set(algorithms) - set(KEY_TYPES)):
        raise CommandRefused(f"The algorithm {unknown[0]} is not supported; {', '.join(KEY_TYPES)} are.")
    return kind, algorithms


def check_max_lifetime(seconds: int | None) -> None:
    """Raise CommandRefused for a maximum lifetime out of bounds."""
    if seconds is not None and not 1 <= seconds <= MAX_LIFETIME:
        raise CommandRefused(f"The maximum lifetime is 1 to {MAX_LIFETIME} seconds, not {seconds}.")


def _check_location(kind: Kind, registration: IssuerRegistration) -> None:
    location = registration.location
    if not location.is_fetched and registration.jwks is None:
        raise CommandRefused("Give the keys of the issuer: --jwks-file FILE or --jwks-uri URL.")
    if location.jwks_uri is not None and not is_fetchable(location.jwks_uri):
        raise CommandRefused("The jwks_uri must be an https URL.")
    if location.discovery and kind.name == "spiffe":
        raise CommandRefused("A trust domain has no metadata. Give the bundle: --jwks-uri URL or --jwks-file FILE.")
    if location.discovery and registration.issuer == DEFAULT_CLUSTER_ISSUER:
        raise CommandRefused(
            f"{DEFAULT_CLUSTER_ISSUER} names every cluster that has no issuer of its own. Bind this one to its keys:"
            " --jwks-file FILE with the output of `kubectl get --raw /openid/v1/jwks`, or --jwks-uri URL."
        )


def _check_audience(registration: IssuerRegistration) -> None:
    if registration.audience is not None and not (
        0 < len(registration.audience) <= 512 and is_visible(registration.audience)
    ):
        raise CommandRefused("The audience has 1 to 512 visible characters.")
    if registration.audience is not None and registration.token_endpoint_audience:
        raise CommandRefused("An issuer with an audience of its own accepts no other one: leave out one of the two.")


def _check_identifier(kind: Kind, issuer: str) -> None:
    if kind.name == "spiffe":
        if _TRUST_DOMAIN.fullmatch(issuer) is None:
            raise CommandRefused(
                f"The issuer of the kind spiffe is its trust domain, such as {SPIFFE_SCHEME}example.org, not"
                f" {as_word(quoted(issuer))}."
            )
    elif len(issuer) > 512 or not is_fetchable(issuer):
        raise CommandRefused(
            f"The issuer must be the exact iss of the platform's tokens, an https URL, not {as_word(quoted(issuer))}."
        )
    elif kind.name != "github" and f"{issuer}/".startswith(f"{GITHUB_ISSUER}/"):
        # Under another kind, a rule could do without the repository.
        raise CommandRefused(f"{issuer} is an issuer of GitHub: add it with --kind github.")


def _stored_keys(registration: IssuerRegistration, kind: Kind, algorithms: Sequence[str], now: int) -> dict[str, Any]:
    if registration.jwks is None:
        return {}
    check_keys(registration.jwks, kind.name, algorithms)
    attempted_at = now if registration.location.is_fetched else 0
    return {"jwks": registration.jwks.decode(), "fetched_at": now, "attempted_at": attempted_at}


def check_keys(jwks: bytes, kind: str, algorithms: Sequence[str]) -> None:
    """Raise CommandRefused for a key set without a usable key."""
    try:
        parse_issuer_keys(jwks, kind, algorithms)
    except InvalidKeySet as error:
        raise CommandRefused(f"The key set of the issuer cannot be used: {error}") from None


def refuse_shared_keys(added: TrustedIssuer, issuers: Sequence[TrustedIssuer]) -> None:
    """Refuse an issuer with a key of another one: no signature would tell them apart. Raises CommandRefused."""
    shared = shared_keys(issuers) & {*thumbprints(added)}
    for other in issuers:
        if other.name != added.name and shared & set(thumbprints(other)):
            raise CommandRefused(
                f"The trusted issuer {other.name} has a key of this key set. If it is the same platform, use"
                f" {other.name}: see `authserver issuer show {other.name}`. If not, one of the key sets is wrong."
            )


def thumbprints(issuer: TrustedIssuer) -> list[str]:
    """Return the thumbprints of the keys of an issuer, sorted."""
    return sorted(keys[0].thumbprint for keys in issuer.keys.values())


def existing_issuer(session: Session, name: str) -> TrustedIssuer:
    """Read one trusted issuer, with the changes of this transaction. Raises CommandRefused if there is none."""
    session.flush()
    for issuer in load_issuers(session.connection()):
        if issuer.name == name:
            return issuer
    raise CommandRefused(f"There is no trusted issuer {name}. List them with: authserver issuer list")


def lock_issuer(session: Session, name: str) -> TrustedIssuerRow:
    """Keep other transactions from changing an issuer until this one ends. Raises CommandRefused if there is none."""
    row = session.scalar(select(TrustedIssuerRow).where(TrustedIssuerRow.name == name).with_for_update())
    if row is None:
        raise CommandRefused(f"There is no trusted issuer {name}. List them with: authserver issuer list")
    return row


def set_issuer_disabled(session: Session, admin: Administrator, name: str, *, disabled: bool) -> TrustedIssuer:
    """Disable or enable a trusted issuer. Tokens that were issued stay valid. Raises CommandRefused."""
    row = lock_issuer(session, name)
    row.disabled = disabled
    changed = existing_issuer(session, name)
    if not disabled:
        refuse_shared_keys(changed, load_issuers(session.connection()))
    admin.record(session, AuditAction.ISSUER_DISABLE if disabled else AuditAction.ISSUER_ENABLE, name)
    return changed


def remove_issuer(session: Session, admin: Administrator, name: str) -> int:
    """Remove a trusted issuer and its trust rules. Return the number of rules. Raises CommandRefused."""
    row = lock_issuer(session, name)
    number = session.scalar(select(func.count()).select_from(TrustRuleRow).where(TrustRuleRow.issuer == name)) or 0
    session.delete(row)
    session.flush()
    admin.record(session, AuditAction.ISSUER_REMOVE, name, issuer=row.issuer, rules=number)
    return number
