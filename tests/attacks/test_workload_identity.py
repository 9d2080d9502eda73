"""Attacks with genuine platform tokens: for another audience, of another issuer, too late, again, in the wrong place.

Each test first sends a faultless token of the same platform, in the same way.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.assertions import ASSERTION_TYPE
from support.attacked_workloads import attacker, in_both_forms, workload
from support.authserver import ISSUER, OTHER_RESOURCE, RESOURCE, AuthServer, basic_header, token_form
from support.forging import decode, encode
from support.platforms import CLUSTER_ISSUER, PLATFORMS, kubernetes, oidc
from support.workloads import FORMS, REFUSALS, WorkloadClient, add_trust

from gatehouse.authserver.grants.jwt_bearer import GRANT_TYPE as JWT_BEARER
from gatehouse.authserver.workloads.registry import MAX_SHARED
from gatehouse.shared.protocol import jws
from gatehouse.shared.protocol.redaction import quoted

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of the group of P-256 (SEC 2, 2.4.2)."""


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


@in_both_forms
@pytest.mark.divergence("D-74")
@pytest.mark.threat("T-199")
@pytest.mark.parametrize("kind", PLATFORMS)
def test_a_token_for_another_or_a_second_audience_is_refused(authserver: AuthServer, form: str, kind: str) -> None:
    """RFC 7523 3 item 3; CVE-2020-26160 and CVE-2024-5798 (Vault): arrays and loose comparison of `aud`.

    With a second audience, that server could present the token here. What a platform sets by default is for itself.
    """
    client = workload(authserver, kind)
    client.accepted(form)
    client.accepted(form, client.platform.token(aud=[ISSUER]))
    for audience in audiences(kind):
        shown = audience[0] if isinstance(audience, list) and len(audience) == 1 else audience
        reason = f"platform token: aud is {quoted(str(shown))}, not {ISSUER} alone"
        client.refused(form, client.platform.token(aud=audience), reason)
    client.refused(form, client.platform.token(aud=None), f"platform token: aud is None, not {ISSUER} alone")


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
    allowed.refused("grant", both, f"platform token: aud is {[endpoint, ISSUER]}, not {ISSUER} alone")


@pytest.mark.divergence("D-74")
@pytest.mark.threat("T-199")
def test_a_slash_after_the_issuer_is_accepted_of_the_grant_only(authserver: AuthServer) -> None:
    """SDKs send the issuer of the metadata with a slash; the audience of a client assertion is compared exactly."""
    client = workload(authserver)
    client.accepted("assertion")
    client.accepted("grant", client.platform.token(aud=[f"{ISSUER}/"]))
    reason = f"platform token: aud is {ISSUER}/, not {ISSUER} alone"
    client.refused("assertion", client.platform.token(aud=[f"{ISSUER}/"]), reason)


@in_both_forms
@pytest.mark.threat("T-199")
def test_an_issuer_with_an_audience_of_its_own_accepts_no_other(authserver: AuthServer, form: str) -> None:
    """RFC 7523 3 item 3."""
    client = workload(authserver, audience="gatehouse")
    client.accepted(form, client.platform.token(aud=["gatehouse"]))
    for audience in (ISSUER, f"{ISSUER}/", "Gatehouse", "gatehouse2"):
        token = client.platform.token(aud=[audience])
        client.refused(form, token, f"platform token: aud is {audience}, not gatehouse alone")


# The issuer.


@in_both_forms
@pytest.mark.threat("T-200")
@pytest.mark.parametrize("kind", ["kubernetes", "github", "gitlab", "oidc"])
def test_an_issuer_is_compared_exactly(authserver: AuthServer, form: str, kind: str) -> None:
    """RFC 7523 3 item 1; RFC 9207 2.4 for the comparison of issuers."""
    client = workload(authserver, kind)
    client.accepted(form)
    issuer = client.platform.issuer
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
        reason = f"platform token: no trusted issuer has the iss {quoted(other)}"
        client.refused(form, client.platform.token(iss=other), reason)


@pytest.mark.threat("T-200")
@pytest.mark.parametrize("value", [None, [CLUSTER_ISSUER], {CLUSTER_ISSUER: 1}, True, 0, ""])
def test_an_issuer_that_is_missing_or_no_text_is_refused(authserver: AuthServer, value: Any) -> None:
    """RFC 7523 3 item 1. As a client assertion, the token is then taken for one that a client signed itself."""
    client = workload(authserver)
    client.accepted("grant")
    client.accepted("assertion")
    token = client.platform.token(iss=value)
    client.refused("grant", token, "platform token: no trusted issuer has the iss ")
    client.refused("assertion", token, "unknown client")


@in_both_forms
@pytest.mark.threat("T-200")
def test_one_trusted_issuer_cannot_sign_for_another(authserver: AuthServer, form: str) -> None:
    """Keys belong to the issuer: a GitLab instance says that it is GitHub, a cluster, or a trust domain."""
    gitlab = workload(authserver, "gitlab")
    for kind in ("github", "kubernetes", "oidc"):
        client = workload(authserver, kind)
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
def test_a_trust_domain_is_compared_exactly(authserver: AuthServer, domain: str) -> None:
    """SPIFFE-ID 2.1. The `iss` of a JWT-SVID is not relied upon: naming the trusted domain there does not help."""
    client = workload(authserver, "spiffe")
    client.accepted("assertion")
    for issuer in (None, client.platform.issuer, "https://spire.example.org"):
        client.accepted("assertion", client.platform.token(iss=issuer))
        token = client.platform.token(sub=f"spiffe://{domain}/ns/prod/sa/agent", iss=issuer)
        reason = f"platform token: no trusted issuer has the iss {quoted(issuer or f'spiffe://{domain}')}"
        client.refused("assertion", token, reason)
        client.refused("grant", token, reason)


@in_both_forms
@pytest.mark.threat("T-200")
def test_an_issuer_that_is_no_trust_domain_cannot_name_a_spiffe_id(authserver: AuthServer, form: str) -> None:
    """SPIFFE-ID 2: only the authority of the trust domain says who is in it."""
    svid, client = workload(authserver, "spiffe"), workload(authserver, "oidc")
    svid.accepted(form)
    client.accepted(form)
    kid, subject = quoted(client.platform.key.kid), svid.platform.claims()["sub"]
    named = client.platform.token(sub=subject)
    svid.refused(form, named, "platform token: no rule of this issuer names this workload")
    for issuer in (None, svid.platform.issuer):
        token = client.platform.token(sub=subject, iss=issuer)
        svid.refused(form, token, f"platform token: the issuer has no key with the kid {kid} for RS256")


@pytest.mark.threat("T-200")
def test_the_assertion_type_of_spiffe_is_for_trust_domains(authserver: AuthServer) -> None:
    """draft-ietf-oauth-spiffe-client-auth 3.1."""
    svid, client = workload(authserver, "spiffe"), workload(authserver)
    assert svid.post_svid(svid.platform.token()).status_code == 200
    client.accepted("assertion")
    reason = "platform token: client_assertion_type is for SPIFFE, and the issuer is of another kind"
    client.check_refusal("assertion", client.post_svid(client.platform.token()), reason)
    type_ = "urn:ietf:params:oauth:client-assertion-type:saml2-bearer"
    response = client.post("assertion", client.platform.token(), client_assertion_type=type_)
    client.check_refusal("assertion", response, "client_assertion_type is not jwt-bearer")


# The times.


@in_both_forms
@pytest.mark.divergence("D-80")
@pytest.mark.threat("T-206")
@pytest.mark.parametrize("kind", PLATFORMS)
def test_an_expired_overlong_or_early_token_is_refused(authserver: AuthServer, form: str, kind: str) -> None:
    """RFC 7523 3 items 4 to 6. Clocks may differ by 30 s: the tokens of kubelet are a little ahead."""
    client = workload(authserver, kind)
    now, longest = int(authserver.clock()), client.issuer.max_lifetime
    for early in ({"iat": now + 30}, {"nbf": now + 30}, {"exp": now - 29}, {"exp": now + longest + 30}, {"iat": None}):
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


@in_both_forms
@pytest.mark.threat("T-206")
@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
@pytest.mark.parametrize("value", ["1800000100", True, False, -1, 1e300, [1_800_000_100], {}, ""])
def test_a_time_that_is_not_a_number_of_seconds_is_refused(
    authserver: AuthServer, form: str, name: str, value: Any
) -> None:
    """RFC 7519 2, NumericDate; RFC 8725 2.4."""
    client = workload(authserver)
    client.accepted(form)
    token = client.platform.token(**{name: value})
    client.refused(form, token, f"platform token: {name} is not a number of seconds")


@in_both_forms
@pytest.mark.threat("T-206")
def test_a_token_that_never_expires_is_refused(authserver: AuthServer, form: str) -> None:
    """Kubernetes, "Manually create a long-lived API token for a ServiceAccount": a Secret that anybody copied once."""
    client = workload(authserver)
    client.accepted(form)
    client.refused(form, client.platform.token(exp=None), "platform token: exp is missing")
    legacy = {
        "iss": "kubernetes/serviceaccount",
        "kubernetes.io": None,
        "kubernetes.io/serviceaccount/namespace": "prod",
        "kubernetes.io/serviceaccount/service-account.name": "agent",
        **dict.fromkeys(("aud", "exp", "iat", "nbf", "jti")),
    }
    if form == "grant":
        reason = "platform token: no trusted issuer has the iss kubernetes/serviceaccount"
    else:
        reason = "unknown client"
    client.refused(form, client.platform.token(**legacy), reason)


# Another use.


def refused_as_used(client: WorkloadClient, form: str, token: str) -> None:
    """Check that a token is refused because it was used before."""
    response = client.post(form, token)
    assert (response.status_code, response.json["error"]) == REFUSALS[form]
    [row] = client.server.audit(request_id=response.json["request_id"])
    assert row["reason"].endswith("was used before")


@pytest.mark.threat("T-205")
@pytest.mark.parametrize("first", FORMS)
@pytest.mark.parametrize("again", FORMS)
def test_a_token_for_one_use_is_refused_again_in_either_form(authserver: AuthServer, first: str, again: str) -> None:
    """RFC 7523 3 item 7: the second use is refused, also with the other form, without `jti`, and up to the leeway."""
    client = workload(authserver, "github")
    for changes in ({}, {"jti": None}):
        token = client.platform.token(**changes)
        client.accepted(first, token)
        refused_as_used(client, again, token)
        authserver.clock.advance(329)
        authserver.services.authenticator.replay.prune()
        refused_as_used(client, again, token)
        authserver.clock.advance(1)
        client.refused(again, token, "platform token: expired 30 s ago")


@in_both_forms
@pytest.mark.threat("T-205")
def test_another_signature_of_the_same_token_is_no_second_use(authserver: AuthServer, form: str) -> None:
    """SEC 1, 4.1: if (r, s) is a signature of ECDSA, (r, -s) is another one, which anybody can compute."""
    platform = oidc(authserver.clock, alg="ES256")
    client = WorkloadClient(authserver, platform, one_time=True)
    token, fresh = platform.token(), platform.token()
    client.accepted(form, malleated(fresh))
    client.accepted(form, token)
    refused_as_used(client, form, malleated(token))
    refused_as_used(client, form, fresh)


def malleated(token: str) -> str:
    """Return a token of ES256 with the other signature of the same text."""
    text, _, signature = token.rpartition(".")
    octets = decode(signature)
    negated = ORDER - int.from_bytes(octets[32:], "big")
    return f"{text}.{encode(octets[:32] + negated.to_bytes(32, 'big'))}"


@pytest.mark.threat("T-205")
@pytest.mark.both_databases
def test_one_of_eight_concurrent_uses_is_accepted(authserver: AuthServer) -> None:
    """CWE-367: the requests arrive before any of them has been answered, in both forms."""
    client = workload(authserver, "github")
    client.accepted("grant")
    token = client.platform.token()
    with ThreadPoolExecutor(8) as pool:
        responses = pool.map(client.post, [*FORMS] * 4, [token] * 8)
        statuses = [response.status_code for response in responses]
    assert statuses.count(200) == 1
    assert set(statuses) <= {200, 400, 401}


@pytest.mark.threat("T-205")
def test_a_refused_token_is_not_used_up(authserver: AuthServer) -> None:
    """CWE-841: someone who saw the token must not be able to use it up without what else it takes."""
    client = workload(authserver, "github")
    other, _ = authserver.create_client()
    token = client.platform.token()
    reason = f"platform token: client_id is {other.client_id}, and the token stands for {client.client.client_id}"
    for form in FORMS:
        client.refused(form, token, reason, client_id=other.client_id)
    client.accepted("assertion", token)


@in_both_forms
@pytest.mark.divergence("D-73", "D-83")
@pytest.mark.threat("T-205")
@pytest.mark.parametrize("kind", ["kubernetes", "gitlab", "spiffe", "oidc"])
def test_a_token_that_the_platform_hands_out_again_works_until_it_expires(
    authserver: AuthServer, form: str, kind: str
) -> None:
    """anthropics/claude-code#89095: single use of kubelet's file broke honest clients. The cost is T-205."""
    client = workload(authserver, kind)
    token = client.platform.token()
    for _ in range(3):
        client.accepted(form, token)
    authserver.clock.advance(client.platform.lifetime + 29)
    client.accepted(form, token)
    authserver.clock.advance(1)
    client.refused(form, token, "platform token: expired 30 s ago")


# The wrong place.


@pytest.mark.divergence("D-76")
@pytest.mark.threat("T-209")
@pytest.mark.parametrize("path", ["/token", "/revoke", "/introspect"])
def test_a_request_without_client_authentication_is_good_for_the_grant_alone(authserver: AuthServer, path: str) -> None:
    """RFC 6749 2.3: the metadata names `none`, and no other grant or endpoint accepts it."""
    client = workload(authserver)
    client.accepted("grant")
    client_id, token = client.client.client_id, client.platform.token()
    for form in (
        {"client_id": client_id},
        {"client_id": client_id, "assertion": token},
        {"assertion": token},
        {"client_id": client_id, "client_secret": ""},
    ):
        response = authserver.http.post(path, data={"grant_type": "client_credentials", "token": "x", **form})
        assert (response.status_code, response.json["error"]) == (401, "invalid_client"), form
    grant = {"grant_type": JWT_BEARER, "assertion": token, "token": "x"}
    assert authserver.http.post(path, data=grant).status_code == (200 if path == "/token" else 401)


@pytest.mark.divergence("D-77")
@pytest.mark.threat("T-209")
def test_the_grant_takes_no_second_credential(authserver: AuthServer) -> None:
    """RFC 6749 2.3: one method in each request. Two credentials could be those of two clients."""
    client = workload(authserver)
    client.accepted("grant")
    other, secret = authserver.create_client()
    token = client.platform.token()
    basic = {"Authorization": basic_header(other.client_id, secret)}
    assert authserver.post_token(headers=basic).status_code == 200
    form = {"grant_type": JWT_BEARER, "assertion": token}
    for more in ({"client_secret": secret}, {"client_assertion": token}, {"client_assertion_type": "x"}):
        response = authserver.post_token({**form, **more})
        assert (response.status_code, response.json["error"]) == (400, "invalid_request"), more
    for authorization in (basic["Authorization"], f"Bearer {token}", "Basic", ""):
        response = authserver.post_token(form, headers={"Authorization": authorization})
        assert (response.status_code, response.json["error"]) == (400, "invalid_request"), authorization


@pytest.mark.threat("T-209")
def test_a_platform_token_is_neither_a_bearer_token_nor_a_secret(authserver: AuthServer) -> None:
    """RFC 6750: it proves an identity to this server's token endpoint, and gives access to nothing."""
    client = workload(authserver)
    client.accepted("assertion")
    client_id, token = client.client.client_id, client.platform.token()
    for response in (
        authserver.post_token(headers={"Authorization": f"Bearer {token}"}),
        authserver.post_token(basic=(client_id, token[:512])),
        authserver.post_token(token_form(client_id=client_id, client_secret=token[:512])),
    ):
        assert (response.status_code, response.json["error"]) == (401, "invalid_client")
    trusting = authserver.http.post(
        "/revoke",
        data={
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": token,
            "token": token,
        },
    )
    assert trusting.status_code == 200
    [row] = [row for row in authserver.audit() if row["action"] == "token.revoke"]
    assert (row["outcome"], row["actor"]) == ("refused", client_id)


@in_both_forms
@pytest.mark.threat("T-212")
def test_every_refusal_of_a_token_has_the_same_response(authserver: AuthServer, form: str) -> None:
    """RFC 6749 5.2; CWE-204: only the audit log says which check failed."""
    client, platform = workload(authserver), kubernetes(authserver.clock)
    client.accepted(form)
    bodies = set()
    for token in (
        platform.token(iss="https://evil.example"),
        platform.token(key=attacker(authserver.clock), header={"kid": platform.key.kid}),
        platform.token(key=attacker(authserver.clock)),
        platform.token(header={"jku": "https://evil.example"}),
        platform.token(aud="https://evil.example"),
        platform.token(exp=1),
        platform.token(sub=None),
        platform.token(**{"kubernetes.io": {"namespace": "test"}}),
        "x",
    ):
        response = client.post(form, token)
        assert "kubernetes" not in str(response.headers)
        body = response.json
        del body["request_id"]
        bodies.add((response.status_code, json.dumps(body)))
    assert len(bodies) == 1


@in_both_forms
@pytest.mark.threat("T-061")
def test_a_refused_token_costs_the_same_for_every_issuer(
    authserver: AuthServer, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CWE-208: the time of a refusal must not say which issuers are trusted, or which keys they have."""
    client, platform = workload(authserver), kubernetes(authserver.clock)
    evil, verify = attacker(authserver.clock), jws.verify
    verified: list[object] = []

    def counted(*arguments: Any) -> dict[str, Any]:
        verified.append(arguments)
        return verify(*arguments)

    client.accepted(form)
    monkeypatch.setattr(jws, "verify", counted)
    assert client.post(form, platform.token()).status_code == 200
    assert len(verified) == 1
    for token in (
        platform.token(iss="https://evil.example"),
        platform.token(key=evil),
        platform.token(key=evil, header={"kid": platform.key.kid}),
        platform.token(iss="https://evil.example", key=evil),
    ):
        verified.clear()
        assert client.post(form, token).status_code == REFUSALS[form][0]
        assert len(verified) == MAX_SHARED


@pytest.mark.threat("T-212")
@pytest.mark.both_databases
@pytest.mark.parametrize("claim", ["iss", "sub"])
def test_no_claim_can_prevent_or_forge_an_audit_event(authserver: AuthServer, claim: str) -> None:
    """CWE-117, CWE-158, CWE-532: PostgreSQL stores no NUL in a text, and terminals act upon escapes."""
    client = workload(authserver)
    client.accepted("grant")
    secret = authserver.create_client()[1]
    for text in (
        "https://x\x00y",
        "https://x\r\nforged",
        "https://\x1b[2J",
        "https://\u202eforged",
        "a" * 4000,
        secret,
    ):
        token = client.platform.token(**{claim: text}, key=attacker(authserver.clock))
        response = client.post("grant", token)
        assert (response.status_code, response.json["error"]) == (400, "invalid_grant"), text
        [row] = authserver.audit(request_id=response.json["request_id"])
        written = json.dumps(row, ensure_ascii=False)
        assert row["outcome"] == "refused"
        assert written.isprintable()
        assert len(written) < 4096
        assert secret not in written
        assert token not in written


@pytest.mark.threat("T-212")
def test_the_audit_log_names_the_workload_beside_the_client(authserver: AuthServer) -> None:
    """CWE-778: without issuer and subject, nobody knows which of a client's workloads acted."""
    client = workload(authserver)
    other = kubernetes(authserver.clock, namespace="test")
    add_trust(authserver, client.client, client.issuer.name, other.conditions)
    expired = f"platform token: expired {int(authserver.clock()) - 1} s ago"
    for platform in (client.platform, other):
        subject = platform.claims()["sub"]
        named = {"external_issuer": CLUSTER_ISSUER, "external_subject": subject}
        response = client.post("assertion", platform.token())
        [issued] = authserver.audit(jti=authserver.read_token(response)[1]["jti"])
        refused = client.refused("grant", platform.token(exp=1), expired)
        assert refused["actor"] == f"claimed:{subject}"
        revoking = {"client_assertion_type": ASSERTION_TYPE, "client_assertion": platform.token()}
        for token in (response.json["access_token"], "x"):
            assert authserver.http.post("/revoke", data={**revoking, "token": token}).status_code == 200
        revocations = authserver.audit(action="token.revoke")[-2:]
        assert [row["outcome"] for row in (issued, *revocations)] == ["allowed", "allowed", "refused"]
        for row in (issued, *revocations):
            assert row["actor"] == client.client.client_id
            assert row["detail"].items() >= {**named, "trusted_issuer": "cluster"}.items()
        assert refused["detail"].items() >= named.items()


@pytest.mark.threat("T-212")
def test_the_audit_log_names_the_issuer_that_signed(authserver: AuthServer) -> None:
    """CWE-345: several clusters share a name, and a JWT-SVID may have any `iss`."""
    clusters = [WorkloadClient(authserver, kubernetes(authserver.clock, name=name)) for name in ("one", "two")]
    svid = workload(authserver, "spiffe")
    authserver.clock.advance(1)
    for client, changes in ((clusters[0], {}), (clusters[1], {}), (svid, {}), (svid, {"iss": CLUSTER_ISSUER})):
        claims = client.accepted("grant", client.platform.token(**changes))
        [row] = authserver.audit(jti=claims["jti"])
        recorded = row["detail"]["external_issuer"], row["detail"]["trusted_issuer"]
        assert recorded == (client.platform.issuer, client.issuer.name)
