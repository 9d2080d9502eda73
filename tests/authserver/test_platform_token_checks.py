"""Each reason to refuse a platform token, in both forms of a request.

Tests of faultless registrations share one server, on which they change nothing.
"""

from typing import Any

import pytest
from support.assertions import KeyClient, jwks, public_jwk
from support.authserver import ISSUER, AuthServer
from support.forging import forge, hs256
from support.key_sets import KEY, OTHER_KEY
from support.platforms import PLATFORMS, github, kubernetes, oidc, spiffe
from support.workloads import FORMS, WorkloadClient, Workloads, trust

from gatehouse.authserver.workloads.kinds import KINDS
from gatehouse.shared.protocol.clock import LEEWAY

NO_RULE = "platform token: no rule of this issuer names this workload"
UNKNOWN = "platform token: no trusted issuer has the iss {}"


@pytest.fixture
def workload(workloads: Workloads) -> WorkloadClient:
    return workloads["kubernetes"]


def check(client: WorkloadClient, token: str, reason: str) -> None:
    """Check that a faultless token is accepted in each form, and another one refused."""
    for form in FORMS:
        client.accepted(form)
        client.refused(form, token, reason)


@pytest.mark.parametrize("member", ["jku", "x5u", "jwk", "x5c", "crit", "b64", "zip"])
@pytest.mark.parametrize("kind", PLATFORMS)
def test_no_header_member_names_a_key_or_an_extension(workloads: Workloads, kind: str, member: str) -> None:
    """RFC 8725 3.10; CVE-2018-0114 (`jwk`), CVE-2025-59420 (`crit`)."""
    client = workloads[kind]
    header = {member: "https://evil.example/keys"}
    check(client, client.platform.token(header=header), f"assertion: header member refused: {member}")


@pytest.mark.parametrize("kind", ["kubernetes", "gitlab", "spiffe"])
def test_a_thumbprint_is_refused_where_the_platform_sends_none(workloads: Workloads, kind: str) -> None:
    client = workloads[kind]
    token = client.platform.token(header={"x5t": "AAAA"})
    check(client, token, "platform token: header member refused: x5t")


def test_a_thumbprint_is_refused_in_the_assertion_of_a_client(authserver: AuthServer) -> None:
    client = KeyClient(authserver, KEY, jwks(public_jwk(KEY)))
    client.accepted()
    job = WorkloadClient(authserver, github(authserver.clock))
    token = client.assertion(x5t="AAAA")
    reasons = {
        "assertion": "assertion: header member refused: unknown",
        "grant": UNKNOWN.format(client.client.client_id),
    }
    for form in FORMS:
        job.accepted(form)
        job.refused(form, token, reasons[form])


@pytest.mark.parametrize(
    "typ", ["at+jwt", "application/at+jwt", "oauth-id-jag+jwt", "dpop+jwt", "client-authentication+jwt", "jwt", ""]
)
def test_a_token_of_another_type_is_refused(workload: WorkloadClient, typ: str) -> None:
    """RFC 8725 3.11: an access token, an ID-JAG, or a DPoP proof that the same issuer signed."""
    shown = typ or '""'
    reason = f"platform token: typ is {shown}, not that of a platform token"
    check(workload, workload.platform.token(header={"typ": typ}), reason)


@pytest.mark.parametrize("kind", PLATFORMS)
def test_a_token_may_name_its_type_or_not(workloads: Workloads, kind: str) -> None:
    client = workloads[kind]
    for form in FORMS:
        for typ in KINDS[kind].types:
            client.accepted(form, client.platform.token(header={"typ": typ}))


def test_only_a_svid_may_have_the_type_jose(workloads: Workloads, workload: WorkloadClient) -> None:
    """JWT-SVID 2.3."""
    svid = workloads["spiffe"]
    for form in FORMS:
        svid.accepted(form, svid.platform.token(header={"typ": "JOSE"}))
    reason = "platform token: typ is JOSE, not that of a platform token"
    check(workload, workload.platform.token(header={"typ": "JOSE"}), reason)


@pytest.mark.parametrize("alg", ["none", "HS256", "RS512", "ES384"])
def test_an_algorithm_that_no_issuer_may_use_is_refused(workload: WorkloadClient, alg: str) -> None:
    """RFC 8725 3.1."""
    check(workload, workload.platform.token(header={"alg": alg}), "assertion: algorithm not allowed")


def test_a_public_key_is_no_secret(workload: WorkloadClient) -> None:
    """CVE-2015-9235: a token signed with the published key as the secret of HS256."""
    header = {"alg": "HS256", "kid": workload.platform.key.kid}
    token = forge(header, workload.platform.claims(), hs256(workload.platform.jwks()))
    check(workload, token, "assertion: algorithm not allowed")


def test_an_issuer_uses_its_own_algorithms_only(workloads: Workloads) -> None:
    """RFC 8725 3.1. The key itself could verify both."""
    job = workloads["github"]
    token = job.platform.token(header={"alg": "PS256"})
    check(job, token, "platform token: the issuer may not use the algorithm PS256")


def test_a_key_that_names_its_algorithm_verifies_no_other(workloads: Workloads) -> None:
    client = workloads["oidc"]
    kid = client.platform.key.kid
    reason = f"platform token: the issuer has no key with the kid {kid} for PS256"
    check(client, client.platform.token(header={"alg": "PS256"}), reason)


@pytest.mark.parametrize("kid", ["another", None])
def test_a_token_must_name_a_key_of_its_issuer(workload: WorkloadClient, kid: str | None) -> None:
    shown = kid or '""'
    reason = f"platform token: the issuer has no key with the kid {shown} for RS256"
    check(workload, workload.platform.token(header={"kid": kid}), reason)


def test_a_signature_of_another_key_is_refused(authserver: AuthServer, workload: WorkloadClient) -> None:
    stranger = kubernetes(authserver.clock, name="stranger").key
    token = workload.platform.token(key=stranger, header={"kid": workload.platform.key.kid})
    check(workload, token, "platform token: signature does not match")


def test_changed_claims_have_no_signature(workload: WorkloadClient) -> None:
    header, _, signature = workload.platform.token().split(".")
    payload = workload.platform.token(sub="system:serviceaccount:prod:admin").split(".")[1]
    check(workload, f"{header}.{payload}.{signature}", "platform token: signature does not match")


@pytest.mark.parametrize(
    "issuer",
    ["{}/", "{}.evil.example", "HTTPS://KUBERNETES.default.svc.cluster.local", " {}", "http://kubernetes.default.svc"],
)
def test_the_issuer_is_compared_exactly(workload: WorkloadClient, issuer: str) -> None:
    issuer = issuer.format(workload.issuer.issuer)
    shown = f'"{issuer}"' if " " in issuer else issuer
    check(workload, workload.platform.token(iss=issuer), UNKNOWN.format(shown))


AUDIENCE = "platform token: aud is {}, not https://as.example.com alone"


@pytest.mark.parametrize(
    ("audience", "found"),
    [
        ([ISSUER, "https://kubernetes.default.svc"], f"{ISSUER} and https://kubernetes.default.svc"),
        ([ISSUER, ISSUER], f"{ISSUER} and {ISSUER}"),
        (["a", "b", "c"], "a and b and c"),
        (["a", "b", "c", ISSUER, 5], "a and b and c and 2 more"),
        ([], "an empty list"),
        ([[ISSUER]], "a list"),
        ("https://kubernetes.default.svc", "https://kubernetes.default.svc"),
        (["https://kubernetes.default.svc"], "https://kubernetes.default.svc"),
        (f"{ISSUER}//", f"{ISSUER}//"),
        (f"{ISSUER}.evil.example", f"{ISSUER}.evil.example"),
        (f"{ISSUER} https://elsewhere.example.com", f'"{ISSUER} https://elsewhere.example.com"'),
        (ISSUER.upper(), ISSUER.upper()),
        ("", '""'),
        (7, "a number"),
        ({"aud": ISSUER}, "an object"),
    ],
    ids=repr,
)
def test_the_audience_is_this_server_alone(workload: WorkloadClient, audience: Any, found: str) -> None:
    """RFC 7519 4.1.3; CVE-2025-27370. With two audiences, the API server could use the token here."""
    check(workload, workload.platform.token(aud=audience), AUDIENCE.format(found))


def test_a_token_without_an_audience_is_refused(workload: WorkloadClient) -> None:
    reason = f"platform token: aud is missing; it must be {ISSUER} alone"
    check(workload, workload.platform.token(aud=None), reason)


def test_a_slash_at_the_end_of_the_audience_is_named(workload: WorkloadClient) -> None:
    workload.accepted("grant", workload.platform.token(aud=f"{ISSUER}/"))
    workload.accepted("assertion")
    token, reason = workload.platform.token(aud=f"{ISSUER}/"), AUDIENCE.format(f"{ISSUER}/")
    remediation = workload.refused("assertion", token, reason)["detail"]["remediation"]
    told = f"Request a token for the audience {ISSUER} from the platform, without the slash at its end."
    assert remediation == told


@pytest.mark.parametrize("audience", [ISSUER, [ISSUER]], ids=["text", "array"])
@pytest.mark.parametrize("kind", PLATFORMS)
def test_one_audience_is_a_text_or_an_array(workloads: Workloads, kind: str, audience: Any) -> None:
    client = workloads[kind]
    for form in FORMS:
        client.accepted(form, client.platform.token(aud=audience))


@pytest.mark.parametrize("allowed", [False, True])
def test_the_token_endpoint_is_an_audience_of_grants_where_allowed(authserver: AuthServer, allowed: bool) -> None:
    """SEP-1933 names the token endpoint, and SDKs the issuer, with a slash or without."""
    client = WorkloadClient(authserver, kubernetes(authserver.clock), token_endpoint_audience=allowed)
    for form in FORMS:
        client.accepted(form)
        for audience, accepted in ((f"{ISSUER}/", form == "grant"), (f"{ISSUER}/token", form == "grant" and allowed)):
            token = client.platform.token(aud=[audience])
            if accepted:
                client.accepted(form, token)
            else:
                client.refused(form, token, AUDIENCE.format(audience))


def test_an_issuer_may_have_an_audience_of_its_own(authserver: AuthServer) -> None:
    platform = kubernetes(authserver.clock)
    platform.audience = "gatehouse"
    client = WorkloadClient(authserver, platform, audience="gatehouse")
    for form in FORMS:
        client.accepted(form)
        for audience in (ISSUER, f"{ISSUER}/token"):
            reason = f"platform token: aud is {audience}, not gatehouse alone"
            client.refused(form, platform.token(aud=audience), reason)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"exp": None}, "exp is missing", id="no exp"),
        pytest.param({"exp": True}, "exp is not a number of seconds", id="exp a bool"),
        pytest.param({"exp": "1800000100"}, "exp is not a number of seconds", id="exp a text"),
        pytest.param({"exp": 1e300}, "exp is not a number of seconds", id="exp huge"),
        pytest.param({"exp": -1}, "exp is not a number of seconds", id="exp negative"),
        pytest.param({"exp": [1_800_000_100]}, "exp is not a number of seconds", id="exp an array"),
        pytest.param({"iat": "now"}, "iat is not a number of seconds", id="iat a text"),
        pytest.param({"nbf": True}, "nbf is not a number of seconds", id="nbf a bool"),
        pytest.param({"exp": 1_800_000_000 - LEEWAY}, "expired 30 s ago", id="expired"),
        pytest.param({"exp": 1_800_003_631}, "valid for longer than 3600 s from now", id="too long"),
        pytest.param({"exp": 1_800_003_630.5}, "valid for longer than 3600 s from now", id="a fraction too long"),
        pytest.param({"iat": 1_800_000_031}, "iat is in the future", id="iat later"),
        pytest.param({"nbf": 1_800_000_030.25}, "nbf is in the future", id="nbf a fraction later"),
    ],
)
def test_the_times_of_a_token_are_bounded(workload: WorkloadClient, changes: dict[str, Any], reason: str) -> None:
    check(workload, workload.platform.token(**changes), f"platform token: {reason}")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"exp": 1_800_000_000 - LEEWAY + 1}, id="expired within the leeway"),
        pytest.param({"exp": 1_800_003_630}, id="valid for the maximum and the leeway"),
        pytest.param({"iat": 1_800_000_030, "nbf": 1_800_000_030}, id="kubelet's clock ahead"),
        pytest.param({"iat": 1_800_000_000.5, "exp": 1_800_000_100.25}, id="fractions"),
        pytest.param({"iat": None, "nbf": None, "jti": None}, id="no other time and no id"),
        pytest.param({"iat": 0}, id="an old token that is still valid"),
    ],
)
def test_the_times_of_a_token_have_a_leeway(workload: WorkloadClient, changes: dict[str, Any]) -> None:
    for form in FORMS:
        workload.accepted(form, workload.platform.token(**changes))


def test_the_longest_lifetime_is_that_of_the_issuer(authserver: AuthServer) -> None:
    """Some platforms sign tokens for a year (Kubernetes with `--service-account-extend-token-expiration`)."""
    now = int(authserver.clock())
    job = WorkloadClient(authserver, github(authserver.clock))
    pod = WorkloadClient(authserver, kubernetes(authserver.clock), max_lifetime=86400)
    long = job.platform.token(exp=now + 631)
    check(job, long, "platform token: valid for longer than 600 s from now")
    for form in FORMS:
        pod.accepted(form, pod.platform.token(exp=now + 86400))


@pytest.mark.parametrize("subject", [None, "", 7, ["system:serviceaccount:prod:agent"]], ids=repr)
def test_a_token_without_a_subject_is_refused(workload: WorkloadClient, subject: Any) -> None:
    check(workload, workload.platform.token(sub=subject), "platform token: sub is missing")


def test_a_token_without_an_issuer_is_no_platform_token(workload: WorkloadClient) -> None:
    reasons = {"assertion": "unknown client", "grant": UNKNOWN.format('""')}
    for form in FORMS:
        workload.accepted(form)
        workload.refused(form, workload.platform.token(iss=None), reasons[form])


def test_the_subject_of_a_rule_is_compared_exactly(authserver: AuthServer, subtests: pytest.Subtests) -> None:
    conditions = {"sub": "system:serviceaccount:prod:agent"}
    workload = WorkloadClient(authserver, kubernetes(authserver.clock), conditions)
    for subject in (
        "system:serviceaccount:prod:agent-evil",
        "system:serviceaccount:prod:agen",
        "system:serviceaccount:prod-evil:agent",
        "evil system:serviceaccount:prod:agent",
        "system:serviceaccount:prod:agent ",
        "SYSTEM:serviceaccount:prod:agent",
        "system:serviceaccount:prod:*",
    ):
        with subtests.test(subject=subject):
            check(workload, workload.platform.token(sub=subject), NO_RULE)


@pytest.mark.parametrize(
    "private",
    [
        None,
        "prod",
        ["prod"],
        {"namespace": ["prod"], "serviceaccount": {"name": "agent"}},
        {"namespace": "prod-evil", "serviceaccount": {"name": "agent"}},
        {"namespace": "prod", "serviceaccount": {"name": "agent2"}},
        {"namespace": "prod", "serviceaccount": "agent"},
        {"namespace": "prod"},
    ],
    ids=repr,
)
def test_nested_claims_of_a_rule_are_compared_exactly(workload: WorkloadClient, private: Any) -> None:
    check(workload, workload.platform.token(**{"kubernetes.io": private}), NO_RULE)


def test_members_at_the_top_do_not_stand_for_nested_ones(workload: WorkloadClient) -> None:
    flat = {"/kubernetes.io/namespace": "prod", "/kubernetes.io/serviceaccount/name": "agent", "namespace": "prod"}
    token = workload.platform.token(**{"kubernetes.io": None, **flat})
    check(workload, token, NO_RULE)


def test_ambiguous_claims_are_refused(workload: WorkloadClient) -> None:
    """RFC 8725 2.4: two parsers would read another subject."""
    token = workload.platform.sign(b'{"iss": "https://a.example", "sub": "agent", "sub": "admin"}')
    check(workload, token, "assertion: claims: An object has the same member twice.")


def test_a_token_over_8_kib_is_refused(workload: WorkloadClient) -> None:
    for form in FORMS:
        workload.accepted(form, workload.platform.token(padding="x" * 5000))
    check(workload, workload.platform.token(padding="x" * 6500), "assertion: longer than 8 KiB")


@pytest.mark.parametrize("token", ["a", "a.b", "a.b.c", "e30.e30.e30", "a.b.c.d", "é.é.é", "e30.W10.e30"])
def test_what_is_no_token_is_refused(workload: WorkloadClient, token: str) -> None:
    for form in FORMS:
        workload.accepted(form)
        response = workload.post(form, token)
        expected = (401, "invalid_client") if form == "assertion" else (400, "invalid_grant")
        assert (response.status_code, response.json.get("error")) == expected, form


def test_an_access_token_of_this_server_is_refused_even_if_it_trusts_itself(authserver: AuthServer) -> None:
    """RFC 8725 3.11, 3.12."""
    pod = WorkloadClient(authserver, kubernetes(authserver.clock))
    access_tokens = {form: pod.post(form, pod.platform.token()).json["access_token"] for form in FORMS}
    for form, access_token in access_tokens.items():
        pod.refused(form, access_token, UNKNOWN.format(ISSUER))
    own = oidc(authserver.clock, name="own-issuer")
    own.issuer = ISSUER
    own_keys = authserver.http.get("/.well-known/jwks.json").data
    trust(authserver, own, jwks=own_keys)
    authserver.clock.advance(1)
    for form, access_token in access_tokens.items():
        pod.refused(form, access_token, "platform token: typ is at+jwt, not that of a platform token")


def test_an_assertion_of_a_client_is_no_platform_token(authserver: AuthServer) -> None:
    client = KeyClient(authserver, KEY, jwks(public_jwk(KEY)))
    pod = WorkloadClient(authserver, kubernetes(authserver.clock))
    for form in FORMS:
        pod.accepted(form)
        assertion = client.assertion()
        response = pod.post(form, assertion)
        if form == "assertion":
            assert authserver.read_token(response)[1]["client_id"] == client.client.client_id, form
        else:
            pod.check_refusal(form, response, UNKNOWN.format(client.client.client_id))


def test_an_oidc_issuer_may_name_workloads_by_spiffe_id(authserver: AuthServer) -> None:
    """Which issuer signed it is found by `iss`; the trust domain has other keys."""
    subject = "spiffe://example.org/ns/prod/sa/agent"
    svid = WorkloadClient(authserver, spiffe(authserver.clock))
    platform = oidc(authserver.clock)
    platform.workload["sub"] = subject
    client = WorkloadClient(authserver, platform, {"sub": subject})
    for form in FORMS:
        svid.accepted(form)
        client.accepted(form)
        client.refused(
            form,
            platform.token(iss=None),
            f"platform token: the issuer has no key with the kid {platform.key.kid} for RS256",
        )


def test_a_svid_is_recognised_by_its_trust_domain_whatever_its_issuer(workloads: Workloads) -> None:
    """JWT-SVID 3: `iss` is not relied upon."""
    svid = workloads["spiffe"]
    for form in FORMS:
        svid.accepted(form)
        svid.accepted(form, svid.platform.token(iss="https://spire.example.com"))
        for subject in (
            "spiffe://example.org.evil.example/ns/prod/sa/agent",
            "spiffe://other.example/ns/prod/sa/agent",
        ):
            domain = subject.removesuffix("/ns/prod/sa/agent")
            svid.refused(form, svid.platform.token(sub=subject), UNKNOWN.format(domain))
        svid.refused(form, svid.platform.token(sub="spiffe://example.org/ns/prod/sa/agent/admin"), NO_RULE)


def test_the_key_of_another_platform_signs_nothing(workloads: Workloads) -> None:
    pod, job = workloads["kubernetes"], workloads["github"]
    for form in FORMS:
        job.accepted(form)
    kid = job.platform.key.kid
    forged = pod.platform.token(key=job.platform.key)
    check(pod, forged, f"platform token: the issuer has no key with the kid {kid} for RS256")
    assert OTHER_KEY.kid != kid
