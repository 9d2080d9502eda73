"""ES256 compared with the implementation in joserfc."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.errors import BadSignatureError
from support.forging import encode, header_of, part, signer

from gatehouse.shared.protocol.jws import InvalidToken, SigningKey, read_header, verify
from gatehouse.shared.protocol.key_sets import verification_keys

KEY = SigningKey.generate("ES256")
PUBLIC = verification_keys(KEY.public_jwk())[0]
CLAIMS = st.dictionaries(st.text(), st.text() | st.integers(-(2**63), 2**63) | st.booleans() | st.none(), max_size=4)
SIGNED = f"{part(header_of(KEY))}.{part({'sub': 'agent_1'})}"
SIGNATURE = signer(KEY)(SIGNED.encode())
R, S = int.from_bytes(SIGNATURE[:32]), int.from_bytes(SIGNATURE[32:])
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of P-256 (FIPS 186-4, D.1.2.3)."""


def verifies_here(signature: bytes) -> bool:
    token = f"{SIGNED}.{encode(signature)}"
    try:
        verify(token, read_header(token), PUBLIC)
    except InvalidToken as refusal:
        assert refusal.reason == "signature does not match"
        return False
    return True


def verifies_in_joserfc(signature: bytes) -> bool:
    try:
        jws.deserialize_compact(f"{SIGNED}.{encode(signature)}", PUBLIC.key, algorithms=["ES256"])
    except BadSignatureError:
        return False
    return True


@given(CLAIMS)
def test_joserfc_verifies_what_is_signed_here(claims: dict[str, object]) -> None:
    token = KEY.sign("at+jwt", claims)
    assert jws.deserialize_compact(token, PUBLIC.key, algorithms=["ES256"]).headers() == header_of(KEY)
    assert verify(token, read_header(token), PUBLIC) == claims


@given(st.text(st.characters(codec="ascii", categories=["L", "N"])))
def test_what_joserfc_signs_verifies_here(text: str) -> None:
    token = jws.serialize_compact(header_of(KEY), f'{{"sub": "{text}"}}', KEY.key, algorithms=["ES256"])
    assert verify(token, read_header(token), PUBLIC) == {"sub": text}


def numbers(r: int, s: int) -> bytes:
    return r.to_bytes(32) + s.to_bytes(32)


INVALID = {
    "one octet": b"\0",
    "one octet less": SIGNATURE[:-1],
    "one octet more": SIGNATURE + b"\0",
    "a zero octet before each number": b"\0" + SIGNATURE[:32] + b"\0" + SIGNATURE[32:],
    "DER": KEY.key.private_key.sign(SIGNED.encode(), ECDSA(SHA256())),
    "zeros": numbers(0, 0),
    "R is zero": numbers(0, S),
    "S is zero": numbers(R, 0),
    "R is the order": numbers(ORDER, S),
    "S is the order": numbers(R, ORDER),
    "all bits": b"\xff" * 64,
    "R and S exchanged": numbers(S, R),
}


@pytest.mark.parametrize("signature", INVALID.values(), ids=INVALID)
def test_a_malformed_or_wrong_signature_is_refused(signature: bytes) -> None:
    """RFC 7518 3.4."""
    assert verifies_here(SIGNATURE)
    assert not verifies_here(signature)
    assert not verifies_in_joserfc(signature)


CHANGED = st.integers(0, 511).map(lambda bit: numbers(*divmod(int.from_bytes(SIGNATURE) ^ 1 << bit, 2**256)))


@given(st.binary(min_size=1, max_size=140) | CHANGED | st.just(numbers(R, ORDER - S)))
def test_both_decide_alike_about_every_signature(signature: bytes) -> None:
    assert verifies_here(signature) == verifies_in_joserfc(signature)
