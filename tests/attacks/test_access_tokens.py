"""Forged and altered access tokens: the resource server refuses each of them with the same text."""

import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from httpx2 import Response
from support.clock import FakeClock
from support.databases import Templates
from support.forging import decode, encode, forge, header_of, hs256, part, signer
from support.resourceserver import (
    ISSUER,
    RESOURCE,
    Issuer,
    ResourceServer,
    prepare_installation,
    running_resource_server,
)

from gatehouse.shared.protocol.jws import SigningKey

pytestmark = pytest.mark.anyio

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
CALL = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "whoami", "arguments": {}}}
ANSWER = {
    "jsonrpc": "2.0",
    "id": 7,
    "error": {
        "code": -31041,
        "message": "The access token is not valid here. Obtain a new one.",
        "data": {"error": "invalid_token"},
    },
}


@pytest.fixture(scope="module")
def rsa_key() -> SigningKey:
    return SigningKey.generate("RS256")


@pytest.fixture(scope="module")
def eddsa_key() -> SigningKey:
    return SigningKey.generate("EdDSA")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def server(
    tmp_path_factory: pytest.TempPathFactory,
    templates: Templates,
    rsa_key: SigningKey,
    eddsa_key: SigningKey,
    anyio_backend: str,
) -> AsyncIterator[ResourceServer]:
    """One resource server for all tests, because a refusal changes nothing. Its issuer publishes a key of each type."""
    clock = FakeClock()
    issuer = Issuer(clock)
    issuer.published += [rsa_key.public_jwk(), eddsa_key.public_jwk()]
    template = templates.get("sqlite", "resourceserver", prepare_installation)
    folder = tmp_path_factory.mktemp("attacked")
    async with running_resource_server(folder, template, clock, keys_of=issuer) as running:
        yield running


def genuine(issuer: Issuer, **changes: Any) -> str:
    """Return a token that is built like the forged ones and is valid except for the changed claims."""
    return forge(header_of(issuer.key), issuer.claims(**changes), signer(issuer.key))


def headed(issuer: Issuer, key: SigningKey | None = None, **changes: Any) -> str:
    """Return a token whose only fault is its header; the signature is valid."""
    key = key or issuer.key
    return forge(header_of(key, **changes), issuer.claims(), signer(key))


async def refused(server: ResourceServer, token: str, reason: str) -> None:
    """Assert that a token is refused with the common text and this recorded reason, and a valid one accepted."""
    control = await server.post(CALL, genuine(server.issuer))
    assert control.status_code == 200, control.text
    response = await server.post(CALL, token)
    check_refusal(server, response, reason)
    assert token not in json.dumps(server.audit())


def check_refusal(server: ResourceServer, response: Response, reason: str) -> None:
    challenge = response.headers["WWW-Authenticate"]
    assert response.status_code == 401
    assert challenge.startswith('Bearer error="invalid_token", error_description="The access token is not valid here.')
    body = response.json()
    request_id = body["error"]["data"].pop("request_id")
    assert body == ANSWER
    [event] = server.audit(request_id=request_id)
    assert (event["action"], event["outcome"], event["object"]) == ("tool.call", "refused", "whoami")
    assert event["reason"] == reason
    # Claims identify a client only if the issuer signed them.
    signed = reason.endswith((" s ago", "in the future", ", not this resource", ", not the trusted issuer"))
    signed |= reason.startswith("the lifetime is")
    assert (event["actor"], event["jti"] is not None) == (("agent_1", True) if signed else (None, False))


@pytest.mark.threat("T-001")
@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "none ", ""])
async def test_alg_none_is_refused_in_any_case(server: ResourceServer, alg: str) -> None:
    """RFC 8725 3.2; CVE-2015-9235 and its case variants."""
    issuer = server.issuer
    unsigned = forge(header_of(issuer.key, alg=alg), issuer.claims(), lambda _: b"")
    await refused(server, unsigned, "not a compact JWS")
    await refused(
        server, forge(header_of(issuer.key, alg=alg), issuer.claims(), signer(issuer.key)), "algorithm not allowed"
    )


def public_key_forms(key: SigningKey) -> Iterator[bytes]:
    """Every serialization of a public key that some library has accepted as an HMAC secret."""
    public: Any = key.key.public_key
    for encoding in (Encoding.PEM, Encoding.DER):
        yield public.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
    yield public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).strip()
    yield public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    yield json.dumps(key.public_jwk()).encode()
    yield json.dumps(key.public_jwk(), separators=(",", ":"), sort_keys=True).encode()
    if key.alg == "RS256":
        yield public.public_bytes(Encoding.PEM, PublicFormat.PKCS1)
    if key.alg == "ES256":
        yield public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    if key.alg == "EdDSA":
        yield public.public_bytes_raw()


@pytest.mark.threat("T-001")
@pytest.mark.parametrize("alg", ["HS256", "hs256", "HS384", "HS512"])
async def test_a_public_key_is_not_accepted_as_an_hmac_secret(
    server: ResourceServer, rsa_key: SigningKey, eddsa_key: SigningKey, alg: str
) -> None:
    """CVE-2024-37568 (Authlib), CVE-2024-33663 and its DER form (python-jose), CVE-2026-48526 (PyJWT)."""
    issuer = server.issuer
    assert (await server.post(CALL, genuine(issuer))).status_code == 200
    for key in (issuer.key, rsa_key, eddsa_key):
        for secret in public_key_forms(key):
            token = forge(header_of(key, alg=alg), issuer.claims(), hs256(secret))
            check_refusal(server, await server.post(CALL, token), "algorithm not allowed")


async def test_an_empty_hmac_key_is_refused(server: ResourceServer) -> None:
    """CVE-2026-49852 (joserfc before 1.6.8)."""
    token = forge(header_of(server.issuer.key, alg="HS256"), server.issuer.claims(), hs256(b""))
    await refused(server, token, "algorithm not allowed")


@pytest.mark.threat("T-002")
async def test_a_key_in_the_token_itself_is_not_trusted(server: ResourceServer) -> None:
    """CVE-2026-27962 (Authlib before 1.6.9): `jwk` in the header."""
    attacker = SigningKey.generate("ES256")
    for kid in (attacker.kid, server.issuer.key.kid):
        header = header_of(attacker, kid=kid, jwk=attacker.public_jwk())
        await refused(server, forge(header, server.issuer.claims(), signer(attacker)), "header member refused: jwk")


@pytest.mark.threat("T-002")
@pytest.mark.parametrize("member", ["jku", "x5u"])
async def test_a_url_in_a_header_is_never_fetched(server: ResourceServer, member: str) -> None:
    """RFC 8725 3.10: a server listens at the address, and receives no connection."""
    attacker = SigningKey.generate("ES256")
    with closing(socket.create_server(("127.0.0.1", 0))) as sentinel:
        sentinel.setblocking(False)
        url = f"http://127.0.0.1:{sentinel.getsockname()[1]}/keys"
        header = header_of(attacker, **{member: url})
        await refused(
            server, forge(header, server.issuer.claims(), signer(attacker)), f"header member refused: {member}"
        )
        with pytest.raises(BlockingIOError):
            sentinel.accept()


@pytest.mark.divergence("D-07", "D-56")
@pytest.mark.threat("T-002")
@pytest.mark.parametrize(
    ("members", "reason"),
    [
        pytest.param({"x5c": ["MIIB"]}, "x5c", id="x5c"),
        pytest.param({"crit": ["exp"], "exp": 1}, "crit", id="an-unknown-critical-member"),
        pytest.param({"crit": []}, "crit", id="an-empty-crit"),
        pytest.param({"crit": ["b64"], "b64": True}, "b64", id="crit-b64-true"),
        pytest.param({"crit": ["b64"], "b64": False}, "b64", id="crit-b64-false"),
        pytest.param({"b64": False}, "b64", id="b64-without-crit"),
        pytest.param({"zip": "DEF"}, "zip", id="zip"),
        pytest.param({"x5t#S256": "AAAA"}, "unknown", id="x5t"),
        pytest.param({"cty": "JWT"}, "unknown", id="cty"),
        pytest.param({"bork": 1}, "unknown", id="an-invented-member"),
    ],
)
async def test_a_header_with_other_members_than_alg_kid_typ_is_refused(
    server: ResourceServer, members: dict[str, Any], reason: str
) -> None:
    """RFC 7515 4.1.11, RFC 7797; CVE-2025-59420 (Authlib) and CVE-2026-32597 (PyJWT): unknown `crit`."""
    await refused(server, headed(server.issuer, **members), f"header member refused: {reason}")


@pytest.mark.parametrize(
    ("kid", "reason"),
    [
        pytest.param("../../../../dev/null", "kid is not in the issuer's key set", id="a-path"),
        pytest.param("' OR '1'='1", "kid is not in the issuer's key set", id="sql"),
        pytest.param("known\x00", "kid is not in the issuer's key set", id="nul"),
        pytest.param("\x1b[2J\r\nforged", "kid is not in the issuer's key set", id="terminal-escapes"),
        pytest.param("__proto__", "kid is not in the issuer's key set", id="proto"),
        pytest.param("k" * 129, "kid is not a string of 1 to 128 characters", id="129-characters"),
        pytest.param("k" * 5000, "kid is not a string of 1 to 128 characters", id="5-kB"),
        pytest.param("", "kid is not a string of 1 to 128 characters", id="empty"),
        pytest.param(0, "kid is not a string of 1 to 128 characters", id="a-number"),
        pytest.param(["a"], "kid is not a string of 1 to 128 characters", id="a-list"),
        pytest.param({"a": 1}, "kid is not a string of 1 to 128 characters", id="an-object"),
        pytest.param(None, "kid is missing", id="missing"),
    ],
)
async def test_a_kid_is_only_compared_with_the_issuers_keys(server: ResourceServer, kid: Any, reason: str) -> None:
    """RFC 8725 3.10: injection by `kid`."""
    await refused(server, headed(server.issuer, kid=kid), reason)


async def test_a_ten_kilobyte_kid_is_refused_by_length(server: ResourceServer) -> None:
    """RFC 8725 3.10: injection by `kid`."""
    await refused(server, headed(server.issuer, kid="k" * 10_000), "longer than 8 KiB")


@pytest.mark.threat("T-001")
async def test_a_key_verifies_only_its_published_algorithm(
    server: ResourceServer, rsa_key: SigningKey, eddsa_key: SigningKey
) -> None:
    """RFC 8725 3.1: one algorithm per key. Each key is accepted with its own algorithm."""
    issuer, mismatch = server.issuer, "algorithm does not match the key"
    for key in (rsa_key, eddsa_key):
        assert (await server.post(CALL, headed(issuer, key))).status_code == 200
    await refused(server, headed(issuer, kid=rsa_key.kid), mismatch)
    await refused(server, headed(issuer, rsa_key, kid=issuer.key.kid), mismatch)
    await refused(server, headed(issuer, rsa_key, alg="ES256"), mismatch)
    await refused(server, headed(issuer, eddsa_key, alg="ES256"), mismatch)
    pss = forge(header_of(rsa_key, alg="PS256"), issuer.claims(), signer(rsa_key, pss=True))
    await refused(server, pss, mismatch)
    pss_as_rs256 = forge(header_of(rsa_key), issuer.claims(), signer(rsa_key, pss=True))
    await refused(server, pss_as_rs256, "signature does not match")


@pytest.mark.parametrize("alg", ["ES384", "ES512", "ES256K", "RS384", "RS512", "Ed448", "es256", "RSA-OAEP", "dir"])
async def test_an_algorithm_outside_the_list_is_refused(server: ResourceServer, alg: str) -> None:
    """RFC 8725 3.1, 3.2."""
    await refused(server, headed(server.issuer, alg=alg), "algorithm not allowed")


@pytest.mark.divergence("D-08")
@pytest.mark.threat("T-003")
@pytest.mark.parametrize(
    "typ",
    [
        *("JWT", "at+jwt ", "at+JWT\x00", "id_token", "logout+jwt", "secevent+jwt", "statuslist+jwt", "dpop+jwt"),
        *("client-authentication+jwt", "oauth-id-jag+jwt", "token-introspection+jwt", "", None),
    ],
)
async def test_a_token_of_another_type_is_refused(server: ResourceServer, typ: str | None) -> None:
    """RFC 8725 3.11, RFC 9068 4: an identity token, assertion or status list signed with the same key."""
    await refused(server, headed(server.issuer, typ=typ), "typ is not at+jwt")


async def test_a_typ_that_is_not_a_string_is_refused(server: ResourceServer) -> None:
    """RFC 7515 4.1.9."""
    await refused(server, headed(server.issuer, typ=["at+jwt"]), "typ is not a string")


DUPLICATE = "An object has the same member twice."
NOT_JSON = "The text is not valid JSON."


@pytest.mark.threat("T-008")
@pytest.mark.parametrize(
    ("member", "reason"),
    [
        pytest.param('"aud": "https://mcp.example.com/mcp"', f"claims: {DUPLICATE}", id="the-same-aud-twice"),
        pytest.param('"\\u0061ud": "https://evil.example"', f"claims: {DUPLICATE}", id="aud-again-but-escaped"),
        pytest.param('"scope": "org:write"', f"claims: {DUPLICATE}", id="scope-twice"),
        pytest.param('"x": NaN', f"claims: {NOT_JSON}", id="nan"),
        pytest.param('"x": -Infinity', f"claims: {NOT_JSON}", id="infinity"),
        pytest.param('"x": ' + "9" * 4500, f"claims: {NOT_JSON}", id="an-integer-of-4500-digits"),
        pytest.param('"x": ' + "[" * 2500 + "]" * 2500, f"claims: {NOT_JSON}", id="deep-nesting"),
        pytest.param('"x": "\\ud800"', f"claims: {NOT_JSON}", id="a-lone-surrogate"),
        pytest.param('"x": 1,', f"claims: {NOT_JSON}", id="a-trailing-comma"),
        pytest.param('"x": 1}{"y": 1', f"claims: {NOT_JSON}", id="two-objects"),
    ],
)
async def test_ambiguous_claims_are_refused(server: ResourceServer, member: str, reason: str) -> None:
    """RFC 8725 3.7, RFC 7519 4: claim names must be unique; RFC 8259 4 and 6."""
    issuer = server.issuer
    document = json.dumps(issuer.claims())[:-1] + ", " + member + "}"
    await refused(server, forge(header_of(issuer.key), document.encode(), signer(issuer.key)), reason)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        pytest.param(b'{"alg":"ES256","alg":"ES256","kid":"KID","typ":"at+jwt"}', f"header: {DUPLICATE}", id="twice"),
        pytest.param(b'["alg","ES256"]', "header is not an object", id="a-list"),
        pytest.param(b'"ES256"', "header is not an object", id="a-string"),
        pytest.param(b"\xff\xfe", "header: The text is not valid UTF-8.", id="not-utf-8"),
        pytest.param(b'\xef\xbb\xbf{"alg":"ES256","kid":"KID","typ":"at+jwt"}', f"header: {NOT_JSON}", id="bom"),
    ],
)
async def test_an_ambiguous_header_is_refused(server: ResourceServer, document: bytes, reason: str) -> None:
    """RFC 7515 4: header parameter names must be unique."""
    issuer = server.issuer
    header = document.replace(b"KID", issuer.key.kid.encode())
    await refused(server, forge(header, issuer.claims(), signer(issuer.key)), reason)


@pytest.mark.parametrize("payload", [b"[]", b'"claims"', b"7", b"null"])
async def test_claims_that_are_not_an_object_are_refused(server: ResourceServer, payload: bytes) -> None:
    """RFC 7519 7.2."""
    issuer = server.issuer
    await refused(server, forge(header_of(issuer.key), payload, signer(issuer.key)), "claims are not an object")


@pytest.mark.threat("T-007")
@pytest.mark.parametrize("name", ["exp", "iat"])
@pytest.mark.parametrize(
    "value",
    ["1800000300", True, False, 1800000300.0, 1800000300.5, 1e30, 10**30, -1, [1800000300], {}, "", "never"],
    ids=repr,
)
async def test_a_timestamp_that_is_not_an_integer_is_refused(server: ResourceServer, name: str, value: Any) -> None:
    """RFC 7519 2 (NumericDate); joserfc accepts 10**30, and a bool is an int in Python."""
    await refused(server, genuine(server.issuer, **{name: value}), f"{name} is not a whole number of seconds")


@pytest.mark.parametrize("claim", ["iss", "sub", "client_id", "aud", "iat", "exp", "jti", "scope"])
async def test_a_token_without_a_required_claim_is_refused(server: ResourceServer, claim: str) -> None:
    """RFC 9068 2.2, 4."""
    await refused(server, genuine(server.issuer, **{claim: None}), f"{claim} is missing")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"iat": 1_800_000_031, "exp": 1_800_000_331}, "issued 31 s in the future", id="iat-beyond-leeway"),
        pytest.param({"iat": 1_799_999_670, "exp": 1_799_999_970}, "expired 30 s ago", id="exp-beyond-leeway"),
        pytest.param(
            {"exp": 1_800_003_601}, "the lifetime is 3601 s; 1 to 3600 s are allowed", id="a-lifetime-over-an-hour"
        ),
        pytest.param({"nbf": 1_799_999_999}, "the token has nbf, which this issuer does not set", id="nbf"),
        pytest.param(
            {"cnf": {"jkt": "x"}},
            "the token is bound to a key (cnf), which cannot be checked here",
            id="bound-to-a-key",
        ),
    ],
)
async def test_an_expired_early_or_key_bound_token_is_refused(
    server: ResourceServer, changes: dict[str, Any], reason: str
) -> None:
    """RFC 7519 4.1.4 to 4.1.6; RFC 7800 3."""
    await refused(server, genuine(server.issuer, **changes), reason)


@pytest.mark.divergence("D-61")
@pytest.mark.threat("T-004")
@pytest.mark.parametrize(
    ("aud", "reason"),
    [
        *(
            pytest.param(aud, f"aud is {aud}, not this resource", id=aud)
            for aud in (
                "https://other.example.com/mcp",
                "https://mcp.example.com",
                "https://mcp.example.com/mcp/",
                "https://mcp.example.com/MCP",
                "https://MCP.example.com/mcp",
                "https://mcp.example.com:443/mcp",
                "https://mcp.example.com:8443/mcp",
                "http://mcp.example.com/mcp",
                "https://mcp.example.com/mcp?x=1",
                "https://mcp.example.com/mcp#x",
                "https://evil.example/?https://mcp.example.com/mcp",
                "agent_1",
                "*",
            )
        ),
        pytest.param([RESOURCE], "aud is not a non-empty string", id="a-list-of-this-resource"),
        pytest.param(
            [RESOURCE, "https://evil.example"], "aud is not a non-empty string", id="this-resource-and-another"
        ),
        pytest.param([RESOURCE, 7], "aud is not a non-empty string", id="this-resource-and-a-number"),
        pytest.param([], "aud is not a non-empty string", id="an-empty-list"),
        pytest.param({RESOURCE: True}, "aud is not a non-empty string", id="an-object"),
        pytest.param("", "aud is not a non-empty string", id="empty"),
    ],
)
async def test_a_token_for_another_audience_is_refused(server: ResourceServer, aud: Any, reason: str) -> None:
    """RFC 9068 4, RFC 8707 2: the one audience is this resource, exactly (GHSA-5h2m-4q8j-pqpj)."""
    await refused(server, genuine(server.issuer, aud=aud), reason)


@pytest.mark.threat("T-005")
@pytest.mark.parametrize(
    "iss",
    [
        "https://as.evil",
        ISSUER + "/",
        ISSUER + ".evil.example",
        ISSUER + "@evil.example",
        ISSUER[:-1],
        "https://AS.example.com",
        "http://as.example.com",
        "https://as.example.com:443",
        " " + ISSUER,
    ],
)
async def test_a_token_of_another_issuer_is_refused(server: ResourceServer, iss: str) -> None:
    """RFC 9068 4, RFC 9207: issuers are compared exactly."""
    await refused(server, genuine(server.issuer, iss=iss), f"iss is {iss}, not the trusted issuer")


async def test_a_subject_other_than_the_client_is_refused(server: ResourceServer) -> None:
    """RFC 9068 2.2: with client credentials, the subject is the client."""
    await refused(server, genuine(server.issuer, sub="admin"), "sub is not the client")


@pytest.mark.threat("T-008")
async def test_a_json_serialisation_is_refused(server: ResourceServer) -> None:
    """RFC 7515 7.2: only the compact serialisation is a JWT (RFC 7519 7.2)."""
    protected, payload, signature = genuine(server.issuer).split(".")
    flattened = json.dumps({"protected": protected, "payload": payload, "signature": signature})
    general = json.dumps({"payload": payload, "signatures": [{"protected": protected, "signature": signature}]})
    for document in (flattened, general):
        await refused(server, document, "not one bearer token")
        await refused(server, encode(document.encode()), "not a compact JWS")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        pytest.param("{0}.{1}.{2}.", "not a compact JWS", id="a-trailing-dot"),
        pytest.param(".{0}.{1}.{2}", "not a compact JWS", id="a-leading-dot"),
        pytest.param("{0}.{1}", "not a compact JWS", id="two-segments"),
        pytest.param("{0}.{1}.{2}.{1}.{2}", "not a compact JWS", id="five-segments-as-a-JWE"),
        pytest.param("{0}..{2}", "not a compact JWS", id="no-payload"),
        pytest.param(".{1}.{2}", "not a compact JWS", id="no-header"),
        pytest.param("{0}.{1}.{2}=", "not a compact JWS", id="padding"),
        pytest.param("{0}.{1}.{2}==", "not a compact JWS", id="more-padding"),
        pytest.param("{0}+.{1}.{2}", "not a compact JWS", id="plain-base64"),
        pytest.param("{0}.{1}. {2}", "not one bearer token", id="a-space"),
        pytest.param("{0}.{1}.{2}\t", "not one bearer token", id="a-tab"),
        pytest.param("{0}.\n{1}.{2}", "not one bearer token", id="a-newline"),
        pytest.param("{0}.{1}.{2}, Bearer {0}.{1}.{2}", "not one bearer token", id="two-in-a-list"),
        pytest.param("", "not one bearer token", id="empty"),
    ],
)
async def test_a_token_that_is_not_three_segments_is_refused(
    server: ResourceServer, template: str, reason: str
) -> None:
    """RFC 7515 7.1; RFC 6750 2.1."""
    segments = genuine(server.issuer).split(".")
    assert (await server.post(CALL, ".".join(segments))).status_code == 200
    check_refusal(server, await server.post(CALL, template.format(*segments)), reason)


@pytest.mark.threat("T-008")
@pytest.mark.parametrize("index", [1, 2], ids=["payload", "signature"])
async def test_a_noncanonical_base64url_segment_is_refused(server: ResourceServer, index: int) -> None:
    """RFC 4648 3.5: nonzero trailing bits would give one token several encodings."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    # One of three consecutive lengths leaves unused bits at the end of the payload.
    token = next(t for n in range(3) if len((t := genuine(server.issuer, jti="j" * (n + 1))).split(".")[1]) % 4)
    segments = token.split(".")
    last = segments[index][-1]
    respelled = segments[index][:-1] + alphabet[alphabet.index(last) + 1]
    assert decode(respelled) == decode(segments[index])
    segments[index] = respelled
    assert (await server.post(CALL, token)).status_code == 200
    await refused(server, ".".join(segments), "a segment is not canonical base64url")


@pytest.mark.threat("T-009")
async def test_a_token_over_eight_kibibytes_is_refused_before_parsing(server: ResourceServer) -> None:
    """CVE-2024-33664 class (python-jose), GHSA of Authlib before 1.6.4: cost grows with the token."""
    large, too_large = genuine(server.issuer, note="n" * 5000), genuine(server.issuer, note="n" * 6000)
    assert len(large) < 8192 < len(too_large)
    assert (await server.post(CALL, large)).status_code == 200
    await refused(server, too_large, "longer than 8 KiB")
    await refused(server, "A" * 1_000_000, "longer than 8 KiB")


@pytest.mark.threat("T-011")
@pytest.mark.parametrize(
    "signature",
    [
        pytest.param(bytes(64), id="r-0-s-0"),
        pytest.param(bytes(31) + b"\1" + bytes(32), id="r-1-s-0"),
        pytest.param(P256_ORDER.to_bytes(32, "big") * 2, id="r-n-s-n"),
        pytest.param(b"\xff" * 64, id="all-ones"),
        pytest.param(bytes(1), id="one-byte"),
        pytest.param(bytes(1000), id="1000-bytes"),
        pytest.param(encode_dss_signature(1, 1), id="der"),
    ],
)
async def test_a_degenerate_signature_is_refused(
    server: ResourceServer, rsa_key: SigningKey, eddsa_key: SigningKey, signature: bytes
) -> None:
    """CVE-2022-21449 class: r = s = 0 was valid for any message and key."""
    for key in (server.issuer.key, rsa_key, eddsa_key):
        token = forge(header_of(key), server.issuer.claims(), lambda _: signature)
        await refused(server, token, "signature does not match")


@pytest.mark.threat("T-011")
async def test_a_small_order_point_is_refused(server: ResourceServer, eddsa_key: SigningKey) -> None:
    """RFC 8032 5.1.7: R = the identity and S = 0 verify every message under a key of small order."""
    token = forge(header_of(eddsa_key), server.issuer.claims(), lambda _: b"\1" + bytes(63))
    await refused(server, token, "signature does not match")


async def test_a_valid_signature_in_der_is_refused(server: ResourceServer) -> None:
    """RFC 7518 3.4: the signature is R and S in 64 bytes; DER is not allowed."""
    protected, payload, signature = genuine(server.issuer).split(".")
    raw = decode(signature)
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    await refused(server, f"{protected}.{payload}.{encode(der)}", "signature does not match")


async def test_claims_modified_after_signing_are_refused(server: ResourceServer) -> None:
    """RFC 7515 5.2."""
    protected, _, signature = genuine(server.issuer, scope="env:read").split(".")
    await refused(server, f"{protected}.{part(server.issuer.claims())}.{signature}", "signature does not match")


@pytest.mark.threat("T-005")
async def test_a_key_of_another_installation_is_not_trusted(server: ResourceServer) -> None:
    """RFC 8725 3.8: same claims and algorithm, another installation's key, also with the kid of the issuer's key."""
    other, issuer = Issuer(server.issuer.clock), server.issuer
    await refused(server, genuine(other), "kid is not in the issuer's key set")
    renamed = forge(header_of(issuer.key), issuer.claims(), signer(other.key))
    await refused(server, renamed, "signature does not match")


@pytest.mark.threat("T-028")
async def test_a_token_in_the_query_or_the_body_is_ignored(server: ResourceServer) -> None:
    """RFC 6750 2.2, 2.3; MCP 2026-07-28, "Token Requirements": the response is the same as without a token."""
    token = genuine(server.issuer)
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    form = {**headers, "Content-Type": "application/x-www-form-urlencoded"}
    answers = [
        await server.http.post(f"{RESOURCE}?access_token={token}", json=CALL, headers=headers),
        await server.http.post(RESOURCE, json={**CALL, "access_token": token}, headers=headers),
        await server.http.post(RESOURCE, content=f"access_token={token}", headers=form),
        await server.http.post(RESOURCE, json=CALL, headers={**headers, "X-Access-Token": token}),
        await server.http.post(RESOURCE, json=CALL, headers={**headers, "Cookie": f"access_token={token}"}),
    ]
    for response in answers:
        assert response.status_code == 401
        # RFC 6750 3.1: a request without a token gets no error code.
        assert "error=" not in response.headers["WWW-Authenticate"]
        [event] = server.audit(request_id=response.headers["X-Request-Id"])
        assert event["reason"] == "no token"
    assert token not in json.dumps(server.audit())
    assert (await server.post(CALL, token)).status_code == 200


@pytest.mark.threat("T-028")
@pytest.mark.parametrize(
    "authorization",
    [
        pytest.param(["Bearer TOKEN", "Bearer TOKEN"], id="the-same-header-twice"),
        pytest.param(["Bearer TOKEN", "Bearer other.to.ken"], id="two-tokens"),
        pytest.param(["Basic YTpi", "Bearer TOKEN"], id="two-schemes"),
        pytest.param(["Bearer TOKEN", ""], id="an-empty-second-header"),
        pytest.param(["Basic TOKEN"], id="another-scheme"),
        pytest.param(["DPoP TOKEN"], id="dpop"),
        pytest.param(["TOKEN"], id="no-scheme"),
        pytest.param(["BearerTOKEN"], id="no-space"),
        pytest.param(["Bearer\tTOKEN"], id="a-tab"),
        pytest.param(['Bearer "TOKEN"'], id="quoted"),
        pytest.param(["Bearer"], id="only-the-scheme"),
        pytest.param([""], id="empty"),
    ],
)
async def test_anything_but_one_bearer_header_is_refused(server: ResourceServer, authorization: list[str]) -> None:
    """RFC 6750 2.1; RFC 9110 5.3: two readers can disagree about which of two headers applies."""
    token = genuine(server.issuer)

    async def send(values: list[str]) -> Response:
        headers = [("Content-Type", "application/json"), ("Accept", "application/json, text/event-stream")]
        sent = [("Authorization", value.replace("TOKEN", token)) for value in values]
        return await server.http.post(RESOURCE, json=CALL, headers=headers + sent)

    for served in ("Bearer TOKEN", "bearer TOKEN", "BEARER  TOKEN"):
        assert (await send([served])).status_code == 200
    check_refusal(server, await send(authorization), "not one bearer token")
