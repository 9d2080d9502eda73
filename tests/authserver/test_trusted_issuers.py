"""Trusted issuers and trust rules, as they are read from the database."""

from dataclasses import replace

import pytest
from support.authserver import AuthServer
from support.clock import FakeClock
from support.platforms import TRUST_DOMAIN, github, gitlab, kubernetes, oidc, spiffe
from support.workloads import DISCOVERY, GIVEN_KEYS, WorkloadClient, add_trust, trust

from gatehouse.authserver.db.models import TrustedIssuerRow
from gatehouse.authserver.workloads.issuer_keys import MAX_AGE, REFETCH_INTERVAL
from gatehouse.authserver.workloads.kinds import KINDS
from gatehouse.authserver.workloads.registry import (
    KeyLocation,
    RuleKey,
    TrustedIssuer,
    TrustedIssuers,
    find_issuers,
    find_key,
    find_rules,
    load_issuers,
    rules_of_client,
    shared_keys,
)
from gatehouse.authserver.workloads.rules import rule_anchor, token_anchors

PINNED = KeyLocation(False, "https://platform.example.com/jwks", None, None)


@pytest.fixture
def issuer(authserver: AuthServer) -> TrustedIssuer:
    return trust(authserver, kubernetes(authserver.clock))


@pytest.mark.both_databases
def test_a_trusted_issuer_is_read_as_it_was_added(authserver: AuthServer) -> None:
    platform = github(authserver.clock)
    added = trust(authserver, platform, audience="gatehouse", max_lifetime=120)
    pod = kubernetes(authserver.clock)
    trust(authserver, pod, location=PINNED, jwks=None, token_endpoint_audience=True, one_time=True)
    with authserver.services.database.connect() as connection:
        cluster, read = load_issuers(connection)
    assert read == added
    assert (read.issuer, read.kind, read.algorithms) == (platform.issuer, KINDS["github"], ("RS256",))
    assert (read.audience, read.token_endpoint_audience) == ("gatehouse", False)
    assert (read.max_lifetime, read.one_time, read.disabled) == (120, True, False)
    assert (read.created_at, read.fetched_at, read.attempted_at) == (1_800_000_000, 1_800_000_000, 0)
    assert (read.location, read.failure, read.keys.keys()) == (GIVEN_KEYS, None, {platform.key.kid})
    assert (cluster.location, cluster.keys, cluster.fetched_at) == (PINNED, {}, None)
    assert (cluster.audience, cluster.token_endpoint_audience, cluster.one_time) == (None, True, True)


def test_where_keys_are_fetched_from(issuer: TrustedIssuer) -> None:
    assert [one.is_fetched for one in (GIVEN_KEYS, DISCOVERY, PINNED)] == [False, True, True]


def test_fetched_keys_are_usable_for_a_day(issuer: TrustedIssuer, clock: FakeClock) -> None:
    now = clock()
    for location in (DISCOVERY, PINNED):
        fetched = replace(issuer, location=location, fetched_at=int(now))
        assert fetched.usable_keys(now + MAX_AGE) == issuer.keys
        assert fetched.usable_keys(now + MAX_AGE + 1) == {}
        assert fetched.usable_keys(now - REFETCH_INTERVAL) == issuer.keys
        assert fetched.usable_keys(now - REFETCH_INTERVAL - 1) == {}
        assert replace(fetched, fetched_at=None).usable_keys(now) == {}
    assert issuer.usable_keys(now + 365 * MAX_AGE) == issuer.keys


def test_keys_are_found_by_kid_and_algorithm(issuer: TrustedIssuer) -> None:
    [kid] = issuer.keys
    found = find_key(issuer.keys, kid, "RS256")
    assert found is not None
    assert (found.kid, found.alg) == (kid, "RS256")
    for wrong, alg in ((kid, "ES256"), ("another", "RS256"), (None, "RS256"), ("", "RS256")):
        assert find_key(issuer.keys, wrong, alg) is None


def test_a_disabled_issuer_is_not_among_the_possible_ones(issuer: TrustedIssuer) -> None:
    assert [one.name for one in TrustedIssuers([issuer]).possible(issuer.issuer, None)] == [issuer.name]
    disabled = TrustedIssuers([replace(issuer, disabled=True)])
    assert disabled.possible(issuer.issuer, None) == []
    assert (disabled.any, disabled.spiffe) == (False, False)


def test_issuers_are_named_by_iss_and_trust_domains_by_subject(authserver: AuthServer) -> None:
    clock = authserver.clock
    for platform in (kubernetes(clock), gitlab(clock), oidc(clock), spiffe(clock)):
        trust(authserver, platform)
    issuers = find_issuers(authserver.services.database)
    assert (issuers.any, issuers.spiffe) == (True, True)

    def names(iss: str, trust_domain: str | None = None) -> list[str]:
        return [issuer.name for issuer in issuers.possible(iss, trust_domain)]

    assert names(gitlab(clock).issuer) == ["gitlab"]
    assert names("https://elsewhere.example.com") == []
    assert names("", TRUST_DOMAIN) == ["spire"]
    assert names(TRUST_DOMAIN) == []
    assert names(oidc(clock).issuer, TRUST_DOMAIN) == ["login", "spire"]
    assert names(oidc(clock).issuer, "spiffe://other.example") == ["login"]


def test_issuers_without_a_trust_domain_know_no_svid(issuer: TrustedIssuer) -> None:
    issuers = TrustedIssuers([issuer])
    assert (issuers.any, issuers.spiffe) == (True, False)
    assert (TrustedIssuers([]).any, TrustedIssuers([]).spiffe) == (False, False)


def test_a_key_of_two_issuers_counts_for_neither(authserver: AuthServer, issuer: TrustedIssuer) -> None:
    """No signature would tell them apart."""
    other = trust(authserver, gitlab(authserver.clock))
    [(kid, key)] = issuer.keys.items()
    both = replace(other, keys={**other.keys, "their-kid": key})
    assert shared_keys([issuer, both]) == {key[0].thumbprint}
    issuers = TrustedIssuers([issuer, both])
    [first], [second] = (issuers.possible(one.issuer, None) for one in (issuer, both))
    assert first.keys == {}
    assert second.keys == other.keys
    disabled = TrustedIssuers([issuer, replace(both, disabled=True)])
    [first] = disabled.possible(issuer.issuer, None)
    assert first.keys.keys() == {kid}


@pytest.mark.both_databases
def test_rules_are_found_by_issuer_and_anchor(authserver: AuthServer) -> None:
    clock = authserver.clock
    first = WorkloadClient(authserver, kubernetes(clock, name="cluster-one"))
    second = WorkloadClient(authserver, kubernetes(clock, name="cluster-two"))
    by_subject = add_trust(authserver, first.client, "cluster-one", {"sub": first.platform.workload["sub"]})
    elsewhere = add_trust(authserver, first.client, "cluster-one", {"sub": "system:serviceaccount:dev:agent"})
    kind, claims = KINDS["kubernetes"], first.platform.claims()
    keys = [RuleKey(name, token_anchors(kind, claims)) for name in ("cluster-one", "cluster-two", "cluster-three")]
    keys.append(RuleKey("cluster-one", (rule_anchor(kind, elsewhere.conditions),)))
    keys.append(RuleKey("cluster-one", ()))
    found = find_rules(authserver.services.database, keys)
    assert list(found) == keys
    one, two, three, dev, none = (sorted(rule.rule_id for rule in found[key]) for key in keys)
    assert one == sorted([first.rule.rule_id, by_subject.rule_id])
    assert two == [second.rule.rule_id]
    assert dev == [elsewhere.rule_id]
    assert three == none == []
    assert first.rule in found[keys[0]]


@pytest.mark.both_databases
def test_the_rules_of_a_client_are_listed_with_their_issuers(authserver: AuthServer) -> None:
    clock = authserver.clock
    client = WorkloadClient(authserver, kubernetes(clock))
    job = github(clock)
    trust(authserver, job)
    clock.advance(1)
    later = add_trust(authserver, client.client, job.name, job.conditions)
    WorkloadClient(authserver, gitlab(clock))
    with authserver.services.database.connect() as connection:
        first, second = rules_of_client(connection, client.client.client_id)
        assert (first.issuer, first.rule, first.last_used_at) == ("cluster", client.rule, None)
        assert (second.issuer, second.rule, second.created_at) == ("github", later, int(clock()))
        assert rules_of_client(connection, "agent_" + "0" * 20) == []


def test_a_stored_key_set_that_cannot_be_used_is_not_fatal(authserver: AuthServer, issuer: TrustedIssuer) -> None:
    """Another version of the program may have had weaker rules."""
    with authserver.services.database.write() as session:
        session.get_one(TrustedIssuerRow, issuer.name).jwks = '{"keys": []}'
    [read] = find_issuers(authserver.services.database).possible(issuer.issuer, None)
    assert read.keys == {}
