"""Attacks with genuine platform tokens: for another audience, of another issuer, too late or for too long.

Each test first sends a faultless token of the same platform, in the same way.
"""

from typing import Any

import pytest
from support.attacked_workloads import workload
from support.authserver import ISSUER, OTHER_RESOURCE, RESOURCE, AuthServer
from support.platforms import CLUSTER_ISSUER, PLATFORMS
from support.workloads import FORMS, Workloads, accepted_in_both_forms, refused_in_both_forms

from gatehouse.shared.protocol.redaction import as_word, quoted

# The audience.


def audiences(kind: str) -> list[Any]:
    """Return audiences that are not this server alone."""
    defaults = {
        "kubernetes": [CLUSTER_ISSUER, "https://kubernetes.default.svc", "kubernetes", "api", "vault"],
        "github": ["https://github.com/acme", "sts.amazonaws.com", "api://AzureADTokenExchange", "sigstore", "pypi"],
        "gitlab": ["https://gitlab.example.com"],
        "spiffe": ["spiffe://example.org/ns/prod/sa/server", "spiffe://example.org"],
        "oidc": ["2d7e9c14-6d1c-4d6b-8f0a-7c1d9f3e5b22", "https://graph.example.com"],
    }
    return [
        *defaults[kind],
        *([ISSUER, OTHER_RESOURCE], [OTHER_RESOURCE, ISSUER], [ISSUER, ISSUER], [ISSUER, f"{ISSUER}/"]),
        *([], [[ISSUER]], {"0": ISSUER}, {ISSUER: True}, 0, True, "", "*", [None], ["*"]),
        *(f"{ISSUER}.evil.example", f"{ISSUER}@evil.example", f"{ISSUER}:443", f"{ISSUER}#", f"{ISSUER}/token"),
        *(ISSUER.upper(), ISSUER[:-1], f" {ISSUER}", f"{ISSUER}\n", f"{ISSUER} {OTHER_RESOURCE}", ISSUER[8:]),
        *("http://as.example.com", f"{ISSUER},{OTHER_RESOURCE}", RESOURCE, f"{ISSUER}//"),
    ]


def shown(audience: Any) -> str:
    """Return an audience as the reason of a refusal names it."""
    match audience:
        case str():
            return as_word(quoted(audience))
        case []:
            return "an empty list"
        case list():
            return " and ".join("a list" if isinstance(one, list) else shown(one) for one in audience)
        case True | None:
            return "true" if audience else "null"
    return "an object" if isinstance(audience, dict) else "a number"


@pytest.mark.divergence("D-74")
@pytest.mark.threat("T-199")
@pytest.mark.parametrize("kind", PLATFORMS)
def test_a_token_for_another_or_a_second_audience_is_refused(workloads: Workloads, kind: str) -> None:
    """RFC 7523 3 item 3; CVE-2020-26160 and CVE-2024-5798 (Vault): arrays and loose comparison of `aud`.

    With a second audience, that server could present the token here. What a platform sets by default is for itself.
    """
    client = workloads[kind]
    for form in FORMS:
        client.accepted(form)
        client.accepted(form, client.platform.token(aud=[ISSUER]))
        for audience in audiences(kind):
            reason = f"platform token: aud is {shown(audience)}, not {ISSUER} alone"
            client.refused(form, client.platform.token(aud=audience), reason)
        missing = f"platform token: aud is missing; it must be {ISSUER} alone"
        client.refused(form, client.platform.token(aud=None), missing)


@pytest.mark.divergence("D-74")
@pytest.mark.threat("T-199")
def test_the_token_endpoint_is_an_audience_of_the_grant_only_if_the_issuer_allows_it(authserver: AuthServer) -> None:
    """CVE-2025-27370: SEP-1933 wants the token endpoint, which an attacker can name as its own."""
    allowed, other = workload(authserver, token_endpoint_audience=True), workload(authserver, "gitlab")
    endpoint = f"{ISSUER}/token"
    allowed.accepted("grant", allowed.platform.token(aud=[endpoint]))
    allowed.accepted("assertion")
    other.accepted("grant")
    reason = f"platform token: aud is {endpoint}, not {ISSUER} alone"
    allowed.refused("assertion", allowed.platform.token(aud=[endpoint]), reason)
    other.refused("grant", other.platform.token(aud=endpoint), reason)
    both = allowed.platform.token(aud=[endpoint, ISSUER])
    allowed.refused("grant", both, f"platform token: aud is {endpoint} and {ISSUER}, not {ISSUER} alone")


@pytest.mark.divergence("D-74")
@pytest.mark.threat("T-199")
def test_a_slash_after_the_issuer_is_accepted_of_the_grant_only(workloads: Workloads) -> None:
    """SDKs send the issuer of the metadata with a slash; the audience of a client assertion is compared exactly."""
    client = workloads["kubernetes"]
    client.accepted("assertion")
    client.accepted("grant", client.platform.token(aud=[f"{ISSUER}/"]))
    reason = f"platform token: aud is {ISSUER}/, not {ISSUER} alone"
    client.refused("assertion", client.platform.token(aud=[f"{ISSUER}/"]), reason)


@pytest.mark.threat("T-199")
def test_an_issuer_with_an_audience_of_its_own_accepts_no_other(authserver: AuthServer) -> None:
    """RFC 7523 3 item 3."""
    client = workload(authserver, audience="gatehouse")
    for form in FORMS:
        client.accepted(form, client.platform.token(aud=["gatehouse"]))
        for audience in (ISSUER, f"{ISSUER}/", "Gatehouse", "gatehouse2"):
            token = client.platform.token(aud=[audience])
            client.refused(form, token, f"platform token: aud is {audience}, not gatehouse alone")


# The issuer.


@pytest.mark.threat("T-200")
@pytest.mark.parametrize("kind", ["kubernetes", "github", "gitlab", "oidc"])
def test_an_issuer_is_compared_exactly(workloads: Workloads, kind: str) -> None:
    """RFC 7523 3 item 1; RFC 9207 2.4 for the comparison of issuers."""
    client = workloads[kind]
    issuer = client.platform.issuer
    for form in FORMS:
        client.accepted(form)
        for other in (
            *(
                f"{issuer}/",
                f"{issuer}.evil.example",
                f"{issuer}@evil.example",
                f"{issuer}:443",
                f"{issuer}?",
                f"{issuer}#",
            ),
            *(issuer.upper(), issuer[:-1], f" {issuer}", f"{issuer}\t", issuer.replace("https", "http")),
            *(issuer.replace("e", "\u0435"), f"{issuer}\x00", "https://evil.example", "://"),
        ):
            reason = f"platform token: no trusted issuer has the iss {as_word(quoted(other))}"
            client.refused(form, client.platform.token(iss=other), reason)


@pytest.mark.threat("T-200")
@pytest.mark.parametrize("value", [None, [CLUSTER_ISSUER], {CLUSTER_ISSUER: 1}, True, 0, ""])
def test_an_issuer_that_is_missing_or_no_text_is_refused(workloads: Workloads, value: Any) -> None:
    """RFC 7523 3 item 1. As a client assertion, the token is then taken for one that a client signed itself."""
    client = workloads["kubernetes"]
    client.accepted("grant")
    client.accepted("assertion")
    token = client.platform.token(iss=value)
    client.refused("grant", token, 'platform token: no trusted issuer has the iss ""')
    client.refused("assertion", token, "unknown client")


@pytest.mark.threat("T-200")
def test_one_trusted_issuer_cannot_sign_for_another(workloads: Workloads) -> None:
    """Keys belong to the issuer: a GitLab instance says that it is GitHub, a cluster, or a trust domain."""
    gitlab = workloads["gitlab"]
    for form in FORMS:
        for kind in ("github", "kubernetes", "oidc"):
            client = workloads[kind]
            client.accepted(form)
            gitlab.accepted(form)
            key, own = gitlab.platform.key, client.platform.key
            claims = client.platform.claims()
            reason = f"platform token: the issuer has no key with the kid {quoted(key.kid)} for RS256"
            client.refused(form, gitlab.platform.sign(claims), reason)
            forged = gitlab.platform.sign(claims, header={"kid": own.kid})
            client.refused(form, forged, "platform token: signature does not match")


@pytest.mark.divergence("D-78")
@pytest.mark.threat("T-200")
@pytest.mark.parametrize(
    "domain",
    [
        *("evil.org", "example.org.evil", "example.orgx", "Example.org", "example.org:443", "example.org@evil.org"),
        *("evil.org@example.org", "example.org?", "example.org%2f", " example.org", "example\uff0eorg"),
    ],
)
def test_a_trust_domain_is_compared_exactly(workloads: Workloads, domain: str) -> None:
    """SPIFFE-ID 2.1. The `iss` of a JWT-SVID is not relied upon: naming the trusted domain there does not help."""
    client = workloads["spiffe"]
    client.accepted("assertion")
    for issuer in (None, client.platform.issuer, "https://spire.example.org"):
        client.accepted("assertion", client.platform.token(iss=issuer))
        token = client.platform.token(sub=f"spiffe://{domain}/ns/prod/sa/agent", iss=issuer)
        reason = f"platform token: no trusted issuer has the iss {as_word(quoted(issuer or f'spiffe://{domain}'))}"
        client.refused("assertion", token, reason)
        client.refused("grant", token, reason)


@pytest.mark.threat("T-200")
def test_an_issuer_that_is_no_trust_domain_cannot_name_a_spiffe_id(workloads: Workloads) -> None:
    """SPIFFE-ID 2: only the authority of the trust domain says who is in it."""
    svid, client = workloads["spiffe"], workloads["oidc"]
    for form in FORMS:
        svid.accepted(form)
        client.accepted(form)
        kid, subject = quoted(client.platform.key.kid), svid.platform.claims()["sub"]
        named = client.platform.token(sub=subject)
        svid.refused(form, named, "platform token: no rule of this issuer names this workload")
        for issuer in (None, svid.platform.issuer):
            token = client.platform.token(sub=subject, iss=issuer)
            svid.refused(form, token, f"platform token: the issuer has no key with the kid {kid} for RS256")


@pytest.mark.threat("T-200")
def test_the_assertion_type_of_spiffe_is_for_trust_domains(workloads: Workloads) -> None:
    """draft-ietf-oauth-spiffe-client-auth 3.1."""
    svid, client = workloads["spiffe"], workloads["kubernetes"]
    assert svid.post_svid(svid.platform.token()).status_code == 200
    client.accepted("assertion")
    reason = "platform token: client_assertion_type is for SPIFFE, and the issuer is of another kind"
    client.check_refusal("assertion", client.post_svid(client.platform.token()), reason)
    type_ = "urn:ietf:params:oauth:client-assertion-type:saml2-bearer"
    response = client.post("assertion", client.platform.token(), client_assertion_type=type_)
    client.check_refusal("assertion", response, "client_assertion_type is not jwt-bearer")


# The times.


@pytest.mark.divergence("D-80")
@pytest.mark.threat("T-206")
@pytest.mark.parametrize("kind", PLATFORMS)
def test_an_expired_overlong_or_early_token_is_refused(workloads: Workloads, kind: str) -> None:
    """RFC 7523 3 items 4 to 6. Clocks may differ by 30 s: the tokens of kubelet are a little ahead."""
    client = workloads[kind]
    now, longest = int(client.platform.clock()), client.issuer.max_lifetime
    for form in FORMS:
        for early in (
            {"iat": now + 30},
            {"nbf": now + 30},
            {"exp": now - 29},
            {"exp": now + longest + 30},
            {"iat": None},
        ):
            client.accepted(form, client.platform.token(**early))
        for changes, reason in (
            ({"exp": now - 30}, "expired 30 s ago"),
            ({"exp": 0}, f"expired {now} s ago"),
            ({"exp": now + longest + 31}, f"valid for longer than {longest} s from now"),
            ({"exp": now + 365 * 86400}, f"valid for longer than {longest} s from now"),
            ({"iat": now + 31}, "iat is in the future"),
            ({"nbf": now + 31}, "nbf is in the future"),
        ):
            client.refused(form, client.platform.token(**changes), f"platform token: {reason}")


@pytest.mark.threat("T-206")
@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
@pytest.mark.parametrize("value", ["1800000100", True, False, -1, 1e300, [1_800_000_100], {}, ""])
def test_a_time_that_is_not_a_number_of_seconds_is_refused(workloads: Workloads, name: str, value: Any) -> None:
    """RFC 7519 2, NumericDate; RFC 8725 2.4."""
    client = workloads["kubernetes"]
    accepted_in_both_forms(client)
    token = client.platform.token(**{name: value})
    refused_in_both_forms(client, token, f"platform token: {name} is not a number of seconds")


@pytest.mark.threat("T-206")
def test_a_token_that_never_expires_is_refused(workloads: Workloads) -> None:
    """Kubernetes, "Manually create a long-lived API token for a ServiceAccount": a Secret that anybody copied once."""
    client = workloads["kubernetes"]
    accepted_in_both_forms(client)
    refused_in_both_forms(client, client.platform.token(exp=None), "platform token: exp is missing")
    legacy = {
        "iss": "kubernetes/serviceaccount",
        "kubernetes.io": None,
        "kubernetes.io/serviceaccount/namespace": "prod",
        "kubernetes.io/serviceaccount/service-account.name": "agent",
        **dict.fromkeys(("aud", "exp", "iat", "nbf", "jti")),
    }
    client.refused("assertion", client.platform.token(**legacy), "unknown client")
    reason = "platform token: no trusted issuer has the iss kubernetes/serviceaccount"
    client.refused("grant", client.platform.token(**legacy), reason)
