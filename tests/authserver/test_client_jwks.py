"""The key file of a client: which keys are registered, which are ignored, and what refuses the file."""

import json
from typing import Any

import pytest
from support.assertions import public_jwk
from support.shell import CREATE, Shell

from gatehouse.authserver.credentials.client_jwks import client_verification_keys, parse_client_keys
from gatehouse.shared.protocol.encoding import decode_base64url, encode_base64url
from gatehouse.shared.protocol.jws import InvalidKeySet, SigningKey

EC, RSA, OKP = (public_jwk(SigningKey.generate(alg)) for alg in ("ES256", "RS256", "EdDSA"))
WEAK = {"kty": "RSA", "e": "AQAB", "n": encode_base64url(bytes([255] * 128)), "kid": "short"}


def document(*jwks: Any) -> bytes:
    return json.dumps({"keys": jwks}).encode()


@pytest.mark.parametrize(
    ("jwk", "reason"),
    [
        pytest.param({**RSA, "use": "enc", "alg": "RSA-OAEP"}, "its use is enc, not sig", id="use"),
        pytest.param({**WEAK, "use": "enc"}, "its use is enc, not sig", id="weak, for encryption"),
        pytest.param({**RSA, "use": None, "alg": "RSA-OAEP-256"}, "its alg RSA-OAEP-256 is not supported", id="alg"),
        pytest.param({**RSA, "use": None, "alg": None, "key_ops": ["wrapKey"]}, "its key_ops do not", id="key_ops"),
        pytest.param({"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA"}, "its kty AKP is not supported", id="AKP"),
        pytest.param({"kty": "EC", "crv": "P-384", "x": "AQ", "y": "AQ"}, "its curve P-384 is not", id="P-384"),
        pytest.param({"kty": "OKP", "crv": "X25519", "x": "AQ"}, "its curve X25519 is not supported", id="X25519"),
        pytest.param({**EC, "alg": "ES256K"}, "its alg ES256K is not supported", id="ES256K"),
    ],
)
def test_a_key_for_another_purpose_or_of_an_unknown_kind_is_ignored_and_named(jwk: dict[str, Any], reason: str) -> None:
    """RFC 7517 5."""
    parsed = parse_client_keys(document({**EC, "kid": "sig-1"}, {**jwk, "kid": "other-1"}))
    assert [kept["kid"] for kept in parsed.jwks] == ["sig-1"]
    (ignored,) = parsed.ignored
    assert ignored.startswith(f"key 2 (other-1): {reason}")
    with pytest.raises(InvalidKeySet, match=r"1 to 8 keys for signatures; ignored key 1 \(other-1\): its "):
        parse_client_keys(document({**jwk, "kid": "other-1"}))


@pytest.mark.parametrize(
    ("jwk", "reason"),
    [
        pytest.param({**EC, "d": "AQ"}, "holds private or symmetric key material", id="private"),
        pytest.param({**EC, "d": None}, "holds private or symmetric key material", id="private member, null"),
        pytest.param({**RSA, "use": "enc", "p": "AQ"}, "holds private or symmetric key material", id="RSA, private"),
        pytest.param({"kty": "AKP", "k": "AQ"}, "holds private or symmetric key material", id="unknown and secret"),
        pytest.param({"kty": "oct"}, "holds private or symmetric key material", id="symmetric"),
        pytest.param(WEAK, "it is not an RSA key of 2048 to 4096 bits", id="weak"),
        pytest.param({**OKP, "x": encode_base64url(bytes(32))}, "or one of small order", id="small order"),
        pytest.param(
            {**EC, "x": encode_base64url(bytes(31) + b"\1")}, "its members are not a key of its type", id="no point"
        ),
        pytest.param({**EC, "y": None}, "its members are not a key of its type", id="no y"),
        pytest.param({**EC, "crv": None}, "it has no crv", id="no crv"),
        pytest.param({**EC, "kty": None}, "it has no kty", id="no kty"),
        pytest.param({**EC, "alg": 5}, "its alg is not a string", id="alg a number"),
        pytest.param({**EC, "alg": "RS256"}, "its alg RS256 is not for a key of type EC", id="alg of another type"),
        *(
            pytest.param({**EC, "kid": kid}, "its kid is not a string of 1 to 128 visible characters", id=repr(kid))
            for kid in ("", "k" * 129, 7, "\x1b[2Jsigned", "a\nb", "\u202eabc", "a\u200bb")
        ),
    ],
)
def test_a_malformed_weak_or_private_key_refuses_the_file_and_is_named(jwk: dict[str, Any], reason: str) -> None:
    assert parse_client_keys(document(RSA, {**EC, "kid": "x"})).ignored == []
    with pytest.raises(InvalidKeySet) as refused:
        parse_client_keys(document(RSA, jwk))
    message = str(refused.value)
    assert message.startswith("key 2") and reason in message
    assert message.isprintable()


def test_members_that_are_null_count_as_absent() -> None:
    (jwk,) = parse_client_keys(document({**EC, "alg": None, "use": None, "kid": None, "key_ops": None})).jwks
    assert jwk.keys() == {"kty", "crv", "x", "y", "kid"}
    (key,) = client_verification_keys(jwk)
    assert key.kid == key.thumbprint == jwk["kid"]


def test_a_key_may_verify_by_its_operations() -> None:
    bare = {name: value for name, value in EC.items() if name != "use"}
    for operations in (["verify"], ["sign", "verify"], ["verify", {}]):
        assert parse_client_keys(document({**bare, "key_ops": operations})).jwks
    assert parse_client_keys(document({**EC, "use": "sig", "key_ops": ["encrypt"]})).jwks


def test_one_key_under_two_names_is_refused_with_both() -> None:
    with pytest.raises(InvalidKeySet, match=r"one key twice: key 1 \(a\) and key 3 \(b\)"):
        parse_client_keys(document({**EC, "kid": "a"}, RSA, {**EC, "kid": "b", "alg": None}))


@pytest.mark.parametrize(
    "padded",
    [{"n": encode_base64url(b"\0" + decode_base64url(RSA["n"]))}, {"e": encode_base64url(b"\0\1\0\1")}],
    ids="ne",
)
def test_a_zero_octet_does_not_make_another_key(padded: dict[str, str]) -> None:
    """RFC 7518 6.3.1.1: some libraries add it. RFC 7638 3.3: the thumbprint is that of the number."""
    for key in parse_client_keys(document({**RSA, **padded})).jwks:
        assert client_verification_keys(key)[0].thumbprint == client_verification_keys(RSA)[0].thumbprint
    with pytest.raises(InvalidKeySet, match="one key twice"):
        parse_client_keys(document({**RSA, "kid": "a"}, {**RSA, **padded, "kid": "b"}))


def test_the_limit_of_8_keys_counts_those_for_signatures() -> None:
    others = [{**RSA, "use": "enc", "kid": f"enc-{number}"} for number in range(60)]
    assert len(parse_client_keys(document(EC, *others)).ignored) == 60
    with pytest.raises(InvalidKeySet, match="at most 64 keys"):
        parse_client_keys(document(EC, *others, *others))


def test_a_file_may_hold_one_key() -> None:
    assert parse_client_keys(json.dumps(EC).encode()) == parse_client_keys(document(EC))


def test_the_commands_name_the_keys_that_they_ignore(shell: Shell) -> None:
    file = shell.folder / "jwks.json"
    file.write_bytes(document({**EC, "kid": "sig-1"}, {**RSA, "use": "enc", "kid": "enc-1\x1b[2J"}))
    created = shell.run(*CREATE, "--jwks", str(file), "--output", "json")
    told = r"Not registered: key 2 (enc-1\x1b[2J): its use is enc, not sig."
    assert told in created.stderr
    client_id = json.loads(created.stdout)["client_id"]
    file.write_bytes(document(OKP, {**RSA, "use": "enc", "kid": "enc-1\x1b[2J"}))
    rotated = shell.run("client", "key", "rotate", client_id, "--jwks", str(file), "--grace-period", "1h")
    assert told in rotated.stderr
    assert "The key sig-1 is accepted until" in rotated.stderr
