"""Signing and verifying: JWS headers and key sets."""

import json
from dataclasses import replace
from typing import Any

import pytest
from joserfc.jwk import ECKey
from support.forging import encode, forge, header_of, part, signer

from gatehouse.shared.protocol.jws import (
    SIGNING_ALGORITHMS,
    Header,
    InvalidKeySet,
    InvalidToken,
    SigningKey,
    read_header,
    verify,
)
from gatehouse.shared.protocol.key_sets import parse_key_set

KEYS = {alg: SigningKey.generate(alg) for alg in SIGNING_ALGORITHMS}
ES256 = KEYS["ES256"]
CLAIMS = {"sub": "agent_1", "n": 1}
SYMMETRIC = b'{"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}'


def key_set(*jwks: Any) -> bytes:
    return json.dumps({"keys": jwks}).encode()


def verify_with(token: str, key: SigningKey) -> dict[str, Any]:
    return verify(token, read_header(token), parse_key_set(key_set(key.public_jwk()))[key.kid])


def reason_of(token: str, key: SigningKey = ES256) -> str:
    with pytest.raises(InvalidToken) as refusal:
        verify_with(token, key)
    return refusal.value.reason


@pytest.mark.parametrize("alg", SIGNING_ALGORITHMS)
def test_the_public_half_verifies_what_the_key_signed(alg: str) -> None:
    key = KEYS[alg]
    token = key.sign("at+jwt", CLAIMS)
    assert read_header(token) == Header(alg=alg, kid=key.kid, typ="at+jwt")
    assert verify_with(token, key) == CLAIMS


@pytest.mark.parametrize("alg", SIGNING_ALGORITHMS)
def test_an_independent_signature_verifies_too(alg: str) -> None:
    key = KEYS[alg]
    assert verify_with(forge(header_of(key), CLAIMS, signer(key)), key) == CLAIMS


@pytest.mark.parametrize("alg", SIGNING_ALGORITHMS)
def test_a_changed_bit_anywhere_is_refused(alg: str) -> None:
    key = KEYS[alg]
    protected, payload, signature = key.sign("at+jwt", CLAIMS).split(".")
    other = part({**CLAIMS, "n": 2})
    assert reason_of(f"{protected}.{other}.{signature}", key) == "signature does not match"
    changed = ("B" if signature[0] != "B" else "C") + signature[1:]
    assert reason_of(f"{protected}.{payload}.{changed}", key) == "signature does not match"
    renamed = part(header_of(key, typ="JWT"))
    assert reason_of(f"{renamed}.{payload}.{signature}", key) == "signature does not match"


@pytest.mark.parametrize("alg", SIGNING_ALGORITHMS)
def test_another_key_of_the_same_type_verifies_nothing(alg: str) -> None:
    token = KEYS[alg].sign("at+jwt", CLAIMS)
    assert reason_of(token, replace(SigningKey.generate(alg), kid=KEYS[alg].kid)) == "signature does not match"


def test_a_key_verifies_only_its_own_algorithm() -> None:
    """RFC 8725 3.1."""
    for alg, key in KEYS.items():
        for other in KEYS.values():
            if other.alg != alg:
                assert reason_of(other.sign("at+jwt", CLAIMS), key) == "algorithm does not match the key"


@pytest.mark.parametrize("alg", SIGNING_ALGORITHMS)
def test_a_private_key_survives_a_round_trip(alg: str) -> None:
    key = KEYS[alg]
    read = SigningKey.from_private_jwk(alg, key.private_jwk())
    assert (read.kid, read.alg, read.public_jwk()) == (key.kid, alg, key.public_jwk())
    assert verify_with(read.sign("at+jwt", CLAIMS), key) == CLAIMS


@pytest.mark.parametrize("alg", SIGNING_ALGORITHMS)
def test_a_key_in_pem_signs_without_a_kid(alg: str) -> None:
    key = KEYS[alg]
    token = SigningKey.from_private_pem(alg, key.private_pem()).sign("JWT", CLAIMS)
    assert read_header(token) == Header(alg=alg, kid=None, typ="JWT")
    assert verify_with(token, key) == CLAIMS


@pytest.mark.parametrize(
    ("alg", "document"),
    [
        ("ES256", b""),
        ("ES256", b"not PEM"),
        ("ES256", KEYS["RS256"].private_pem()),
        ("ES256", ES256.key.as_pem(private=False)),
        ("ES256", ECKey.generate_key("P-384").as_pem(private=True)),
        ("HS256", ES256.private_pem()),
    ],
    ids=["nothing", "text", "another-type", "public", "another-curve", "symmetric-algorithm"],
)
def test_a_pem_document_that_is_not_a_private_key_is_refused(alg: str, document: bytes) -> None:
    SigningKey.from_private_pem("ES256", ES256.private_pem())
    with pytest.raises(InvalidKeySet):
        SigningKey.from_private_pem(alg, document)


@pytest.mark.parametrize("alg", SIGNING_ALGORITHMS)
def test_the_public_half_contains_no_private_member(alg: str) -> None:
    public = KEYS[alg].public_jwk()
    assert public.keys() <= {"kty", "crv", "x", "y", "n", "e", "kid", "alg", "use"}
    assert (public["kid"], public["alg"], public["use"]) == (KEYS[alg].kid, alg, "sig")


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"not json",
        json.dumps(ES256.public_jwk()).encode(),
        KEYS["RS256"].private_jwk(),
        json.dumps(ECKey.generate_key("P-384").as_dict(private=True)).encode(),
        SYMMETRIC,
    ],
    ids=["nothing", "null", "list", "object", "text", "public", "another-type", "another-curve", "symmetric"],
)
def test_a_document_that_is_not_a_private_key_is_refused(document: bytes) -> None:
    SigningKey.from_private_jwk("ES256", ES256.private_jwk())
    with pytest.raises(InvalidKeySet):
        SigningKey.from_private_jwk("ES256", document)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        *(({"alg": alg}, "algorithm not allowed") for alg in ("none", "None", "HS256", "es256", "ES384", "dir", "")),
        ({"alg": None}, "algorithm not allowed"),
        ({"alg": ["ES256"]}, "algorithm not allowed"),
        *(
            ({name: value}, f"header member refused: {name}")
            for name, value in {
                "crit": ["exp"],
                "jku": "https://evil.example",
                "jwk": {"kty": "EC"},
                "x5u": "https://evil.example",
                "x5c": ["MIIB"],
                "b64": False,
                "zip": "DEF",
            }.items()
        ),
        ({"x-secret-name": 1}, "header member refused: unknown"),
        ({"kid": 7}, "kid is not a string of 1 to 128 characters"),
        ({"kid": ""}, "kid is not a string of 1 to 128 characters"),
        ({"kid": "k" * 129}, "kid is not a string of 1 to 128 characters"),
        ({"typ": 7}, "typ is not a string"),
    ],
    ids=str,
)
def test_a_header_with_missing_or_unknown_members_is_refused(header: dict[str, Any], reason: str) -> None:
    assert reason_of(forge(header_of(ES256, **header), CLAIMS, signer(ES256))) == reason


@pytest.mark.parametrize(
    ("member", "reason"), [("kid", "kid is not a string of 1 to 128 characters"), ("typ", "typ is not a string")]
)
def test_a_header_member_that_is_null_is_not_absent(member: str, reason: str) -> None:
    assert reason_of(forge({**header_of(ES256), member: None}, CLAIMS, signer(ES256))) == reason


def test_kid_and_typ_are_optional_and_a_kid_has_at_most_128_characters() -> None:
    assert read_header(forge({"alg": "ES256"}, CLAIMS, signer(ES256))) == Header("ES256", None, None)
    assert read_header(forge(header_of(ES256, kid="k" * 128), CLAIMS, signer(ES256))).kid == "k" * 128


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"not json", "header: The text is not valid JSON."),
        (b'{"alg":"ES256","alg":"ES256"}', "header: An object has the same member twice."),
        (b'{"alg":"ES256","kid":NaN}', "header: The text is not valid JSON."),
        (b"\xff", "header: The text is not valid UTF-8."),
        (b'["ES256"]', "header is not an object"),
        (b"null", "header is not an object"),
    ],
)
def test_a_header_is_one_strict_json_object(document: bytes, reason: str) -> None:
    assert reason_of(forge(document, CLAIMS, signer(ES256))) == reason


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b'{"a":1,"a":1}', "claims: An object has the same member twice."),
        (b'{"a":NaN}', "claims: The text is not valid JSON."),
        (b"[]", "claims are not an object"),
        (b"text", "claims: The text is not valid JSON."),
    ],
)
def test_signed_claims_are_one_strict_json_object(payload: bytes, reason: str) -> None:
    assert reason_of(forge(header_of(ES256), payload, signer(ES256))) == reason


def test_claims_are_not_read_before_the_signature_is_verified() -> None:
    token = forge(header_of(ES256), b"not json", lambda _: bytes(64))
    assert reason_of(token) == "signature does not match"


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "a.b", "a.b.", ".b.c", "a..c", "a.b.c.d", "a.b.c\n", " a.b.c", "a.b.c=", "a+.b.c", "ä.b.c"],
    ids=repr,
)
def test_a_text_that_is_not_three_base64url_segments_is_refused(token: str) -> None:
    """RFC 7515 7.1."""
    assert reason_of(token) == "not a compact JWS"


def test_a_token_has_at_most_8192_characters() -> None:
    """The length is checked first; no part of a longer token is decoded."""
    unread = "a" * 8188 + ".b.c"
    assert reason_of(unread) != "longer than 8 KiB"
    assert reason_of("a" + unread) == "longer than 8 KiB"
    assert reason_of("ä" * 8193) == "longer than 8 KiB"


@pytest.mark.parametrize("index", [0, 1, 2], ids=["header", "payload", "signature"])
def test_a_segment_has_one_encoding(index: int) -> None:
    """RFC 4648 3.5: unused bits must be zero. A segment of 4n+1 characters is not base64."""
    segments = forge(header_of(ES256, typ="at"), b'{"a":12}', signer(ES256)).split(".")
    assert verify_with(".".join(segments), ES256) == {"a": 12}
    respelled = {"A": "B", "E": "F", "I": "J", "M": "N", "Q": "R", "U": "V", "Y": "Z", "c": "d", "g": "h", "k": "l"}
    respelled |= {"o": "p", "s": "t", "w": "x", "0": "1", "4": "5", "8": "9"}
    if len(segments[index]) % 4:
        changed = [*segments]
        changed[index] = segments[index][:-1] + respelled[segments[index][-1]]
        assert reason_of(".".join(changed)) == "a segment is not canonical base64url"
    segments[index] = segments[index][: len(segments[index]) // 4 * 4] + "A"
    assert reason_of(".".join(segments)) == "a segment is not base64url"


def test_a_key_set_maps_kids_to_keys_with_thumbprints() -> None:
    keys = parse_key_set(key_set(*(key.public_jwk() for key in KEYS.values())))
    assert {key.alg: kid for kid, key in keys.items()} == {alg: key.kid for alg, key in KEYS.items()}
    renamed = parse_key_set(key_set({**ES256.public_jwk(), "kid": "renamed"}))["renamed"]
    assert renamed.thumbprint == keys[ES256.kid].thumbprint == ES256.kid


WEAK_RSA = {"kty": "RSA", "e": "AQAB", "n": encode(((1 << 1023) + 1).to_bytes(128, "big"))}
PASSED_OVER = {
    "for-encryption": {"use": "enc"},
    "without-kid": {"kid": None},
    "empty-kid": {"kid": ""},
    "long-kid": {"kid": "k" * 129},
    "a-number-as-kid": {"kid": 7},
    "without-alg": {"alg": None},
    "an-unknown-alg": {"alg": "ES256K"},
    "an-hmac-alg": {"alg": "HS256"},
    "an-alg-of-another-type": {"alg": "RS256"},
    "another-curve": {"crv": "P-384"},
    "no-curve": {"crv": None},
    "an-unknown-type": {"kty": "AKP"},
    "a-point-off-the-curve": {"x": encode(bytes(31) + b"\1")},
    "a-short-coordinate": {"x": "AQ"},
    "coordinates-that-are-no-text": {"x": 1, "y": []},
    "coordinates-that-are-no-base64": {"x": "ä", "y": "\x00"},
}


@pytest.mark.parametrize("changes", PASSED_OVER.values(), ids=PASSED_OVER)
def test_an_unusable_key_is_skipped(changes: dict[str, Any]) -> None:
    """RFC 7517 5: keys that are not understood should be ignored."""
    other = SigningKey.generate("ES256").public_jwk()
    unusable = {name: value for name, value in {**other, **changes}.items() if value is not None}
    assert parse_key_set(key_set(unusable, ES256.public_jwk())).keys() == {ES256.kid}
    with pytest.raises(InvalidKeySet, match="no usable key"):
        parse_key_set(key_set(unusable))


@pytest.mark.filterwarnings("ignore:Key size should be")
def test_an_rsa_key_of_less_than_2048_bits_is_skipped() -> None:
    """RFC 7518 3.3."""
    with pytest.raises(InvalidKeySet, match="no usable key"):
        parse_key_set(key_set({**WEAK_RSA, "kid": "weak", "alg": "RS256", "use": "sig"}))


@pytest.mark.parametrize("modulus", ["A", "n\u00e4", "AQAB=", 65537, None], ids=repr)
def test_an_rsa_key_whose_modulus_is_not_base64url_is_skipped(modulus: Any) -> None:
    jwk = KEYS["RS256"].public_jwk()
    assert parse_key_set(key_set(jwk)).keys() == {KEYS["RS256"].kid}
    with pytest.raises(InvalidKeySet, match="no usable key"):
        parse_key_set(key_set({**jwk, "n": modulus}))


@pytest.mark.threat("T-019")
@pytest.mark.parametrize(
    ("document", "message"),
    [
        pytest.param(b"", "the document is empty", id="nothing"),
        pytest.param(b"<html>", "not valid JSON", id="html"),
        pytest.param(b"[]", "not an object", id="a-list"),
        pytest.param(b"{}", "no member 'keys'", id="no-keys-member"),
        pytest.param(json.dumps(ES256.public_jwk()).encode(), "one key, and not a set", id="one-key"),
        pytest.param(b'{"keys": {}}', "not a list", id="keys-is-an-object"),
        pytest.param(key_set(), "no usable key", id="no-keys"),
        pytest.param(key_set(*[{}] * 65), "at most 64", id="65-keys"),
        pytest.param(b'{"keys": [], "keys": []}', "twice", id="keys-twice"),
        pytest.param(key_set("text"), "key 1 is not an object", id="a-string-as-key"),
        pytest.param(key_set({"kty": "oct", "k": "c2VjcmV0"}), "private or symmetric", id="symmetric"),
        pytest.param(key_set({"kty": "oct"}), "private or symmetric", id="symmetric-without-k"),
        *(
            pytest.param(key_set({**ES256.public_jwk(), name: "AQ"}), "private or symmetric", id=f"private-{name}")
            for name in ("d", "p", "q", "dp", "dq", "qi", "oth", "k")
        ),
        pytest.param(key_set(ES256.public_jwk(), ES256.public_jwk()), "one kid twice", id="one-key-twice"),
        pytest.param(
            key_set(ES256.public_jwk(), {**KEYS["RS256"].public_jwk(), "kid": ES256.kid}),
            "one kid twice",
            id="one-kid-for-two-types",
        ),
    ],
)
def test_an_invalid_key_set_is_refused_as_a_whole(document: bytes, message: str) -> None:
    with pytest.raises(InvalidKeySet, match=message) as refusal:
        parse_key_set(document)
    assert "c2VjcmV0" not in str(refusal.value)


def test_a_set_of_64_keys_is_read() -> None:
    jwks = [{**ES256.public_jwk(), "kid": f"k{number}"} for number in range(64)]
    assert len(parse_key_set(key_set(*jwks))) == 64
