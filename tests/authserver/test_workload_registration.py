"""Registration of trusted issuers and trust rules: what is stored and recorded, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import insert
from sqlalchemy.orm import Session
from support.authserver import AuthServer
from support.clock import FakeClock
from support.key_sets import key_set
from support.platforms import CLUSTER_ISSUER, PLATFORMS, Platform, github, kubernetes, oidc, spiffe
from support.workloads import DISCOVERY, GIVEN_KEYS, add_trust, trust

from gatehouse.authserver.clients.registration import delete_client
from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.db.models import TrustedIssuerRow
from gatehouse.authserver.workloads import registration, rule_registration
from gatehouse.authserver.workloads.issuer_update import IssuerUpdate, update_issuer
from gatehouse.authserver.workloads.kinds import KINDS
from gatehouse.authserver.workloads.registration import MAX_ISSUERS, MAX_LIFETIME, IssuerRegistration
from gatehouse.authserver.workloads.registry import (
    MAX_SHARED,
    TrustedIssuer,
    load_issuers,
    rules_of_client,
    rules_of_issuer,
)
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.service.administrator import CommandRefused


def stored(server: AuthServer) -> list[TrustedIssuer]:
    with server.services.database.read() as session:
        return load_issuers(session.connection())


def change(server: AuthServer, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a function of the registration in a transaction of its own."""
    with server.services.database.write() as session:
        return function(session, server.admin, *arguments, **options)


def changes_of(server: AuthServer) -> list[dict[str, Any]]:
    """Return the audit events of changes by the administrator."""
    return [event for event in server.audit(limit=1000) if event["actor"] == "admin:tester"]


def refusal(server: AuthServer, function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """Return why a change is refused. It must leave neither a row nor an event."""
    before = stored(server), changes_of(server)
    with pytest.raises(CommandRefused) as refused:
        change(server, function, *arguments, **options)
    assert (stored(server), changes_of(server)) == before
    return str(refused.value)


def registered(platform: Platform, **changes: Any) -> IssuerRegistration:
    given = IssuerRegistration(platform.name, platform.issuer, platform.kind, GIVEN_KEYS, platform.jwks())
    return replace(given, **changes)


def workload_client(server: AuthServer) -> Client:
    return server.create_client(auth_method="workload_identity")[0]


@pytest.mark.parametrize("kind", PLATFORMS)
def test_an_issuer_has_the_defaults_of_its_kind(authserver: AuthServer, kind: str) -> None:
    platform = PLATFORMS[kind](authserver.clock)
    added = trust(authserver, platform)
    assert stored(authserver) == [added]
    assert (added.name, added.issuer, added.kind) == (platform.name, platform.issuer, KINDS[kind])
    assert (added.algorithms, added.max_lifetime) == (KINDS[kind].algorithms, KINDS[kind].max_lifetime)
    assert (added.one_time, added.audience, added.disabled) == (KINDS[kind].one_time, None, False)
    assert (added.fetched_at, added.attempted_at) == (int(authserver.clock()), 0)
    assert added.keys.keys() == {platform.key.kid}
    [event] = authserver.audit(action="issuer.add")
    assert (event["actor"], event["object"]) == ("admin:tester", platform.name)
    assert event["detail"]["thumbprints"] == [added.keys[platform.key.kid][0].thumbprint]


def test_given_values_take_the_place_of_the_defaults(authserver: AuthServer) -> None:
    values = {"audience": "gatehouse", "algorithms": ("RS256",), "max_lifetime": 60, "one_time": True}
    added = trust(authserver, oidc(authserver.clock), **values)
    assert {name: getattr(added, name) for name in values} == values


def test_keys_that_were_fetched_are_not_fetched_again_at_once(authserver: AuthServer) -> None:
    added = trust(authserver, oidc(authserver.clock), location=DISCOVERY)
    assert added.attempted_at == int(authserver.clock())


def test_an_issuer_without_keys_waits_for_its_first_fetch(authserver: AuthServer) -> None:
    added = trust(authserver, oidc(authserver.clock), location=DISCOVERY, jwks=None)
    assert (added.keys, added.fetched_at, added.attempted_at) == ({}, None, 0)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": "Login"}, "The name has 1 to 64 lower-case letters"),
    ({"name": "a" * 65}, "The name has 1 to 64 lower-case letters"),
    ({"name": "-a"}, "The name has 1 to 64 lower-case letters"),
    ({"name": "my cluster"}, 'with a letter or a digit, unlike "my cluster".'),
    ({"kind": "aws"}, "The kind must be one of: kubernetes, github, gitlab, spiffe, oidc."),
    ({"issuer": "http://login.example.com"}, "an https URL, not http://login.example.com."),
    ({"issuer": "https://login.example.com/a b"}, "The issuer must be the exact iss"),
    ({"issuer": f"https://login.example.com/{'a' * 512}"}, "The issuer must be the exact iss"),
    ({"kind": "spiffe"}, "The issuer of the kind spiffe is its trust domain"),
    ({"kind": "spiffe", "issuer": "spiffe://example.org/path"}, "its trust domain, such as spiffe://example.org, not"),
    ({"jwks": None}, "Give the keys of the issuer"),
    ({"location": replace(DISCOVERY, discovery=False, jwks_uri="http://login.example.com/keys")}, "an https URL"),
    ({"kind": "spiffe", "issuer": "spiffe://example.org", "location": DISCOVERY}, "A trust domain has no metadata"),
    ({"kind": "kubernetes", "issuer": CLUSTER_ISSUER, "location": DISCOVERY}, "Bind this one to its keys"),
    ({"audience": ""}, "The audience has 1 to 512 visible characters"),
    ({"audience": "a" * 513}, "The audience has 1 to 512 visible characters"),
    ({"audience": "a\u200b"}, "The audience has 1 to 512 visible characters"),
    ({"audience": "a", "token_endpoint_audience": True}, "leave out one of the two"),
    ({"max_lifetime": 0}, f"The maximum lifetime is 1 to {MAX_LIFETIME} seconds"),
    ({"max_lifetime": MAX_LIFETIME + 1}, f"The maximum lifetime is 1 to {MAX_LIFETIME} seconds"),
    ({"algorithms": ("RS256", "HS256")}, "The algorithm HS256 is not supported"),
    ({"algorithms": ("EdDSA",)}, "The key set of the issuer cannot be used: the set holds no usable key"),
    (
        {"jwks": b'{"keys": []}'},
        "The key set of the issuer cannot be used: the set holds no usable key; 'keys' is empty",
    ),
    ({"jwks": b"\xff"}, "The key set of the issuer cannot be used"),
]


def test_an_issuer_that_could_not_be_trusted_is_refused(authserver: AuthServer, subtests: pytest.Subtests) -> None:
    platform = oidc(authserver.clock)
    for changes, reason in REFUSED:
        with subtests.test(changes=changes):
            assert reason in refusal(authserver, registration.add_issuer, registered(platform, **changes))
    assert change(authserver, registration.add_issuer, registered(platform)).name == platform.name


@pytest.mark.both_databases
def test_a_name_is_given_once(authserver: AuthServer) -> None:
    trust(authserver, oidc(authserver.clock))
    other = registered(kubernetes(authserver.clock), name="login")
    told = "There is already a trusted issuer named login: see `authserver issuer show login`."
    assert refusal(authserver, registration.add_issuer, other) == told


def test_only_a_few_issuers_may_share_an_iss(authserver: AuthServer) -> None:
    """Each is tried for every token, such as clusters that all kept the default."""
    clusters = [kubernetes(authserver.clock, name=f"cluster-{i}", alg="ES256") for i in range(MAX_SHARED + 1)]
    for cluster in clusters[:-1]:
        trust(authserver, cluster)
    told = refusal(authserver, registration.add_issuer, registered(clusters[-1]))
    assert f"4 trusted issuers have the iss {CLUSTER_ISSUER}, which is the limit" in told
    trust(authserver, clusters[-1], issuer="https://cluster.example.com")


def test_the_number_of_issuers_is_limited(authserver: AuthServer) -> None:
    trust(authserver, oidc(authserver.clock))
    values = {"kind": "oidc", "algorithms": ["ES256"], "max_lifetime": 60, "one_time": False}
    values |= {"discovery": True, "created_at": 0}
    rows = [{"name": f"other-{i}", "issuer": f"https://{i}.example.com", **values} for i in range(MAX_ISSUERS - 1)]
    with authserver.services.database.write() as session:
        session.execute(insert(TrustedIssuerRow), rows)
    another = registered(kubernetes(authserver.clock))
    assert "There are 256 trusted issuers" in refusal(authserver, registration.add_issuer, another)
    change(authserver, registration.remove_issuer, "other-0")
    change(authserver, registration.add_issuer, another)


@pytest.mark.both_databases
def test_an_issuer_with_a_key_of_another_one_is_refused(authserver: AuthServer) -> None:
    first, second = oidc(authserver.clock), kubernetes(authserver.clock)
    trust(authserver, first)
    told = "The trusted issuer login has a key of this key set. If it is the same platform, use login: see"
    both = key_set(first.key.public_jwk(), second.key.public_jwk())
    assert told in refusal(authserver, registration.add_issuer, registered(second, jwks=both))
    trust(authserver, second)
    told = "The trusted issuer cluster has a key of this key set"
    assert told in refusal(authserver, update_issuer, "login", IssuerUpdate(both))
    own = key_set(first.key.public_jwk(), SigningKey.generate("ES256").public_jwk())
    assert len(change(authserver, update_issuer, "login", IssuerUpdate(own)).keys) == 2


def test_replaced_keys_are_checked_like_those_of_a_registration(authserver: AuthServer) -> None:
    platform = oidc(authserver.clock)
    trust(authserver, platform)
    assert "cannot be used" in refusal(authserver, update_issuer, "login", IssuerUpdate(b'{"keys": []}'))
    fetched = kubernetes(authserver.clock)
    trust(authserver, fetched, location=DISCOVERY, issuer="https://cluster.example.com")
    assert "The keys of cluster are fetched" in refusal(authserver, update_issuer, "cluster", IssuerUpdate(b"{}"))
    pinned = spiffe(authserver.clock)
    trust(authserver, pinned, location=replace(DISCOVERY, discovery=False, jwks_uri="https://spire.example.org/keys"))
    assert "The keys of spire are fetched" in refusal(authserver, update_issuer, "spire", IssuerUpdate(b"{}"))
    authserver.clock.advance(60)
    before, [old] = stored(authserver), platform.keys
    platform.rotate()
    changed = change(authserver, update_issuer, "login", IssuerUpdate(platform.jwks()))
    assert (changed.fetched_at, changed.keys.keys()) == (int(authserver.clock()), {key.kid for key in platform.keys})
    [event] = authserver.audit(action="issuer.update")
    [thumbprint] = [keys[0].thumbprint for issuer in before for keys in issuer.keys.values() if keys[0].kid == old.kid]
    assert event["detail"]["old_thumbprints"] == [thumbprint]
    assert event["detail"]["thumbprints"] == sorted(keys[0].thumbprint for keys in changed.keys.values())


@pytest.mark.both_databases
def test_the_limits_of_an_issuer_are_changed_and_its_rules_stay(authserver: AuthServer) -> None:
    added = trust(authserver, oidc(authserver.clock))
    rule = add_trust(authserver, workload_client(authserver), "login", {"sub": "a"})
    for update, values, detail in (
        (IssuerUpdate(max_lifetime=60), (60, False), {"old_max_lifetime": 3600, "max_lifetime": 60}),
        (IssuerUpdate(one_time=True), (60, True), {"old_one_time": False, "one_time": True}),
        (IssuerUpdate(one_time=False), (60, False), {"old_one_time": True, "one_time": False}),
    ):
        changed = change(authserver, update_issuer, "login", update)
        assert changed == replace(added, max_lifetime=values[0], one_time=values[1])
        assert authserver.audit(action="issuer.update", limit=1000)[-1]["detail"] == detail
    with authserver.services.database.read() as session:
        assert rules_of_issuer(session.connection(), "login") == [rule]


def test_an_update_that_changes_nothing_is_not_recorded(authserver: AuthServer) -> None:
    added = trust(authserver, oidc(authserver.clock))
    assert change(authserver, update_issuer, "login", IssuerUpdate(max_lifetime=3600, one_time=False)) == added
    assert authserver.audit(action="issuer.update") == []


@pytest.mark.parametrize("seconds", [0, MAX_LIFETIME + 1])
def test_a_changed_lifetime_has_the_limits_of_a_registration(authserver: AuthServer, seconds: int) -> None:
    trust(authserver, oidc(authserver.clock))
    told = f"The maximum lifetime is 1 to {MAX_LIFETIME} seconds, not {seconds}."
    assert refusal(authserver, update_issuer, "login", IssuerUpdate(max_lifetime=seconds)) == told
    assert change(authserver, update_issuer, "login", IssuerUpdate(max_lifetime=MAX_LIFETIME)).max_lifetime == 86400


@pytest.mark.both_databases
def test_an_issuer_is_not_enabled_while_another_one_has_its_keys(authserver: AuthServer) -> None:
    """The keys of an issuer can change while it is disabled, by a fetch."""
    first, second = oidc(authserver.clock), kubernetes(authserver.clock)
    trust(authserver, first)
    trust(authserver, second)
    assert change(authserver, registration.set_issuer_disabled, "login", disabled=True).disabled
    with authserver.services.database.write() as session:
        session.get_one(TrustedIssuerRow, "login").jwks = second.jwks().decode()
    told = "The trusted issuer cluster has a key of this key set"
    assert told in refusal(authserver, registration.set_issuer_disabled, "login", disabled=False)
    with authserver.services.database.write() as session:
        session.get_one(TrustedIssuerRow, "login").jwks = first.jwks().decode()
    assert not change(authserver, registration.set_issuer_disabled, "login", disabled=False).disabled


@pytest.mark.parametrize(
    ("function", "arguments", "options"),
    [
        (update_issuer, [IssuerUpdate(b"{}")], {}),
        (registration.set_issuer_disabled, [], {"disabled": True}),
        (registration.remove_issuer, [], {}),
    ],
)
def test_a_change_of_an_unknown_issuer_is_refused(
    authserver: AuthServer, function: Callable[..., Any], arguments: list[Any], options: dict[str, Any]
) -> None:
    assert "There is no trusted issuer nobody" in refusal(authserver, function, "nobody", *arguments, **options)
    with (
        authserver.services.database.read() as session,
        pytest.raises(CommandRefused, match="no trusted issuer nobody"),
    ):
        registration.existing_issuer(session, "nobody")


@pytest.mark.both_databases
def test_an_issuer_is_removed_with_its_rules_only(authserver: AuthServer) -> None:
    login, cluster, client = oidc(authserver.clock), kubernetes(authserver.clock), workload_client(authserver)
    for platform in (login, cluster):
        trust(authserver, platform)
        add_trust(authserver, client, platform.name, platform.conditions)
    assert change(authserver, registration.remove_issuer, "login") == 1
    with authserver.services.database.read() as session:
        assert [owned.issuer for owned in rules_of_client(session.connection(), client.client_id)] == ["cluster"]
        assert rules_of_issuer(session.connection(), "login") == []
    [event] = authserver.audit(action="issuer.remove")
    assert (event["object"], event["detail"]) == ("login", {"issuer": login.issuer, "rules": 1})


@pytest.mark.both_databases
def test_rules_are_stored_in_their_normal_form(authserver: AuthServer) -> None:
    trust(authserver, oidc(authserver.clock))
    client = workload_client(authserver)
    rule = add_trust(authserver, client, "login", {"/sub": "a"})
    assert rule.conditions == {"sub": "a"}
    with authserver.services.database.read() as session:
        [owned] = rules_of_client(session.connection(), client.client_id)
        assert rules_of_issuer(session.connection(), "login") == [rule]
    assert (owned.rule, owned.created_at, owned.last_used_at) == (rule, int(authserver.clock()), None)
    [event] = authserver.audit(action="client.trust.add")
    assert event["detail"] == {"rule": rule.rule_id, "issuer": "login", "conditions": {"sub": "a"}}


def test_a_rule_that_could_not_be_trusted_is_refused(authserver: AuthServer) -> None:
    trust(authserver, github(authserver.clock))
    client, by_secret = workload_client(authserver), authserver.create_client()[0]
    good = {"repository_id": "74", "ref": "refs/heads/main"}
    for client_id, issuer, conditions, reason in (
        (by_secret.client_id, "github", good, "The client authenticates by client_secret_basic"),
        ("agent_no", "github", good, "There is no client agent_no"),
        (client.client_id, "nobody", good, "There is no trusted issuer nobody"),
        (client.client_id, "github", {"repository_id": "74"}, "These claims do not identify a workload"),
    ):
        assert reason in refusal(authserver, rule_registration.add_rule, client_id, issuer, conditions)
    add_trust(authserver, client, "github", good)


def test_the_same_claims_identify_one_client(authserver: AuthServer) -> None:
    trust(authserver, github(authserver.clock))
    first, second = workload_client(authserver), workload_client(authserver)
    conditions = {"repository_id": "74", "ref": "refs/heads/main"}
    rule = add_trust(authserver, first, "github", conditions)
    told = f"The rule {rule.rule_id} of {first.client_id} has the same claims"
    assert told in refusal(authserver, rule_registration.add_rule, second.client_id, "github", conditions)
    add_trust(authserver, second, "github", {**conditions, "ref": "refs/heads/dev"})


def test_the_number_of_rules_is_limited(authserver: AuthServer) -> None:
    trust(authserver, oidc(authserver.clock))
    client = workload_client(authserver)

    def fill(session: Session) -> None:
        for number in range(rule_registration.MAX_RULES):
            rule_registration.add_rule(session, authserver.admin, client.client_id, "login", {"sub": f"{number}"})

    with authserver.services.database.write() as session:
        fill(session)
    told = refusal(authserver, rule_registration.add_rule, client.client_id, "login", {"sub": "another"})
    assert "A client has at most 64 trust rules" in told
    add_trust(authserver, workload_client(authserver), "login", {"sub": "another"})


@pytest.mark.both_databases
def test_a_client_removes_only_its_own_rules(authserver: AuthServer) -> None:
    trust(authserver, oidc(authserver.clock))
    client, other = workload_client(authserver), workload_client(authserver)
    rule = add_trust(authserver, client, "login", {"sub": "a"})
    for client_id, rule_id, reason in (
        (other.client_id, rule.rule_id, f"The client has no rule {rule.rule_id}"),
        (client.client_id, "rule_no", "The client has no rule rule_no"),
        ("agent_no", rule.rule_id, "There is no client agent_no"),
    ):
        assert reason in refusal(authserver, rule_registration.remove_rule, client_id, rule_id)
    change(authserver, rule_registration.remove_rule, client.client_id, rule.rule_id)
    [event] = authserver.audit(action="client.trust.remove")
    assert event["detail"] == {"rule": rule.rule_id, "issuer": "login", "conditions": {"sub": "a"}}


def test_the_rules_of_a_deleted_client_are_deleted(authserver: AuthServer) -> None:
    trust(authserver, oidc(authserver.clock))
    client = workload_client(authserver)
    add_trust(authserver, client, "login", {"sub": "a"})
    change(authserver, delete_client, client.client_id)
    with authserver.services.database.read() as session:
        assert rules_of_issuer(session.connection(), "login") == []


def test_the_clock_of_the_administrator_dates_every_row(authserver: AuthServer, clock: FakeClock) -> None:
    clock.advance(1000)
    assert trust(authserver, oidc(clock)).created_at == int(clock())
