"""Attacks with genuine platform tokens: used again, in the wrong place, and what responses and the audit log tell.

Each test first sends a faultless token of the same platform, in the same way.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.assertions import ASSERTION_TYPE
from support.attacked_workloads import attacker, workload
from support.authserver import AuthServer, basic_header, token_form
from support.forging import decode, encode
from support.platforms import CLUSTER_ISSUER, kubernetes, oidc
from support.workloads import FORMS, REFUSALS, WorkloadClient, accepted_in_both_forms, add_trust, refused_in_both_forms

from gatehouse.authserver.grants.jwt_bearer import GRANT_TYPE as JWT_BEARER
from gatehouse.authserver.workloads.registry import MAX_SHARED
from gatehouse.shared.protocol import jws

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of the group of P-256 (SEC 2, 2.4.2)."""


# Another use.


def refused_as_used(client: WorkloadClient, form: str, token: str) -> None:
    """Check that a token is refused because it was used before."""
    response = client.post(form, token)
    assert (response.status_code, response.json.get("error")) == REFUSALS[form], form
    [row] = client.server.audit(request_id=response.json["request_id"])
    assert row["reason"].endswith("was used before"), form


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


@pytest.mark.threat("T-205")
def test_another_signature_of_the_same_token_is_no_second_use(authserver: AuthServer) -> None:
    """SEC 1, 4.1: if (r, s) is a signature of ECDSA, (r, -s) is another one, which anybody can compute."""
    platform = oidc(authserver.clock, alg="ES256")
    client = WorkloadClient(authserver, platform, one_time=True)
    for form in FORMS:
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


@pytest.mark.divergence("D-73", "D-83")
@pytest.mark.threat("T-205")
@pytest.mark.parametrize("kind", ["kubernetes", "gitlab", "spiffe", "oidc"])
def test_a_token_that_the_platform_hands_out_again_works_until_it_expires(authserver: AuthServer, kind: str) -> None:
    """anthropics/claude-code#89095: single use of kubelet's file broke honest clients. The cost is T-205."""
    client = workload(authserver, kind)
    token = client.platform.token()
    for form in FORMS * 3:
        client.accepted(form, token)
    authserver.clock.advance(client.platform.lifetime + 29)
    for form in FORMS:
        client.accepted(form, token)
    authserver.clock.advance(1)
    refused_in_both_forms(client, token, "platform token: expired 30 s ago")


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


@pytest.mark.threat("T-212")
def test_every_refusal_of_a_token_has_the_same_response(authserver: AuthServer) -> None:
    """RFC 6749 5.2; CWE-204: only the audit log says which check failed."""
    client, platform = workload(authserver), kubernetes(authserver.clock)
    for form in FORMS:
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
            assert "kubernetes" not in str(response.headers), form
            body = response.json
            del body["request_id"]
            bodies.add((response.status_code, json.dumps(body)))
        assert len(bodies) == 1, form


@pytest.mark.threat("T-061")
def test_a_refused_token_costs_the_same_for_every_issuer(
    authserver: AuthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CWE-208: the time of a refusal must not say which issuers are trusted, or which keys they have."""
    client, platform = workload(authserver), kubernetes(authserver.clock)
    evil, verify = attacker(authserver.clock), jws.verify
    verified: list[object] = []

    def counted(*arguments: Any) -> dict[str, Any]:
        verified.append(arguments)
        return verify(*arguments)

    accepted_in_both_forms(client)
    monkeypatch.setattr(jws, "verify", counted)
    for form in FORMS:
        verified.clear()
        assert client.post(form, platform.token()).status_code == 200, form
        assert len(verified) == 1, form
        for token in (
            platform.token(iss="https://evil.example"),
            platform.token(key=evil),
            platform.token(key=evil, header={"kid": platform.key.kid}),
            platform.token(iss="https://evil.example", key=evil),
        ):
            verified.clear()
            assert client.post(form, token).status_code == REFUSALS[form][0], form
            assert len(verified) == MAX_SHARED, form


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
