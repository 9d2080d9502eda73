"""Tokens that no signer of ours would make, put together from bytes."""

import hashlib
import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from gatehouse.shared.protocol.jws import SigningKey

Sign = Callable[[bytes], bytes]
"""Given the signing input, returns the signature."""


def encode(data: bytes) -> str:
    """Return base64url without padding (RFC 7515 2)."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(segment: str) -> bytes:
    """Return the bytes that `encode` encoded."""
    return urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


def part(value: Any) -> str:
    """Return one segment of a token: bytes as they are, anything else as JSON."""
    return encode(value if isinstance(value, bytes) else json.dumps(value).encode())


def forge(header: Any, claims: Any, sign: Sign) -> str:
    """Return a compact JWS of any header and payload, signed in any way."""
    signing_input = f"{part(header)}.{part(claims)}"
    return f"{signing_input}.{encode(sign(signing_input.encode()))}"


def header_of(key: SigningKey, **changes: Any) -> dict[str, Any]:
    """Return the header of an honest access token with changes; a change to None removes the member."""
    members = {"alg": key.alg, "kid": key.kid, "typ": "at+jwt", **changes}
    return {name: value for name, value in members.items() if value is not None}


def signer(key: SigningKey, *, pss: bool = False) -> Sign:
    """Sign as RFC 7518 3.3 to 3.5 and RFC 8037 3.1 say, whatever is signed."""
    private_key: Any = key.key.private_key

    def sign(data: bytes) -> bytes:
        if isinstance(private_key, Ed25519PrivateKey):
            return private_key.sign(data)
        if isinstance(private_key, rsa.RSAPrivateKey):
            scheme = padding.PSS(padding.MGF1(SHA256()), 32) if pss else padding.PKCS1v15()
            return private_key.sign(data, scheme, SHA256())
        r, s = decode_dss_signature(private_key.sign(data, ec.ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    return sign


def hs256(secret: bytes) -> Sign:
    """Sign with HMAC-SHA-256 (RFC 7518 3.2)."""
    return lambda data: hmac.digest(secret, data, hashlib.sha256)
