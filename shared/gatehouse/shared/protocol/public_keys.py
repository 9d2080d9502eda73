"""Rejects weak public keys by their numbers, before a library parses them.

A key under which any signature verifies proves nothing about its holder, and a key that is slow to use lets an attacker
spend the verifier's time.
"""

from collections.abc import Mapping
from typing import Any

from gatehouse.shared.protocol.encoding import InvalidBase64url, decode_base64url

MIN_RSA_BITS = 2048
"""RFC 7518 3.3."""

MAX_RSA_BITS = 4096
"""The time of a verification grows with the square of the size, and anybody may ask for one."""

_MAX_RSA_EXPONENT = 2**32
"""The time of a verification grows with the exponent's length. NIST SP 800-56B allows 2^256; keys use 65537."""

_ED25519_PRIME = 2**255 - 19
_ED25519_ORDER_8 = (
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
)
_ED25519_SMALL_ORDER = frozenset(
    {0, 1, _ED25519_PRIME - 1, *(int.from_bytes(bytes.fromhex(text), "little") for text in _ED25519_ORDER_8)}
)
"""The y of every point whose order divides 8. Signing under such a key needs no private half: R = the identity and
S = 0 is a valid signature of one message in eight, or of all. RFC 8032 does not require the check ("Taming the Many
EdDSAs", 2020).
"""


def weakness(jwk: Mapping[str, Any]) -> str | None:
    """Return why someone without the private key could sign for a public JWK; None if nobody can.

    RSA: an odd modulus of 2048 to 4096 bits, an odd exponent from 3 to 2^32. Ed25519: a canonical y (RFC 8032 5.1.3)
    that is not of a point of small order. P-256: all points have one order, and the library checks that the point is
    on the curve.
    """
    if jwk.get("kty") == "RSA" and not _is_strong_rsa(jwk):
        return f"it is not an RSA key of {MIN_RSA_BITS} to {MAX_RSA_BITS} bits with an odd exponent from 3 to 2^32"
    if jwk.get("kty") == "OKP" and not _is_strong_ed25519(jwk):
        return "its x is not an Ed25519 point in canonical form, or one of small order"
    return None


def _is_strong_rsa(jwk: Mapping[str, Any]) -> bool:
    modulus, exponent = (int.from_bytes(_octets(jwk.get(name))) for name in ("n", "e"))
    if not MIN_RSA_BITS <= modulus.bit_length() <= MAX_RSA_BITS:
        return False
    return bool(modulus & exponent & 1) and 3 <= exponent <= _MAX_RSA_EXPONENT


def _is_strong_ed25519(jwk: Mapping[str, Any]) -> bool:
    octets = _octets(jwk.get("x"))
    y = int.from_bytes(octets, "little") & (2**255 - 1)  # the bit above is the sign of x
    return len(octets) == 32 and y < _ED25519_PRIME and y not in _ED25519_SMALL_ORDER


def _octets(member: object) -> bytes:
    """Return the bytes of a JWK member; none if it is not canonical base64url."""
    try:
        return decode_base64url(member) if isinstance(member, str) else b""
    except InvalidBase64url:
        return b""
