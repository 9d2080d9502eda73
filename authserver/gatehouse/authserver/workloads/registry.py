"""Trusted issuers and trust rules, as the token endpoint and the commands read them."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from sqlalchemy import Connection, bindparam, select

from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import TrustedIssuerRow, TrustRuleRow
from gatehouse.authserver.workloads.issuer_keys import (
    REFETCH_INTERVAL,
    IssuerKeys,
    is_fresh,
    is_under_way,
    parse_stored_keys,
)
from gatehouse.authserver.workloads.kinds import KINDS, Kind
from gatehouse.authserver.workloads.rules import Rule
from gatehouse.shared.protocol.jws import VerificationKey
from gatehouse.shared.service.cache import GroupLoadingCache, LoadingCache

MAX_SHARED: Final = 4
"""Trusted issuers with one `iss`, such as clusters that all kept the default. Each is tried for every token."""


@dataclass(frozen=True, slots=True)
class KeyLocation:
    """Where the keys of an issuer come from: a document that an admin gave, an address, or the issuer's metadata."""

    discovery: bool
    jwks_uri: str | None
    ca_file: str | None
    """Certificates (PEM) of the authorities to trust, on each node; None for those of the server."""
    bearer_token_file: str | None
    """A token that the issuer requires for its keys, on each node."""

    @property
    def is_fetched(self) -> bool:
        """Whether the keys are fetched, and not only given by an admin."""
        return self.discovery or self.jwks_uri is not None


@dataclass(frozen=True, slots=True)
class TrustedIssuer:
    """A trusted issuer at the time when it was read. Times are seconds since the epoch."""

    name: str
    issuer: str
    """The exact `iss` of its tokens; for SPIFFE, the trust domain, such as `spiffe://example.org`."""
    kind: Kind
    audience: str | None
    """The `aud` of its tokens; None for the issuer identifier of this server."""
    token_endpoint_audience: bool
    """Tokens for the URL of the token endpoint are accepted as well, if they are presented as a grant."""
    algorithms: tuple[str, ...]
    max_lifetime: int
    """Seconds from now that a token may be valid."""
    one_time: bool
    disabled: bool
    created_at: int
    location: KeyLocation
    keys: IssuerKeys = field(repr=False)
    """Those of the last good key set."""
    fetched_at: int | None
    """When that key set was fetched, or given by an admin; None if there is none yet."""
    attempted_at: int
    """When the last fetch began; 0 if there was none."""
    failure: str | None
    """Why the last fetch failed; None if it did not."""

    def usable_keys(self, now: float) -> IssuerKeys:
        """Return the keys; none if the last good key set was fetched too long ago."""
        is_stale = self.location.is_fetched and not is_fresh(now, self.fetched_at)
        return {} if is_stale else self.keys

    def may_have_new_keys(self, now: float) -> bool:
        """Tell whether it is worth waiting for a fetch: one may begin now, or a node has one under way."""
        return self.location.is_fetched and (
            not -REFETCH_INTERVAL <= now - self.attempted_at < REFETCH_INTERVAL
            or is_under_way(now, self.attempted_at, self.fetched_at, self.failure)
        )


class TrustedIssuers:
    """The enabled trusted issuers. A key that two of them publish is refused for both: it would not tell them apart."""

    def __init__(self, issuers: Sequence[TrustedIssuer]) -> None:
        enabled = [issuer for issuer in issuers if not issuer.disabled]
        shared = shared_keys(enabled)
        self._by_issuer: defaultdict[str, list[TrustedIssuer]] = defaultdict(list)
        for issuer in enabled:
            own = {kid: keys for kid, keys in issuer.keys.items() if keys[0].thumbprint not in shared}
            self._by_issuer[issuer.issuer].append(replace(issuer, keys=own))
        fetched = [issuer.fetched_at or issuer.created_at for issuer in enabled if issuer.location.is_fetched]
        self.keys_fetched_at = min(fetched, default=0)
        """When the oldest key set of them was fetched, in seconds since the epoch; 0 if none is fetched."""
        self.any = bool(enabled)
        self.spiffe = any(issuer.kind.name == "spiffe" for issuer in enabled)

    def possible(self, issuer: str, trust_domain: str | None) -> list[TrustedIssuer]:
        """Return the issuers that a token with this `iss` and this trust domain in its `sub` may come from.

        A JWT-SVID is recognised by its trust domain alone, because its `iss` says nothing (JWT-SVID 3).
        """
        by_iss = [one for one in self._by_issuer.get(issuer, ()) if one.kind.name != "spiffe"]
        return [*by_iss, *(self._by_issuer.get(trust_domain, ()) if trust_domain is not None else ())]


def shared_keys(issuers: Sequence[TrustedIssuer]) -> frozenset[str]:
    """Return the thumbprints of keys that several issuers publish."""
    counts = Counter(keys[0].thumbprint for issuer in issuers for keys in issuer.keys.values())
    return frozenset(thumbprint for thumbprint, count in counts.items() if count > 1)


def find_key(keys: IssuerKeys, kid: str | None, alg: str) -> VerificationKey | None:
    """Return the key with a `kid` that may verify an algorithm; None if there is none, or the token names no key."""
    return next((key for key in keys.get(kid or "", ()) if key.alg == alg), None)


class RuleKey(NamedTuple):
    """What the rules that a token could match have in common."""

    issuer: str
    """The name of the trusted issuer."""
    anchors: tuple[bytes, ...]


IssuerCache = LoadingCache[None, TrustedIssuers]
"""The trusted issuers, in memory."""

RuleCache = GroupLoadingCache[RuleKey, Sequence[Rule]]
"""The rules that a token could match, in memory."""


def find_issuers(database: Database, _: None = None) -> TrustedIssuers:
    """Read the trusted issuers in a transaction of their own. Raises SQLAlchemyError."""
    with database.connect() as connection:
        return TrustedIssuers(load_issuers(connection))


def load_issuers(connection: Connection) -> list[TrustedIssuer]:
    """Read all trusted issuers, by name."""
    return [
        TrustedIssuer(
            name=row.name,
            issuer=row.issuer,
            kind=KINDS[row.kind],
            audience=row.audience,
            token_endpoint_audience=row.token_endpoint_audience,
            algorithms=tuple(row.algorithms),
            max_lifetime=row.max_lifetime,
            one_time=row.one_time,
            disabled=row.disabled,
            created_at=row.created_at,
            location=KeyLocation(row.discovery, row.jwks_uri, row.ca_file, row.bearer_token_file),
            keys=parse_stored_keys(row.jwks, row.kind, tuple(row.algorithms)) if row.jwks is not None else {},
            fetched_at=row.fetched_at,
            attempted_at=row.attempted_at,
            failure=row.failure,
        )
        for row in connection.execute(_ISSUERS)
    ]


_ISSUERS = select(*TrustedIssuerRow.__table__.columns).order_by(TrustedIssuerRow.name)
_RULES = select(
    TrustRuleRow.issuer, TrustRuleRow.anchor, TrustRuleRow.rule_id, TrustRuleRow.client_id, TrustRuleRow.conditions
).where(TrustRuleRow.anchor.in_(bindparam("anchors", expanding=True)))


def find_rules(database: Database, keys: Sequence[RuleKey]) -> Mapping[RuleKey, Sequence[Rule]]:
    """Read the rules that some tokens could match in a transaction of their own. Raises SQLAlchemyError."""
    found: defaultdict[tuple[str, bytes], list[Rule]] = defaultdict(list)
    with database.connect() as connection:
        for row in connection.execute(_RULES, {"anchors": sorted({anchor for key in keys for anchor in key.anchors})}):
            found[row.issuer, row.anchor].append(Rule(row.rule_id, row.client_id, row.conditions))
    return {key: [rule for anchor in key.anchors for rule in found[key.issuer, anchor]] for key in keys}


@dataclass(frozen=True, slots=True)
class ClientRule:
    """A trust rule of a client. Times are seconds since the epoch."""

    issuer: str
    """The name of the trusted issuer."""
    rule: Rule
    created_at: int
    last_used_at: int | None


def rules_of_client(connection: Connection, client_id: str) -> list[ClientRule]:
    """Read the rules of a client, the oldest first."""
    row = TrustRuleRow
    query = select(*row.__table__.columns).where(row.client_id == client_id).order_by(row.created_at, row.rule_id)
    return [
        ClientRule(one.issuer, Rule(one.rule_id, one.client_id, one.conditions), one.created_at, one.last_used_at)
        for one in connection.execute(query)
    ]


def issuers_of_rules(connection: Connection) -> Mapping[str, frozenset[str]]:
    """Return the names of the trusted issuers that the rules of each client are for, by `client_id`."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for row in connection.execute(select(TrustRuleRow.client_id, TrustRuleRow.issuer).distinct()):
        found[row.client_id].add(row.issuer)
    return {client_id: frozenset(names) for client_id, names in found.items()}


def rules_of_issuer(connection: Connection, name: str) -> list[Rule]:
    """Read all rules of a trusted issuer, the oldest first."""
    row = TrustRuleRow
    query = select(row.rule_id, row.client_id, row.conditions).where(row.issuer == name)
    rows = connection.execute(query.order_by(row.created_at, row.rule_id))
    return [Rule(one.rule_id, one.client_id, one.conditions) for one in rows]
