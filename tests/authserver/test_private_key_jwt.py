"""`private_key_jwt` (RFC 7523 2.2, 3): valid assertions, and each reason to refuse one."""

import json
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from sqlalchemy import update
from support.assertions import KeyClient, jwks, public_jwk
from support.authserver import ISSUER, AuthServer, token_form
from support.clock import FakeClock
from support.forging import forge, header_of, signer
from support.shell import CREATE, Shell
from werkzeug.test import TestResponse

from gatehouse.authserver.clients.assertions import MAX_LIFETIME, ReplayStore
from gatehouse.authserver.credentials.client_jwks import MAX_CLIENT_KEYS, client_verification_keys
from gatehouse.authserver.db.models import ClientRow
from gatehouse.shared.protocol import jws
from gatehouse.shared.protocol.clock import LEEWAY
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.service.administrator import CommandRefused

KEY, OTHER_KEY = SigningKey.generate("ES256"), SigningKey.generate("ES256")
RSA_KEY, EDDSA_KEY = SigningKey.generate("RS256"), SigningKey.generate("EdDSA")
OTHERS = [SigningKey.generate("ES256") for _ in range(3)]


@pytest.fixture
def client(authserver: AuthServer) -> KeyClient:
    return KeyClient(authserver, KEY)


@pytest.mark.divergence("D-46")
@pytest.mark.parametrize(
    ("key", "alg"),
    [(KEY, "ES256"), (RSA_KEY, "RS256"), (RSA_KEY, "PS256"), (EDDSA_KEY, "EdDSA")],
    ids=lambda v: str(v)[:6],
)
def test_every_published_algorithm_is_accepted(authserver: AuthServer, key: SigningKey, alg: str) -> None:
    algorithms = authserver.http.get("/.well-known/oauth-authorization-server").json
    assert alg in algorithms["token_endpoint_auth_signing_alg_values_supported"]
    client = KeyClient(authserver, key, jwks(public_jwk(key, alg=None)))
    _, claims = authserver.read_token(client.post(client.assertion(alg=alg)))
    assert claims["sub"] == client.client.client_id


@pytest.mark.divergence("D-49")
def test_the_client_is_read_from_sub_and_client_id_must_match(client: KeyClient) -> None:
    client.accepted()
    assert client.post(client.assertion(), client_id=client.client.client_id).status_code == 200
    client.refused(
        client.post(client.assertion(), client_id="agent_other"),
        "client_id in the body is not the one of the credentials",
    )


@pytest.mark.parametrize("kid", [True, False], ids=["with kid", "without kid"])
def test_each_of_several_keys_works_with_and_without_a_kid(authserver: AuthServer, kid: bool) -> None:
    client = KeyClient(authserver, KEY, jwks(public_jwk(KEY, kid="one"), public_jwk(OTHER_KEY, kid="two")))
    for key, name in ((KEY, "one"), (OTHER_KEY, "two")):
        assertion = client.assertion(key=key, kid=name if kid else None)
        assert client.post(assertion).status_code == 200


def test_only_the_key_named_by_kid_is_tried(authserver: AuthServer) -> None:
    client = KeyClient(authserver, KEY, jwks(public_jwk(KEY, kid="one"), public_jwk(OTHER_KEY, kid="two")))
    client.accepted()
    client.refused(client.post(client.assertion(kid="two")), "assertion: signature does not match")
    client.refused(
        client.post(client.assertion(kid="three")), "assertion: the client has no key of that kid and algorithm"
    )


@pytest.mark.divergence("D-46")
@pytest.mark.threat("T-066")
def test_a_key_registered_for_one_algorithm_verifies_no_other(authserver: AuthServer) -> None:
    """RFC 8725 3.1."""
    client = KeyClient(authserver, RSA_KEY)
    client.accepted()
    client.refused(
        client.post(client.assertion(alg="PS256")), "assertion: the client has no key of that kid and algorithm"
    )


@pytest.mark.threat("T-065")
def test_an_assertion_signed_with_another_clients_key_is_refused(authserver: AuthServer, client: KeyClient) -> None:
    other = KeyClient(authserver, OTHER_KEY)
    other.accepted()
    client.accepted()
    client.refused(client.post(client.assertion(key=OTHER_KEY)), "assertion: signature does not match")


@pytest.mark.parametrize("sub", [None, "", 7, ["agent_1"]], ids=repr)
def test_an_assertion_that_names_no_client_is_refused(client: KeyClient, sub: Any) -> None:
    """RFC 7523 3, item 2."""
    client.accepted()
    client.refused(client.post(client.assertion(client.claims(sub=sub))), "assertion: sub is missing")


PARTIES = "assertion: iss and sub are not both the client"
AUDIENCE = "assertion: aud is {}, not this issuer as one string"


@pytest.mark.divergence("D-22", "D-47", "D-48")
@pytest.mark.threat("T-065")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"iss": "agent_other"}, PARTIES, id="iss of another client"),
        pytest.param({"iss": None}, PARTIES, id="no iss"),
        pytest.param({"aud": None}, "assertion: aud is missing", id="no aud"),
        pytest.param({"aud": [ISSUER]}, AUDIENCE.format([ISSUER]), id="aud is a list"),
        pytest.param(
            {"aud": [ISSUER, "https://evil.example"]},
            AUDIENCE.format([ISSUER, "https://evil.example"]),
            id="two audiences",
        ),
        pytest.param({"aud": f"{ISSUER}//"}, AUDIENCE.format(f"{ISSUER}//"), id="two slashes"),
        pytest.param({"aud": f"{ISSUER}/token"}, AUDIENCE.format(f"{ISSUER}/token"), id="token endpoint"),
        pytest.param({"aud": "https://evil.example"}, AUDIENCE.format("https://evil.example"), id="another issuer"),
        pytest.param({"jti": None}, "assertion: jti is not a string of 1 to 256 characters", id="no jti"),
        pytest.param({"jti": ""}, "assertion: jti is not a string of 1 to 256 characters", id="empty jti"),
        pytest.param({"jti": 7}, "assertion: jti is not a string of 1 to 256 characters", id="jti a number"),
        pytest.param({"jti": "j" * 257}, "assertion: jti is not a string of 1 to 256 characters", id="long jti"),
        pytest.param({"exp": None}, "assertion: exp is missing", id="no exp"),
        pytest.param({"exp": True}, "assertion: exp is not a number of seconds", id="exp a bool"),
        pytest.param({"exp": "2000000000"}, "assertion: exp is not a number of seconds", id="exp a string"),
        pytest.param({"exp": 10**30}, "assertion: exp is not a number of seconds", id="exp huge"),
        pytest.param({"exp": 2_700_000_000}, "assertion: valid for longer than 300 s from now", id="exp in 30 years"),
        pytest.param({"iat": 2_700_000_000}, "assertion: iat is in the future", id="iat later"),
        pytest.param({"nbf": 2_700_000_000}, "assertion: nbf is in the future", id="nbf later"),
    ],
)
def test_an_invalid_claim_is_refused(client: KeyClient, changes: dict[str, Any], reason: str) -> None:
    """CVE-2025-27370 and 27371 (several audiences, the endpoint as audience); Keycloak #38576 (a far `exp`)."""
    client.accepted()
    client.refused(client.post(client.assertion(client.claims(**changes))), reason)


def test_times_of_an_assertion_may_have_a_fraction(client: KeyClient, clock: FakeClock) -> None:
    """RFC 7519 2. The jti stays spent until after the last moment at which the assertion is accepted."""
    now = int(clock())
    client.accepted()
    assertion = client.assertion(client.claims(iat=now - 0.5, nbf=now + 29.5, exp=now + 59.25))
    assert client.post(assertion).status_code == 200
    clock.advance(89)
    ReplayStore(client.server.services.database, clock).prune()
    client.refused(client.post(assertion), "assertion: jti was used before")
    clock.advance(0.25)
    client.refused(client.post(assertion), "assertion: expired 30 s ago")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": 330.5}, "assertion: valid for longer than 300 s from now"),
        ({"exp": -30.0}, "assertion: expired 30 s ago"),
        ({"iat": 30.25}, "assertion: iat is in the future"),
        ({"nbf": 30.25}, "assertion: nbf is in the future"),
        ({"exp": 1e300}, "assertion: exp is not a number of seconds"),
        ({"iat": -1e10}, "assertion: iat is not a number of seconds"),
    ],
    ids=str,
)
def test_a_fraction_does_not_widen_the_limits_of_an_assertion(
    client: KeyClient, clock: FakeClock, changes: dict[str, float], reason: str
) -> None:
    now = int(clock())
    client.accepted()
    changed = {name: now + seconds for name, seconds in changes.items()}
    client.refused(client.post(client.assertion(client.claims(**changed))), reason)


@pytest.mark.parametrize("registered", ["EdDSA", "Ed25519", None])
@pytest.mark.parametrize("sent", ["EdDSA", "Ed25519"])
def test_ed25519_and_eddsa_are_one_algorithm(authserver: AuthServer, registered: str | None, sent: str) -> None:
    """RFC 9864."""
    jwk = {name: value for name, value in EDDSA_KEY.public_jwk().items() if name != "alg"}
    document = json.dumps(jwk | ({"alg": registered} if registered else {})).encode()
    client = KeyClient(authserver, EDDSA_KEY, document)
    claims = client.claims()
    header = {"alg": sent, "kid": EDDSA_KEY.kid}
    assert client.post(forge(header, claims, signer(EDDSA_KEY))).status_code == 200
    other = SigningKey.generate("EdDSA")
    client.refused(client.post(forge(header, client.claims(), signer(other))), "assertion: signature does not match")


@pytest.mark.divergence("D-22")
def test_one_slash_after_the_issuer_is_tolerated(client: KeyClient) -> None:
    assert client.post(client.assertion(client.claims(aud=f"{ISSUER}/"))).status_code == 200


@pytest.mark.divergence("D-23")
def test_the_token_endpoint_is_an_audience_only_where_allowed(authserver: AuthServer) -> None:
    client = KeyClient(authserver, KEY, token_endpoint_audience=True)
    client.accepted()
    assert client.post(client.assertion(client.claims(aud=f"{ISSUER}/token"))).status_code == 200


def test_an_assertion_is_valid_until_the_leeway_ends(client: KeyClient) -> None:
    now = int(client.clock())
    expiring, expired = (client.assertion(client.claims(exp=now)) for _ in range(2))
    client.clock.advance(LEEWAY - 0.001)
    assert client.post(expiring).status_code == 200
    client.clock.advance(0.001)
    client.refused(client.post(expired), "assertion: expired 30 s ago")


@pytest.mark.divergence("D-24", "D-48")
def test_an_assertion_may_be_valid_for_the_maximum_and_leeway(client: KeyClient) -> None:
    longest = int(client.clock()) + MAX_LIFETIME + LEEWAY
    assert client.post(client.assertion(client.claims(exp=longest))).status_code == 200
    client.refused(
        client.post(client.assertion(client.claims(exp=longest + 1))), "assertion: valid for longer than 300 s from now"
    )


@pytest.mark.divergence("D-56")
@pytest.mark.threat("T-066")
@pytest.mark.parametrize(
    ("header", "reason"),
    [
        pytest.param({"typ": "at+jwt"}, "assertion: typ is not that of a client assertion", id="an access token's typ"),
        pytest.param({"alg": "none"}, "assertion: algorithm not allowed", id="none"),
        pytest.param({"alg": "HS256"}, "assertion: algorithm not allowed", id="HS256"),
        pytest.param({"jwk": {}}, "assertion: header member refused: jwk", id="jwk"),
        pytest.param({"jku": "https://evil.example"}, "assertion: header member refused: jku", id="jku"),
        pytest.param({"x5u": "https://evil.example"}, "assertion: header member refused: x5u", id="x5u"),
        pytest.param({"crit": []}, "assertion: header member refused: crit", id="crit"),
        pytest.param({"crit": ["b64"], "b64": True}, "assertion: header member refused: b64", id="crit of b64"),
    ],
)
def test_an_invalid_header_is_refused(client: KeyClient, header: dict[str, Any], reason: str) -> None:
    """RFC 8725 3.1, 3.11; CVE-2025-59420 (`crit`)."""
    client.accepted()
    client.refused(client.post(client.assertion(**header)), reason)


@pytest.mark.parametrize("typ", [None, "JWT", "client-authentication+jwt"])
def test_the_types_of_a_client_assertion_are_accepted(client: KeyClient, typ: str | None) -> None:
    assert client.post(client.assertion(typ=typ)).status_code == 200


@pytest.mark.threat("T-065")
def test_an_access_token_is_not_an_assertion(authserver: AuthServer, client: KeyClient) -> None:
    token = client.post(client.assertion()).json["access_token"]
    client.refused(client.post(token), "platform token: no trusted issuer has the iss https://as.example.com")


@pytest.mark.parametrize("kind", [None, "", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer"])
def test_another_kind_of_assertion_is_refused(client: KeyClient, kind: str | None) -> None:
    client.accepted()
    form = token_form(client_assertion=client.assertion(), **({} if kind is None else {"client_assertion_type": kind}))
    client.refused(client.server.post_token(form), "client_assertion_type is not jwt-bearer")


@pytest.mark.parametrize("assertion", ["a", "a.b.c", "e30.e30.e30", "é.é.é", "x" * 9000])
def test_a_malformed_jws_is_refused(client: KeyClient, assertion: str) -> None:
    client.accepted()
    response = client.post(assertion)
    assert (response.status_code, response.json["error"]) == (401, "invalid_client")


def test_an_assertion_with_a_secret_is_refused(client: KeyClient) -> None:
    """RFC 6749 2.3."""
    client.accepted()
    response = client.post(client.assertion(), client_secret="gths_any")
    assert (response.status_code, response.json["error"]) == (400, "invalid_request")


def test_a_client_must_use_its_registered_method(authserver: AuthServer, client: KeyClient) -> None:
    """Accepting a secret from a client with a key would bypass the key (keycloak CVE-2026-16093)."""
    by_secret, secret = authserver.create_client()
    assert authserver.post_token(basic=(by_secret.client_id, secret)).status_code == 200
    client.refused(
        authserver.post_token(basic=(client.client.client_id, secret)),
        "used client_secret_basic, registered for private_key_jwt",
    )
    claims = client.claims(iss=by_secret.client_id, sub=by_secret.client_id)
    client.refused(client.post(client.assertion(claims)), "used private_key_jwt, registered for client_secret_basic")


def test_a_disabled_client_gets_no_token_for_a_valid_assertion(authserver: AuthServer, client: KeyClient) -> None:
    other = KeyClient(authserver, OTHER_KEY)
    other.accepted()
    with authserver.services.database.write() as session:
        row = ClientRow.client_id == client.client.client_id
        session.execute(update(ClientRow).values(disabled=True).where(row))
    client.refused(client.post(client.assertion()), "client is disabled")


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        pytest.param(b"-----BEGIN PUBLIC KEY-----", "the document is in PEM", id="PEM"),
        pytest.param(jwks(), "not a JWK set of 1 to 8 keys", id="no key"),
        pytest.param(KEY.private_jwk(), "private or symmetric", id="a private key"),
        pytest.param(jwks({"kty": "oct", "k": "c2VjcmV0"}), "private or symmetric", id="a secret"),
        pytest.param(jwks(public_jwk(KEY), public_jwk(KEY, kid="again")), "one key twice", id="one key twice"),
        pytest.param(jwks(public_jwk(KEY, use="enc")), "its use is enc, not sig", id="for encryption"),
        pytest.param(jwks(public_jwk(KEY, alg="ES512")), "its alg ES512 is not supported", id="another algorithm"),
        pytest.param(jwks(public_jwk(KEY, crv="P-384")), "its curve P-384 is not supported", id="another curve"),
        pytest.param(jwks({"kty": "RSA", "e": "AQAB", "n": "AQAB"}), "2048 to 4096 bits", id="a short modulus"),
    ],
)
def test_unusable_keys_are_not_registered(authserver: AuthServer, document: bytes, problem: str) -> None:
    assert KeyClient(authserver, KEY, jwks(public_jwk(KEY))).client.keys
    with pytest.raises(CommandRefused, match=problem):
        KeyClient(authserver, KEY, document)


def test_one_jwk_without_kid_and_alg_can_be_registered(authserver: AuthServer) -> None:
    client = KeyClient(authserver, KEY, json.dumps(public_jwk(KEY, kid=None, alg=None, use=None)).encode())
    client.accepted()
    assert client.post(client.assertion(kid=KEY.kid)).status_code == 200


@pytest.mark.threat("T-008")
def test_ambiguous_claims_are_refused(client: KeyClient) -> None:
    client.accepted()
    claims = b'{"sub": "%s", "sub": "agent_other"}' % client.client.client_id.encode()
    token = forge({**header_of(KEY), "typ": "JWT"}, claims, signer(KEY))
    client.refused(client.post(token), "assertion: claims: An object has the same member twice.")


def count_verifications(server: AuthServer, action: Callable[[], Any]) -> int:
    verifications = 0

    def note(frame: FrameType, kind: str, _: Any) -> None:
        nonlocal verifications
        verifications += kind == "call" and frame.f_code is jws.verify.__code__

    with server.profiled(note):
        action()
    return verifications


@pytest.mark.threat("T-061", "T-104")
@pytest.mark.parametrize("alg", ["ES256", "RS256", "PS256", "EdDSA"])
def test_every_refused_assertion_costs_the_maximum_of_verifications(authserver: AuthServer, alg: str) -> None:
    """Client enumeration by timing (keycloak#26110): the amount of work does not reveal whether a client exists."""
    key = {"ES256": KEY, "EdDSA": EDDSA_KEY}.get(alg, RSA_KEY)
    client = KeyClient(authserver, key, jwks(public_jwk(key, alg=None, kid="one")))
    assert count_verifications(authserver, lambda: client.post(client.assertion(alg=alg))) == 1
    several = KeyClient(authserver, key, jwks(public_jwk(key, kid="a", alg=None), *(public_jwk(k) for k in OTHERS)))
    assert count_verifications(authserver, lambda: several.post(several.assertion(alg=alg, kid="a"))) == 1
    of_secret, _ = authserver.create_client()
    nobody, other = {"iss": "agent_nobody", "sub": "agent_nobody"}, of_secret.client_id
    stranger = SigningKey.generate(key.alg)
    refused = {
        "unknown client": client.assertion(client.claims(**nobody), alg=alg),
        "client with a secret": client.assertion(client.claims(iss=other, sub=other), alg=alg),
        "kid of no key": client.assertion(alg=alg, kid="two"),
        "signature of another key": client.assertion(alg=alg, key=stranger),
        "of a client with several keys": several.assertion(alg=alg, key=stranger),
        "kid of one of several keys": several.assertion(alg=alg, key=stranger, kid="a"),
    }
    for name, assertion in refused.items():
        responses: list[TestResponse] = []
        assert (
            count_verifications(authserver, lambda a=assertion, r=responses: r.append(client.post(a)))
            == MAX_CLIENT_KEYS
        ), name
        assert (responses[0].status_code, responses[0].json["error"]) == (401, "invalid_client"), name


def test_the_decoy_key_authenticates_no_client(authserver: AuthServer) -> None:
    """Even the private half of the decoy key authenticates no client."""
    client = KeyClient(authserver, KEY)
    client.accepted()
    verifier = authserver.services.authenticator.assertions
    verifier.decoys["ES256"] = client_verification_keys(public_jwk(OTHER_KEY))[0]
    forged = client.assertion(key=OTHER_KEY, kid="decoy")
    client.refused(client.post(forged), "assertion: the client has no key of that kid and algorithm")
    nobody = client.claims(iss="agent_nobody", sub="agent_nobody")
    client.refused(client.post(client.assertion(nobody, key=OTHER_KEY)), "unknown client")


def test_a_key_file_over_64_kib_is_refused_before_it_is_read(shell: Shell) -> None:
    document = json.dumps(KEY.public_jwk())
    file = shell.folder / "jwks.json"
    file.write_text(document.ljust(64 * 1024), encoding="ascii")
    shell.json(*CREATE, "--jwks", str(file))
    file.write_text(document.ljust(64 * 1024 + 1), encoding="ascii")
    assert "larger than 64 KiB" in shell.refusal(*CREATE, "--jwks", str(file))
