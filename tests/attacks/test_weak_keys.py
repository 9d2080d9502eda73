"""Weak or expensive public keys are neither registered nor used."""

from typing import Any

import pytest
from sqlalchemy import update
from support.assertions import KeyClient, jwks, public_jwk
from support.authserver import AuthServer
from support.forging import encode, forge

from gatehouse.authserver.credentials.client_jwks import parse_client_keys
from gatehouse.authserver.db.models import ClientKeyRow
from gatehouse.shared.protocol.jws import InvalidKeySet, SigningKey
from gatehouse.shared.protocol.key_sets import parse_key_set
from gatehouse.shared.service.administrator import CommandRefused

KEY, RSA_KEY, EDDSA_KEY = (SigningKey.generate(alg) for alg in ("ES256", "RS256", "EdDSA"))

PRIME = 2**255 - 19
ORDER_8 = [
    int.from_bytes(bytes.fromhex(y), "little")
    for y in (
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    )
]
SMALL_ORDER = [
    (y | sign << 255).to_bytes(32, "little")
    for y in (0, 1, PRIME - 1, PRIME, PRIME + 1, *ORDER_8)
    for sign in (False, True)
]
NOT_CANONICAL = [(PRIME + 3).to_bytes(32, "little"), b"\xff" * 32]
IDENTITY_SIGNATURE = b"\1" + bytes(63)
"""R = the identity, S = 0."""


def ed25519(point: bytes) -> dict[str, Any]:
    return public_jwk(EDDSA_KEY, x=encode(point), kid="weak")


def rsa(modulus: int, exponent: int = 65537) -> dict[str, Any]:
    def number(value: int) -> str:
        return encode(value.to_bytes((value.bit_length() + 7) // 8 or 1))

    return {"kty": "RSA", "kid": "weak", "alg": "RS256", "use": "sig", "n": number(modulus), "e": number(exponent)}


def modulus(bits: int) -> int:
    """Return a number of that many bits without small factors."""
    return (1 << bits - 1) + (int(RSA_KEY.key.as_dict()["n"].encode().hex(), 16) % (1 << bits - 2) | 1)


@pytest.mark.threat("T-010")
@pytest.mark.parametrize("point", [*SMALL_ORDER, *NOT_CANONICAL], ids=bytes.hex)
def test_a_small_order_or_non_canonical_ed25519_key_is_refused(point: bytes) -> None:
    """RFC 8032 5.1.3, 5.1.7; "Taming the Many EdDSAs" (2020): such a key verifies forged signatures."""
    assert parse_client_keys(jwks(public_jwk(EDDSA_KEY)))
    with pytest.raises(InvalidKeySet, match="small order"):
        parse_client_keys(jwks(ed25519(point)))
    issuers = parse_key_set(jwks(public_jwk(EDDSA_KEY), ed25519(point)))
    assert issuers.keys() == {EDDSA_KEY.kid}


@pytest.mark.threat("T-067")
def test_a_key_that_verifies_every_signature_cannot_be_registered(authserver: AuthServer) -> None:
    """RFC 8032 5.1.7."""
    KeyClient(authserver, EDDSA_KEY).accepted()
    with pytest.raises(CommandRefused, match="small order"):
        KeyClient(authserver, EDDSA_KEY, jwks(ed25519(SMALL_ORDER[2])))


@pytest.mark.threat("T-067")
def test_a_stored_key_that_verifies_every_signature_is_ignored(authserver: AuthServer) -> None:
    """With such a row, anyone could authenticate as the client without a private key."""
    KeyClient(authserver, EDDSA_KEY).accepted()
    client = KeyClient(authserver, SigningKey.generate("EdDSA"))
    with authserver.services.database.write() as session:
        row = ClientKeyRow.client_id == client.client.client_id
        session.execute(update(ClientKeyRow).values(jwk=ed25519(SMALL_ORDER[2])).where(row))
    forged = forge({"alg": "EdDSA", "typ": "JWT"}, client.claims(), lambda _: IDENTITY_SIGNATURE)
    client.refused(client.post(forged), "assertion: the client has no key of that kid and algorithm")


@pytest.mark.threat("T-010")
@pytest.mark.parametrize(
    "weak",
    [
        pytest.param(rsa(modulus(2047)), id="2047 bits"),
        pytest.param(rsa(modulus(4097)), id="4097 bits"),
        pytest.param(rsa(modulus(16384)), id="16384 bits"),
        pytest.param(rsa(modulus(2048) - 1), id="even modulus"),
        pytest.param(rsa(modulus(2048), 0), id="exponent 0"),
        pytest.param(rsa(modulus(2048), 1), id="exponent 1"),
        pytest.param(rsa(modulus(2048), 2), id="exponent 2"),
        pytest.param(rsa(modulus(2048), 65536), id="even exponent"),
        pytest.param(rsa(modulus(2048), 2**32 + 1), id="exponent over 2^32"),
        pytest.param(rsa(modulus(2048), modulus(2048) - 2), id="exponent as long as the modulus"),
        pytest.param({**rsa(modulus(2048)), "e": None}, id="no exponent"),
    ],
)
def test_a_weak_or_expensive_rsa_key_is_refused(weak: dict[str, Any]) -> None:
    """RFC 7518 3.3; RFC 8017 3.1 (exponents are odd and at least 3); CVE-2023-29409 (time to verify by large keys)."""
    for bits, exponent in ((2048, 3), (2048, 65537), (4096, 2**32 - 1)):
        assert parse_client_keys(jwks(rsa(modulus(bits), exponent)))
        assert parse_key_set(jwks(rsa(modulus(bits), exponent)))
    with pytest.raises(InvalidKeySet, match="2048 to 4096 bits"):
        parse_client_keys(jwks(weak))
    assert parse_key_set(jwks(public_jwk(KEY), weak)).keys() == {KEY.kid}


@pytest.mark.threat("T-067")
def test_a_client_has_at_most_8_keys_and_a_key_set_at_most_64() -> None:
    """Without `kid`, one request costs a verification for every key of the client (CWE-400)."""
    many = [SigningKey.generate("ES256").public_jwk() for _ in range(9)]
    assert len(parse_client_keys(jwks(*many[:8])).jwks) == 8
    with pytest.raises(InvalidKeySet, match="1 to 8 keys"):
        parse_client_keys(jwks(*many))
    assert len(parse_key_set(jwks(*many))) == 9
