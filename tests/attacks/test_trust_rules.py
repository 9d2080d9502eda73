"""Attacks on trust rules: weak rules, workloads of two clients, issuers of one name, and trust that was revoked.

Each test first sends a faultless token of the trusted workload.
"""

from dataclasses import replace

import pytest
from sqlalchemy import insert
from support.assertions import KeyClient, jwks, public_jwk
from support.attacked_workloads import workload
from support.authserver import AuthServer
from support.platforms import CLUSTER_ISSUER, TRUST_DOMAIN, Platform, github, kubernetes
from support.workloads import (
    FORMS,
    WorkloadClient,
    Workloads,
    accepted_in_both_forms,
    add_trust,
    refused_in_both_forms,
    trust,
)

from gatehouse.authserver.clients.registration import delete_client, set_disabled
from gatehouse.authserver.credentials.client_keys import rotate_keys
from gatehouse.authserver.credentials.client_secrets import rotate_secret
from gatehouse.authserver.db.models import TrustRuleRow
from gatehouse.authserver.workloads.kinds import KINDS
from gatehouse.authserver.workloads.registration import remove_issuer, set_issuer_disabled
from gatehouse.authserver.workloads.rule_registration import remove_rule
from gatehouse.authserver.workloads.rules import rule_anchor
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.service.administrator import CommandRefused

NO_RULE = "platform token: no rule of this issuer names this workload"

NAMESPACE, ACCOUNT = "/kubernetes.io/namespace", "/kubernetes.io/serviceaccount/name"
UID = "/kubernetes.io/serviceaccount/uid"
SUBJECT = "system:serviceaccount:prod:agent"
SHARED_WORKFLOW = "job_workflow_ref:acme/shared/.github/workflows/agent.yml@refs/heads/main"


# Weak rules.


@pytest.mark.threat("T-202")
@pytest.mark.parametrize(
    ("kind", "conditions"),
    [
        ("kubernetes", {}),
        ("kubernetes", {NAMESPACE: "prod"}),
        ("kubernetes", {ACCOUNT: "agent"}),
        ("kubernetes", {"kubernetes.io/namespace": "prod", "kubernetes.io/serviceaccount/name": "agent"}),
        ("kubernetes", {"iss": CLUSTER_ISSUER, "aud": "https://as.example.com"}),
        ("github", {"repository": "acme/ops"}),
        ("github", {"repository": "acme/ops", "ref": "refs/heads/main"}),
        ("github", {"repository_owner": "acme"}),
        ("github", {"repository_owner_id": "1", "environment": "production"}),
        ("github", {"repository_id": "1"}),
        ("github", {"repository_id": "1", "workflow": "deploy"}),
        ("github", {"repository_id": "1", "event_name": "push"}),
        ("github", {"environment": "production"}),
        ("github", {"ref": "refs/heads/main", "environment": "production"}),
        ("github", {"job_workflow_ref": "acme/shared/.github/workflows/agent.yml@refs/heads/main"}),
        ("github", {"actor_id": "583231"}),
        ("github", {"sub": "environment:production"}),
        ("github", {"sub": SHARED_WORKFLOW}),
        ("github", {"sub": "repository_owner:acme:environment:production", "repository_owner": "acme"}),
        ("github", {"sub": "pull_request", "repository_id": "1"}),
        ("gitlab", {"project_path": "acme/ops"}),
        ("gitlab", {"project_id": "20", "ref": "main"}),
        ("gitlab", {"user_login": "sample-user"}),
        ("oidc", {"email": "agent@example.com"}),
        ("oidc", {"azp": "2d7e9c14-6d1c-4d6b-8f0a-7c1d9f3e5b22", "tid": "tenant"}),
        ("spiffe", {"iss": TRUST_DOMAIN}),
        ("spiffe", {"/sub/0": f"{TRUST_DOMAIN}/ns/prod/sa/agent"}),
    ],
)
def test_a_rule_that_does_not_identify_a_workload_is_refused(
    workloads: Workloads, kind: str, conditions: dict[str, str]
) -> None:
    """Unit 42, "OIDC Misconfigurations in CI/CD" (DEF CON 32, "OH-MY-DC"): everybody on a platform shares its issuer.

    GitHub, "Customizing the subject claims": any repository can compose a subject without the name of a repository.
    """
    client = workloads[kind]
    client.accepted("grant")
    with pytest.raises(CommandRefused, match=r"These claims do not identify a workload\. Add |A rule has 1 to 16"):
        add_trust(client.server, client.client, client.issuer.name, conditions)


@pytest.mark.threat("T-202")
def test_a_composed_subject_identifies_a_job_only_together_with_its_repository(authserver: AuthServer) -> None:
    """Every repository can call a public reusable workflow, and compose its subject of that alone."""
    ours = github(authserver.clock)
    ours.workload["sub"] = SHARED_WORKFLOW
    conditions = {"sub": SHARED_WORKFLOW, **ours.conditions}
    client = WorkloadClient(authserver, ours, conditions)
    client.accepted("grant")
    theirs = github(authserver.clock, repository="mallory/ops")
    client.refused("grant", theirs.token(sub=SHARED_WORKFLOW), NO_RULE)


@pytest.mark.threat("T-202")
@pytest.mark.parametrize("kind", ["kubernetes", "gitlab", "oidc"])
@pytest.mark.parametrize("below", ["", "/", "/enterprise"])
def test_an_issuer_of_github_is_trusted_as_github_only(authserver: AuthServer, kind: str, below: str) -> None:
    """Under another kind, a rule could require a subject that every repository can compose."""
    client = workload(authserver, "github")
    client.accepted("grant")
    platform = github(authserver.clock, name="other")
    issuer = f"{platform.issuer}{below}"
    with pytest.raises(CommandRefused, match="is an issuer of GitHub: add it with --kind github"):
        trust(authserver, platform, kind=kind, issuer=issuer)
    trust(authserver, platform, issuer=issuer)


@pytest.mark.threat("T-202")
@pytest.mark.parametrize(
    "subject",
    [
        "spiffe://evil.org/agent",
        "spiffe://example.org.evil/agent",
        TRUST_DOMAIN,
        "spiffe://example.org@evil/x",
        "agent",
    ],
)
def test_a_rule_cannot_trust_a_workload_of_another_trust_domain(authserver: AuthServer, subject: str) -> None:
    """SPIFFE-ID 2.1."""
    client = workload(authserver, "spiffe")
    client.accepted("grant")
    with pytest.raises(CommandRefused, match="The sub must be a SPIFFE ID of the trust domain"):
        add_trust(authserver, client.client, client.issuer.name, {"sub": subject})


@pytest.mark.threat("T-202")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("/sub", SUBJECT),
        ("//", "x"),
        ("/a//b", "x"),
        ("/", "x"),
        ("", "x"),
        ("/a~2b", "x"),
        ("/a~", "x"),
        ("a" * 513, "x"),
        ("ref", ""),
        ("ref", "x" * 513),
        ("ref", "main\x00"),
        ("ref", "main\u200b"),
        ("ref", "main\u202e"),
        ("re\u00adf", "main"),
    ],
)
def test_a_condition_that_is_malformed_or_repeated_is_refused(workloads: Workloads, name: str, value: str) -> None:
    """RFC 6901; Unicode TR 36: a person must see what a rule trusts."""
    client = workloads["kubernetes"]
    client.accepted("grant")
    with pytest.raises(CommandRefused):
        add_trust(client.server, client.client, client.issuer.name, {"sub": SUBJECT, name: value})


@pytest.mark.threat("T-203")
@pytest.mark.parametrize(
    ("kind", "conditions"),
    [
        ("kubernetes", {"sub": SUBJECT, UID: "*"}),
        ("kubernetes", {"sub": SUBJECT, UID: "????????-????-????-????-????????????"}),
        ("kubernetes", {NAMESPACE: "prod", ACCOUNT: "agent", UID: ".*"}),
        ("github", {"sub": "repo:acme/ops:*"}),
        ("github", {"sub": "repo:acme/*"}),
        ("gitlab", {"sub": "project_path:acme/ops:ref_type:branch:ref:%"}),
        ("spiffe", {"sub": f"{TRUST_DOMAIN}/*"}),
        ("oidc", {"sub": "^.+$"}),
    ],
)
def test_a_pattern_in_a_rule_is_a_plain_text(authserver: AuthServer, kind: str, conditions: dict[str, str]) -> None:
    """Tinder Security Labs and Datadog on GitHub's roles at AWS: `StringLike` with a wildcard trusts too many."""
    trusted = workload(authserver, kind)
    accepted_in_both_forms(trusted)
    with authserver.services.database.write() as session:
        remove_rule(session, authserver.admin, trusted.client.client_id, trusted.rule.rule_id)
    pattern = add_trust(authserver, trusted.client, trusted.issuer.name, conditions)
    authserver.clock.advance(1)
    unmet = f"no rule matches; the rule {pattern.rule_id} of {pattern.client_id} requires another {UID}"
    reason = f"platform token: {unmet}" if UID in conditions else NO_RULE
    refused_in_both_forms(trusted, trusted.platform.token(), reason)


# Two clients, and two issuers of one name.


@pytest.mark.threat("T-204")
def test_a_token_that_matches_rules_of_two_clients_is_refused(authserver: AuthServer) -> None:
    """CWE-694: which of the two it stands for must not depend on an order."""
    first = workload(authserver)
    accepted_in_both_forms(first)
    second = WorkloadClient(authserver, first.platform, {"sub": SUBJECT}, issuer=first.issuer)
    authserver.clock.advance(1)
    names = ", ".join(sorted([first.client.client_id, second.client.client_id]))
    reason = f"platform token: rules of several clients match: {names}"
    for client in (first, second):
        token = first.platform.token()
        refused_in_both_forms(client, token, reason)
        refused_in_both_forms(client, token, reason, client_id=client.client.client_id)
    with authserver.services.database.write() as session:
        remove_rule(session, authserver.admin, second.client.client_id, second.rule.rule_id)
    authserver.clock.advance(1)
    accepted_in_both_forms(first)


@pytest.mark.divergence("D-72")
@pytest.mark.threat("T-204")
def test_a_client_id_beside_the_token_of_another_client_is_refused(authserver: AuthServer) -> None:
    """RFC 7521 4.2: it must identify the same client."""
    client, other = workload(authserver), workload(authserver, "gitlab")
    client_id = client.client.client_id
    for form in FORMS:
        assert client.post(form, client.platform.token(), client_id=client_id).status_code == 200, form
        for named in (other.client.client_id, client_id.upper(), f"{client_id} ", SUBJECT, "x" * 400):
            response = client.post(form, client.platform.token(), client_id=named)
            shown = f'"{named}"' if " " in named else named[:100]
            reason = f"platform token: client_id is {shown}, and the token stands for {client_id}"
            client.check_refusal(form, response, reason)


@pytest.mark.threat("T-201")
@pytest.mark.parametrize("same_kid", [False, True])
def test_two_clusters_of_one_name_do_not_stand_for_each_other(authserver: AuthServer, same_kid: bool) -> None:
    """Kubernetes, "Service Account Issuer Discovery": every cluster has one default issuer, and its own keys."""
    first, second = kubernetes(authserver.clock, name="one"), kubernetes(authserver.clock, name="two")
    if same_kid:
        second.keys[0] = replace(second.key, kid=first.key.kid)
    one, two = WorkloadClient(authserver, first), WorkloadClient(authserver, second)
    authserver.clock.advance(1)
    accepted_in_both_forms(one, two)
    with authserver.services.database.write() as session:
        remove_rule(session, authserver.admin, two.client.client_id, two.rule.rule_id)
    authserver.clock.advance(1)
    accepted_in_both_forms(one)
    refused_in_both_forms(two, second.token(), NO_RULE)
    with authserver.services.database.write() as session:
        remove_issuer(session, authserver.admin, "two")
    authserver.clock.advance(1)
    accepted_in_both_forms(one)
    kid = quoted_kid(second)
    reason = "signature does not match" if same_kid else f"the issuer has no key with the kid {kid} for RS256"
    refused_in_both_forms(two, second.token(), f"platform token: {reason}")


def quoted_kid(platform: Platform) -> str:
    return platform.key.kid[:100]


@pytest.mark.threat("T-201")
@pytest.mark.parametrize("issuer", [CLUSTER_ISSUER, "https://cluster.example.com"])
def test_a_key_of_another_trusted_issuer_is_refused(authserver: AuthServer, issuer: str) -> None:
    """One of the two key sets is wrong, and no signature would say which."""
    first = workload(authserver)
    first.accepted("grant")
    second = kubernetes(authserver.clock, issuer, name="two")
    document = second.jwks(second.key, replace(first.platform.key, kid="another-kid"))
    with pytest.raises(CommandRefused, match="The trusted issuer cluster has a key of this key set"):
        trust(authserver, second, jwks=document)
    WorkloadClient(authserver, second)
    authserver.clock.advance(1)
    first.accepted("grant")


# Clients that authenticate otherwise, or no longer.


@pytest.mark.threat("T-210")
def test_a_client_with_a_secret_accepts_no_platform_token(authserver: AuthServer) -> None:
    """RFC 7523 3: one method for each client, even if somebody who can write to the database adds a rule."""
    client = workload(authserver)
    other, secret = authserver.create_client()
    with pytest.raises(CommandRefused, match="authenticates by client_secret_basic, and a client has one method"):
        add_trust(authserver, other, client.issuer.name, {"sub": SUBJECT})
    for form in FORMS:
        client.accepted(form)
    conditions = {"sub": "system:serviceaccount:prod:forged"}
    with authserver.services.database.engine.begin() as connection:
        anchor = rule_anchor(KINDS["kubernetes"], conditions)
        row = {"rule_id": "rule_forged", "client_id": other.client_id, "issuer": client.issuer.name, "created_at": 0}
        connection.execute(insert(TrustRuleRow).values(**row, anchor=anchor, conditions=conditions))
    assert authserver.post_token(basic=(other.client_id, secret)).status_code == 200
    for form in FORMS:
        token = client.platform.token(sub=conditions["sub"], **{"kubernetes.io": None})
        client.refused(form, token, "used a platform token, registered for client_secret_basic")


@pytest.mark.threat("T-210")
def test_a_client_of_a_workload_has_no_other_credential(authserver: AuthServer) -> None:
    """OAuth 2.0 Security BCP 2.5: a second credential is one more to leak, and nobody rotates it."""
    client = workload(authserver)
    client.accepted("assertion")
    key, client_id = SigningKey.generate("ES256"), client.client.client_id
    services, admin = authserver.services, authserver.admin
    with services.database.write() as session, pytest.raises(CommandRefused, match="it has no secret"):
        rotate_secret(session, admin, services.keys.ring(), client_id)
    with services.database.write() as session, pytest.raises(CommandRefused, match="it has no keys of its own"):
        rotate_keys(session, admin, client_id, jwks(public_jwk(key)))
    signer = KeyClient(authserver, key)
    signer.accepted()
    response = signer.post(signer.assertion(signer.claims(iss=client_id, sub=client_id)))
    signer.refused(response, "used private_key_jwt, registered for workload_identity")
    basic = authserver.post_token(basic=(client_id, "gths_guess"))
    signer.refused(basic, "used client_secret_basic, registered for workload_identity")


@pytest.mark.threat("T-211")
@pytest.mark.parametrize("change", ["client disabled", "client deleted", "rule removed", "issuer disabled", "removed"])
def test_what_an_admin_revokes_ends_within_a_second(authserver: AuthServer, change: str) -> None:
    """RFC 7009 and the revocation of trust: no cache of tokens, rules or keys may last longer."""
    client = workload(authserver)
    accepted_in_both_forms(client)
    client_id, name, admin = client.client.client_id, client.issuer.name, authserver.admin
    unknown = f"platform token: no trusted issuer has the iss {CLUSTER_ISSUER}"
    with authserver.services.database.write() as session:
        match change:
            case "client disabled":
                set_disabled(session, admin, client_id, disabled=True)
                reason = "client is disabled"
            case "client deleted":
                delete_client(session, admin, client_id)
                reason = NO_RULE
            case "rule removed":
                remove_rule(session, admin, client_id, client.rule.rule_id)
                reason = NO_RULE
            case "issuer disabled":
                set_issuer_disabled(session, admin, name, disabled=True)
                reason = unknown
            case _:
                remove_issuer(session, admin, name)
                reason = unknown
    authserver.clock.advance(1)
    refused_in_both_forms(client, client.platform.token(), reason)


@pytest.mark.threat("T-211")
def test_a_new_issuer_does_not_inherit_the_rules_of_a_removed_one(authserver: AuthServer) -> None:
    """CWE-672: neither under the same name, nor with the same `iss`."""
    client = workload(authserver)
    client.accepted("grant")
    with authserver.services.database.write() as session:
        remove_issuer(session, authserver.admin, client.issuer.name)
    trust(authserver, client.platform)
    authserver.clock.advance(1)
    client.refused("grant", client.platform.token(), NO_RULE)
    add_trust(authserver, client.client, client.issuer.name, client.platform.conditions)
    authserver.clock.advance(1)
    client.accepted("grant")
