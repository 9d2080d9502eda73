"""Attacks on the form of platform tokens: header, type, signature, encoding.

Each test first sends a faultless token of the same platform, in the same way.
"""

import json
import socket
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from support.assertions import KeyClient
from support.attacked_workloads import attacker, workload
from support.authserver import ISSUER, RESOURCE, AuthServer
from support.forging import forge, hs256, part, signer
from support.platforms import PLATFORMS, Platform, oidc
from support.resourceserver import ResourceServer
from support.workloads import FORMS, WorkloadClient, Workloads, accepted_in_both_forms, refused_in_both_forms

from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.protocol.redaction import as_word, quoted

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of the group of P-256 (SEC 2, 2.4.2)."""


# The header.


@pytest.mark.threat("T-197")
@pytest.mark.parametrize("member", ["jku", "x5u"])
def test_a_url_in_the_header_of_a_platform_token_is_never_fetched(workloads: Workloads, member: str) -> None:
    """RFC 8725 3.10; CVE-2018-0114 and its kind: a server listens at the address, and receives no connection."""
    client = workloads["kubernetes"]
    for form in FORMS:
        client.accepted(form)
        with closing(socket.create_server(("127.0.0.1", 0))) as sentinel:
            sentinel.setblocking(False)
            url = f"http://127.0.0.1:{sentinel.getsockname()[1]}/jwks"
            for key in (client.platform.key, attacker(client.platform.clock)):
                token = client.platform.token(header={member: url}, key=key)
                client.refused(form, token, f"assertion: header member refused: {member}")
            with pytest.raises(BlockingIOError):
                sentinel.accept()


@pytest.mark.divergence("D-07")
@pytest.mark.threat("T-197")
@pytest.mark.parametrize(
    ("members", "named"),
    [
        pytest.param({"jwk": {"kty": "RSA"}}, "jwk", id="jwk"),
        pytest.param({"x5c": ["MIIB"]}, "x5c", id="x5c"),
        pytest.param({"crit": ["exp"], "exp": 1}, "crit", id="an-unknown-critical-member"),
        pytest.param({"crit": []}, "crit", id="an-empty-crit"),
        pytest.param({"crit": ["b64"], "b64": False}, "b64", id="crit-b64"),
        pytest.param({"b64": False}, "b64", id="b64-without-crit"),
        pytest.param({"zip": "DEF"}, "zip", id="zip"),
        pytest.param({"x5t#S256": "AAAA"}, "unknown", id="x5t-S256"),
        pytest.param({"cty": "JWT"}, "unknown", id="a-nested-token"),
        pytest.param({"enc": "A256GCM"}, "unknown", id="enc"),
        pytest.param({"iss": ISSUER}, "unknown", id="a-replicated-claim"),
    ],
)
def test_a_header_member_that_changes_how_a_platform_token_is_read_is_refused(
    workloads: Workloads, members: dict[str, Any], named: str
) -> None:
    """RFC 7515 4.1.11, RFC 7797; CVE-2025-59420 (Authlib), CVE-2026-27962 (Authlib) for `jwk`."""
    client = workloads["kubernetes"]
    accepted_in_both_forms(client)
    refused_in_both_forms(client, client.platform.token(header=members), f"assertion: header member refused: {named}")


@pytest.mark.divergence("D-75")
@pytest.mark.threat("T-197")
@pytest.mark.parametrize("kind", ["kubernetes", "gitlab", "spiffe"])
def test_a_thumbprint_is_accepted_only_of_platforms_that_send_one(workloads: Workloads, kind: str) -> None:
    """RFC 7515 4.1.7. The value is never read: for GitHub, a wrong one changes nothing."""
    github, other = workloads["github"], workloads[kind]
    for value in ("wrong", "", [], {"jku": "https://evil.example"}):
        github.accepted("grant", github.platform.token(header={"x5t": value}))
    other.accepted("grant")
    other.refused("grant", other.platform.token(header={"x5t": "A"}), "platform token: header member refused: x5t")


@pytest.mark.divergence("D-79")
@pytest.mark.threat("T-197")
@pytest.mark.parametrize(
    ("kid", "reason"),
    [
        pytest.param("../../../../dev/null", None, id="a-path"),
        pytest.param("' OR '1'='1", None, id="sql"),
        pytest.param("known\x00", None, id="nul"),
        pytest.param("\x1b[2J\r\nforged", None, id="terminal-escapes"),
        pytest.param("k" * 129, "assertion: kid is not a string of 1 to 128 characters", id="129-characters"),
        pytest.param("", "assertion: kid is not a string of 1 to 128 characters", id="empty"),
        pytest.param(["a"], "assertion: kid is not a string of 1 to 128 characters", id="a-list"),
        pytest.param(None, 'platform token: the issuer has no key with the kid "" for RS256', id="missing"),
    ],
)
def test_a_kid_is_only_compared_with_the_keys_of_the_issuer(workloads: Workloads, kid: Any, reason: str | None) -> None:
    """RFC 8725 3.10: injection by `kid`."""
    client = workloads["kubernetes"]
    accepted_in_both_forms(client)
    expected = reason or f"platform token: the issuer has no key with the kid {as_word(quoted(kid))} for RS256"
    refused_in_both_forms(client, client.platform.token(header={"kid": kid}), expected)


@pytest.mark.threat("T-198")
@pytest.mark.parametrize(
    "typ",
    [
        *("at+jwt", "application/at+jwt", "oauth-id-jag+jwt", "dpop+jwt", "logout+jwt", "secevent+jwt"),
        *(
            "statuslist+jwt",
            "client-authentication+jwt",
            "wit+jwt",
            "token-introspection+jwt",
            "JWE",
            "jwt",
            "JWT ",
            "",
        ),
    ],
)
def test_another_kind_of_jwt_is_no_platform_token(workloads: Workloads, typ: str) -> None:
    """RFC 8725 3.11; an ID-JAG (draft-ietf-oauth-identity-assertion-authz-grant) is for another flow of this grant."""
    client = workloads["oidc"]
    accepted_in_both_forms(client)
    reason = f"platform token: typ is {as_word(typ)}, not that of a platform token"
    refused_in_both_forms(client, client.platform.token(header={"typ": typ}), reason)


@pytest.mark.threat("T-198")
def test_an_id_token_of_a_user_is_refused(workloads: Workloads) -> None:
    """OpenID Connect Core 2: it is for the application where the user signed in, with the same issuer and keys."""
    client = workloads["oidc"]
    accepted_in_both_forms(client)
    user = {"nonce": "n-0S6_WzA2Mj", "at_hash": "77QmUPtjPfzWtF2AnpK9RQ", "auth_time": int(client.platform.clock())}
    token = client.platform.token(aud="s6BhdRkqt3", azp="s6BhdRkqt3", **user)
    refused_in_both_forms(client, token, f"platform token: aud is s6BhdRkqt3, not {ISSUER} alone")


@pytest.mark.threat("T-198")
def test_a_dpop_proof_is_refused(workloads: Workloads) -> None:
    """RFC 9449 4.2: it is signed by any key, which it brings along."""
    client = workloads["kubernetes"]
    accepted_in_both_forms(client)
    key = attacker(client.platform.clock)
    proof = {"htm": "POST", "htu": f"{ISSUER}/token", "iat": int(client.platform.clock()), "jti": "p1"}
    header = {"typ": "dpop+jwt", "kid": None, "jwk": key.public_jwk()}
    token = client.platform.token(header=header, key=key, **proof)
    refused_in_both_forms(client, token, "assertion: header member refused: jwk")


@pytest.mark.divergence("D-82")
@pytest.mark.threat("T-198")
@pytest.mark.parametrize("confirmation", [{"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}, {}, "key"])
def test_a_token_that_is_bound_to_a_key_is_refused(workloads: Workloads, confirmation: Any) -> None:
    """RFC 7800 3.1, RFC 8705: to accept it without a proof makes a stolen one useful."""
    client = workloads["kubernetes"]
    accepted_in_both_forms(client)
    refused_in_both_forms(client, client.platform.token(cnf=confirmation), "platform token: it is bound to a key (cnf)")


@pytest.mark.threat("T-198")
def test_an_access_token_of_this_server_is_no_platform_token(authserver: AuthServer) -> None:
    """RFC 9068 2.1: not even if an admin trusts this server as an issuer."""
    client = workload(authserver)
    accepted_in_both_forms(client)
    other, secret = authserver.create_client()
    token = authserver.post_token(basic=(other.client_id, secret)).json["access_token"]
    refused_in_both_forms(client, token, f"platform token: no trusted issuer has the iss {ISSUER}")
    platform = oidc(authserver.clock, name="itself")
    platform.issuer, published = ISSUER, authserver.http.get("/.well-known/jwks.json").data
    itself = WorkloadClient(authserver, platform, {"sub": other.client_id}, jwks=published, audience=RESOURCE)
    authserver.clock.advance(1)
    accepted_in_both_forms(client)
    refused_in_both_forms(itself, token, "platform token: typ is at+jwt, not that of a platform token")


@pytest.mark.anyio
@pytest.mark.threat("T-003", "T-198")
async def test_a_platform_token_is_no_access_token(resourceserver: ResourceServer) -> None:
    """RFC 9068 2.1: a resource accepts what its authorization server issued for it, and no proof of an identity."""
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    assert (await resourceserver.post(call, resourceserver.issuer.token())).status_code == 200
    for make in PLATFORMS.values():
        platform = make(resourceserver.issuer.clock)
        for audience in (ISSUER, RESOURCE):
            response = await resourceserver.post(call, platform.token(aud=audience))
            assert response.status_code == 401


@pytest.mark.threat("T-198")
def test_a_clients_own_assertion_is_no_grant(authserver: AuthServer) -> None:
    """RFC 7523 2.1 and 2.2 use the same JWT for two purposes. What authenticates a client grants nothing."""
    client, key_client = workload(authserver), KeyClient(authserver, SigningKey.generate("ES256"))
    client.accepted("grant")
    key_client.accepted()
    assertion, client_id = key_client.assertion(), key_client.client.client_id
    client.refused("grant", assertion, f"platform token: no trusted issuer has the iss {client_id}")
    assert key_client.post(assertion).status_code == 200, "the refused assertion was spent"


# The signature.


@pytest.mark.threat("T-197")
@pytest.mark.parametrize("alg", ["none", "None", "nOnE", "HS256", "HS512", "RS1", "RS384", "ES512", ""])
def test_other_algorithms_are_refused(workloads: Workloads, alg: str) -> None:
    """RFC 8725 3.1, 3.2; CVE-2015-9235; CVE-2016-5431: the public key as the secret of an HMAC."""
    client = workloads["kubernetes"]
    for form in FORMS:
        client.accepted(form)
        key, claims = client.platform.key, client.platform.claims()
        header, secret = {"alg": alg, "kid": key.kid}, json.dumps(key.public_jwk()).encode()
        client.refused(form, forge(header, claims, hs256(secret)), "assertion: algorithm not allowed")
        client.refused(form, forge(header, claims, signer(key)), "assertion: algorithm not allowed")
        client.refused(form, forge(header, claims, lambda _: b""), "assertion: not a compact JWS")


@pytest.mark.threat("T-197")
@pytest.mark.parametrize(("kind", "alg"), [("github", "PS256"), ("github", "ES256"), ("gitlab", "EdDSA")])
def test_an_algorithm_that_the_issuer_may_not_use_is_refused(workloads: Workloads, kind: str, alg: str) -> None:
    """RFC 8725 3.1: an RSA key of GitHub would verify PS256 as well."""
    client = workloads[kind]
    accepted_in_both_forms(client)
    platform, key = client.platform, client.platform.key if alg == "PS256" else attacker(client.platform.clock, alg)
    token = platform.token(header={"alg": alg, "kid": platform.key.kid}, key=key)
    refused_in_both_forms(client, token, f"platform token: the issuer may not use the algorithm {alg}")


@pytest.mark.threat("T-197")
@pytest.mark.parametrize("kind", PLATFORMS)
def test_a_token_that_someone_else_signed_is_refused(workloads: Workloads, kind: str) -> None:
    """RFC 7515 5.2: under the `kid` of the issuer, and under that of the other key."""
    client = workloads[kind]
    for form in FORMS:
        client.accepted(form)
        platform, key = client.platform, attacker(client.platform.clock, client.platform.key.alg)
        forged = platform.token(key=key, header={"kid": platform.key.kid})
        client.refused(form, forged, "platform token: signature does not match")
        reason = f"platform token: the issuer has no key with the kid {quoted(key.kid)} for {key.alg}"
        client.refused(form, platform.token(key=key), reason)


@pytest.mark.threat("T-197")
@pytest.mark.parametrize(
    "signature",
    [
        pytest.param(b"\x00" * 64, id="zeros"),
        pytest.param(ORDER.to_bytes(32, "big") * 2, id="the-order"),
        pytest.param(b"\x00" * 32 + (1).to_bytes(32, "big"), id="r-zero"),
        pytest.param(b"\x00", id="one-byte"),
        pytest.param(b"\x01" * 96, id="too-long"),
    ],
)
def test_a_degenerate_signature_is_refused(workloads: Workloads, signature: bytes) -> None:
    """CVE-2022-21449, "psychic signatures"."""
    client = workloads["spiffe"]
    for form in FORMS:
        client.accepted(form)
        header = {"alg": "ES256", "kid": client.platform.key.kid, "typ": "JWT"}
        forged = forge(header, client.platform.claims(), lambda _: signature)
        client.refused(form, forged, "platform token: signature does not match")


# The form of the token.


def with_claims(change: Callable[[str], str]) -> Callable[[Platform], str]:
    """Return what makes a token whose payload is a changed text."""
    return lambda platform: platform.sign(change(json.dumps(platform.claims())).encode())


def five_parts(platform: Platform) -> str:
    return f"{platform.token()}.AAAA.AAAA"


def json_serialization(platform: Platform) -> str:
    protected, payload, signature = platform.token().split(".")
    return json.dumps({"payload": payload, "protected": protected, "signature": signature})


def two_headers(platform: Platform) -> str:
    key = platform.key
    return forge(f'{{"alg":"none","kid":"{key.kid}","alg":"RS256"}}'.encode(), platform.claims(), signer(key))


def unused_bits(platform: Platform) -> str:
    token = platform.token()
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return f"{token[:-1]}{alphabet[alphabet.index(token[-1]) ^ 1]}"


@pytest.mark.threat("T-008", "T-009")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda one: one.token(padding="x" * 8192), "longer than 8 KiB", id="9-KiB"),
        pytest.param(five_parts, "not a compact JWS", id="five-parts"),
        pytest.param(json_serialization, "not a compact JWS", id="json-serialization"),
        pytest.param(lambda one: one.token() + "\n", "not a compact JWS", id="newline"),
        pytest.param(lambda one: f" {one.token()}", "not a compact JWS", id="space"),
        pytest.param(lambda one: one.token() + "==", "not a compact JWS", id="base64-padding"),
        pytest.param(two_headers, "header: An object has the same member twice.", id="alg-twice"),
        pytest.param(
            with_claims(lambda text: text[:-1] + f', "aud": "{ISSUER}"}}'),
            "claims: An object has the same member twice.",
            id="aud-twice",
        ),
        pytest.param(
            with_claims(lambda text: text.replace('"namespace": "prod"', '"namespace": "prod", "namespace": "x"')),
            "claims: An object has the same member twice.",
            id="namespace-twice",
        ),
        pytest.param(with_claims(lambda text: f"[{text}]"), "claims are not an object", id="array"),
        pytest.param(with_claims(lambda text: f"{text} x"), "claims: The text is not valid JSON.", id="more-text"),
        pytest.param(with_claims(lambda text: f"\ufeff{text}"), "claims: The text is not valid JSON.", id="mark"),
        pytest.param(
            with_claims(lambda text: text.replace('"prod"', '"\\ud800prod"')),
            "claims: The text is not valid JSON.",
            id="surrogate",
        ),
        pytest.param(
            lambda one: one.sign(json.dumps(one.claims()).encode("utf-16")),
            "claims: The text is not valid UTF-8.",
            id="utf-16",
        ),
        pytest.param(
            with_claims(lambda text: text[:-1] + f', "deep": {"[" * 250}{"]" * 250}}}'),
            "claims: The text is not valid JSON.",
            id="250-levels",
        ),
    ],
)
def test_a_token_that_two_parsers_may_read_differently_is_refused(
    workloads: Workloads, make: Callable[[Platform], str], reason: str
) -> None:
    """CWE-436; RFC 8725 2.4 for repeated members, RFC 7515 7.2 for the JSON serialization."""
    client = workloads["kubernetes"]
    accepted_in_both_forms(client)
    refused_in_both_forms(client, make(client.platform), f"assertion: {reason}")


@pytest.mark.threat("T-008")
def test_unused_bits_of_the_signature_are_refused(workloads: Workloads) -> None:
    """RFC 4648 3.5: a token for one use would have four texts."""
    client = workloads["spiffe"]
    accepted_in_both_forms(client)
    refused_in_both_forms(client, unused_bits(client.platform), "platform token: a segment is not canonical base64url")


@pytest.mark.threat("T-008")
def test_changed_claims_under_a_genuine_signature_are_refused(workloads: Workloads) -> None:
    """RFC 7515 5.2."""
    client = workloads["kubernetes"]
    token = client.platform.token()
    for form in FORMS:
        client.accepted(form, token)
        header, _, signature = token.split(".")
        for changes in ({}, {"exp": int(client.platform.clock()) + 3000}, {"sub": "system:serviceaccount:prod:other"}):
            forged = f"{header}.{part(client.platform.claims(**changes))}.{signature}"
            client.refused(form, forged, "platform token: signature does not match")
