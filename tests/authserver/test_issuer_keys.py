"""The key sets of trusted issuers: which of their keys verify platform tokens."""

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from support.clock import FakeClock
from support.forging import encode
from support.key_sets import KEY, OTHER_KEY, key_set
from support.platforms import PLATFORMS, spiffe

from gatehouse.authserver.workloads.issuer_keys import MAX_LENGTH, parse_issuer_keys, parse_stored_keys
from gatehouse.authserver.workloads.kinds import KINDS
from gatehouse.shared.protocol.jws import InvalidKeySet, SigningKey
from gatehouse.shared.protocol.key_sets import MAX_KEYS

RSA_KEY = SigningKey.generate("RS256")
ALL = KINDS["oidc"].algorithms


def jwk(key: SigningKey = KEY, **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**key.public_jwk(), **changes}.items() if value is not None}


def weak_jwk() -> dict[str, Any]:
    """Return an RSA key of 1024 bits."""
    numbers = rsa.generate_private_key(65537, 1024).public_key().public_numbers()
    return {"kty": "RSA", "kid": "weak", "e": "AQAB", "n": encode(numbers.n.to_bytes(128, "big"))}


@pytest.mark.parametrize("kind", PLATFORMS)
def test_the_published_keys_of_each_platform_are_read(kind: str) -> None:
    platform = PLATFORMS[kind](FakeClock())
    old = platform.key
    new = platform.rotate()
    assert new.kid != old.kid
    keys = parse_issuer_keys(platform.jwks(), kind, KINDS[kind].algorithms)
    assert keys.keys() == {old.kid, new.kid}
    for key in (old, new):
        assert key.alg in {one.alg for one in keys[key.kid]}
        assert {one.thumbprint for one in keys[key.kid]} == {key.key.thumbprint()}


def test_a_key_without_alg_verifies_each_algorithm_of_the_issuer() -> None:
    document = key_set(jwk(RSA_KEY, alg=None))
    for algorithms in (["RS256", "PS256"], ["RS256"], ["PS256", "ES256"]):
        [keys] = parse_issuer_keys(document, "oidc", algorithms).values()
        assert {key.alg for key in keys} == set(algorithms) & {"RS256", "PS256"}
        assert len({key.thumbprint for key in keys}) == 1


@pytest.mark.parametrize(
    ("unused", "reason"),
    [
        (jwk(OTHER_KEY, kid=None), "it has no kid"),
        (jwk(OTHER_KEY, use="enc"), "its use is enc, not sig"),
        (jwk(OTHER_KEY, use="jwt-svid"), "its use is jwt-svid, not sig"),
        (jwk(OTHER_KEY, crv="P-384"), "its curve P-384 is not supported; for EC, P-256 is"),
        (jwk(RSA_KEY), "its algorithm is not one that the issuer may use"),
        (weak_jwk(), "it is not an RSA key of 2048 to 4096 bits with an odd exponent from 3 to 2^32"),
        ({"kty": "EC", "kid": "half", "crv": "P-256"}, "its members are not a key of its type"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_key_that_is_of_no_use_is_named(unused: dict[str, Any], reason: str) -> None:
    noted: list[str] = []
    keys = parse_issuer_keys(key_set(unused, jwk()), "oidc", ["ES256"], noted.append)
    assert keys.keys() == {KEY.kid}
    [note] = noted
    assert note.endswith(f": {reason}")
    with pytest.raises(InvalidKeySet) as refusal:
        parse_issuer_keys(key_set(unused), "oidc", ["ES256"])
    assert str(refusal.value).startswith("the set holds no usable key; key 1")
    assert str(refusal.value).endswith(reason)


def test_only_keys_for_jwt_svids_are_used_of_a_bundle() -> None:
    """SPIFFE Trust Domain and Bundle 4.2.2: the keys of X.509-SVIDs must sign no JWT-SVID, and others are ignored."""
    platform = spiffe(FakeClock())
    bundle = json.loads(platform.jwks())
    authority = {**bundle["keys"][0], "kid": "authority"}
    noted: list[str] = []
    for use in ("x509-svid", "sig", None):
        other = {name: value for name, value in {**authority, "use": use}.items() if value is not None}
        bundle["keys"][0] = other
        keys = parse_issuer_keys(json.dumps(bundle).encode(), "spiffe", ALL, noted.append)
        assert keys.keys() == {platform.key.kid}
    assert noted == ["key 1 (authority): its use is not jwt-svid"] * 3


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        pytest.param(b"", "the document is empty; a JWK set is expected", id="nothing"),
        pytest.param(b"-----BEGIN PUBLIC KEY-----\n", "the document is in PEM; a JWK set is expected", id="PEM"),
        pytest.param(b" \n", "the document is empty; a JWK set is expected", id="white space"),
        pytest.param(b"<html></html>", "not valid JSON", id="a web page"),
        pytest.param(b"[]", "the document is not an object; a JWK set is expected", id="a list"),
        pytest.param(b"{}", "the document has no member 'keys'; a JWK set is expected", id="no keys"),
        pytest.param(json.dumps(jwk()).encode(), "the document is one key, and not a set; a JWK set", id="one key"),
        pytest.param(b'{"keys": {}}', "'keys' is not a list", id="keys is an object"),
        pytest.param(b'{"keys": [], "keys": []}', "the same member twice", id="keys twice"),
        pytest.param(key_set(), "the set holds no usable key; 'keys' is empty", id="empty"),
        pytest.param(key_set("key"), "key 1 is not an object", id="a text"),
        pytest.param(key_set(json.loads(KEY.private_jwk())), "private or symmetric", id="a private key"),
        pytest.param(key_set(jwk(), {"kty": "oct", "k": "AAAA"}), "private or symmetric", id="a secret"),
        pytest.param(key_set(jwk(), jwk()), "one kid or key twice", id="the same key twice"),
        pytest.param(key_set(jwk(), jwk(kid="again")), "one kid or key twice", id="a key by two names"),
        pytest.param(key_set(jwk(), jwk(OTHER_KEY, kid=KEY.kid)), "one kid or key twice", id="a name of two keys"),
        pytest.param(key_set(jwk(), *[{}] * MAX_KEYS), f"at most {MAX_KEYS} keys", id="too many"),
        pytest.param(key_set(jwk()).ljust(MAX_LENGTH + 1), "larger than 64 KiB", id="too long"),
    ],
)
def test_a_hostile_or_broken_key_set_is_refused_as_a_whole(document: bytes, problem: str) -> None:
    assert parse_issuer_keys(key_set(jwk(), jwk(OTHER_KEY)), "oidc", ALL)
    with pytest.raises(InvalidKeySet) as refusal:
        parse_issuer_keys(document, "oidc", ALL)
    assert problem in str(refusal.value)


def test_a_key_set_of_64_kib_is_read() -> None:
    assert parse_issuer_keys(key_set(jwk()).ljust(MAX_LENGTH), "oidc", ALL).keys() == {KEY.kid}


def test_a_stored_key_set_that_cannot_be_used_has_no_keys() -> None:
    assert parse_stored_keys(key_set(jwk()).decode(), "oidc", ("ES256",)).keys() == {KEY.kid}
    assert parse_stored_keys(key_set(weak_jwk()).decode(), "oidc", ("RS256",)) == {}
