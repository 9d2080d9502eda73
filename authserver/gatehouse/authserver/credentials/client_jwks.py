"""Clients' public keys as JWKs (private_key_jwt): parsed at registration, and turned into verification keys."""

import secrets
from typing import Any

from gatehouse.shared.protocol import base64url, strict_json
from gatehouse.shared.protocol.jws import (
    KEY_TYPES,
    InvalidKeySet,
    SigningKey,
    VerificationKey,
    is_public_jwk,
    verification_key,
)
from gatehouse.shared.protocol.public_keys import MAX_RSA_BITS, MIN_RSA_BITS

MAX_CLIENT_KEYS = 8
"""Keys per client: an old and a new one for each of a few hosts. An assertion without `kid` tries all of them."""

MAX_KEY_FILE = 64 * 1024
"""Bytes of a file that keys are registered from."""

_PUBLIC_MEMBERS = ("kty", "alg", "crv", "x", "y", "n", "e")


def parse_client_keys(document: bytes) -> list[dict[str, Any]]:
    """Read the public keys to register for a client: a JWK set (RFC 7517 5), or one JWK.

    Returns the JWKs in a normal form. A missing `kid` becomes the thumbprint. A missing `alg` stays missing: such a
    key may verify every algorithm of its type.

    Raises:
        InvalidKeySet: over 64 KiB, not JSON, private or symmetric material, a key that is not allowed or too weak,
            a repeated key, no key, or more than 8.
    """
    if len(document) > MAX_KEY_FILE:
        raise InvalidKeySet(f"the file is larger than {MAX_KEY_FILE // 1024} KiB")
    try:
        read = strict_json.loads(document)
    except strict_json.InvalidJson as error:
        raise InvalidKeySet(str(error)) from None
    jwks = read.get("keys", [read]) if isinstance(read, dict) else None
    if not isinstance(jwks, list) or not 0 < len(jwks) <= MAX_CLIENT_KEYS:
        raise InvalidKeySet(f"the file is not a JWK set of 1 to {MAX_CLIENT_KEYS} keys")
    normal = []
    for jwk in jwks:
        if not is_public_jwk(jwk):
            raise InvalidKeySet("the file holds private or symmetric key material; give the public keys only")
        keys = client_verification_keys(jwk)
        if not keys:
            raise InvalidKeySet(
                "a key is not allowed, or not for signatures; allowed are EC on P-256, OKP on Ed25519 but not of small "
                f"order, RSA of {MIN_RSA_BITS} to {MAX_RSA_BITS} bits with an odd exponent of 3 to 2^32"
            )
        kept = {name: jwk[name] for name in _PUBLIC_MEMBERS if name in jwk}
        normal.append({**kept, "kid": jwk.get("kid") or keys[0].thumbprint})
    if len({client_verification_keys(jwk)[0].thumbprint for jwk in normal}) != len(normal):
        raise InvalidKeySet("the file holds one key twice")
    return normal


def client_verification_keys(jwk: dict[str, Any]) -> list[VerificationKey]:
    """Return one verification key for each algorithm that a client's public JWK may verify; none if it is unusable."""
    kid = jwk.get("kid", "unnamed")
    algs = [jwk["alg"]] if "alg" in jwk else [alg for alg, key_type in KEY_TYPES.items() if key_type == jwk.get("kty")]
    keys = [verification_key({**jwk, "kid": kid, "alg": alg}) for alg in algs]
    return [key for key in keys if key is not None]


def decoy_key(alg: str) -> VerificationKey:
    """Return a key that belongs to nobody, for a verification that must fail and take the usual time.

    For RSA, the modulus is a random number: finding primes is slow, and the failing verification costs the same.
    """
    jwk = {"kid": "decoy", "alg": alg, "kty": KEY_TYPES[alg]}
    if jwk["kty"] == "RSA":
        modulus = secrets.randbits(MIN_RSA_BITS) | 1 << MIN_RSA_BITS - 1 | 1
        jwk |= {"n": base64url.encode(modulus.to_bytes(MIN_RSA_BITS // 8)), "e": "AQAB"}
    else:
        jwk |= SigningKey.generate(alg).public_jwk() | {"kid": "decoy"}
    return client_verification_keys(jwk)[0]
