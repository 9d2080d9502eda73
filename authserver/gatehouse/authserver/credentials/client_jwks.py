"""Clients' public keys as JWKs (private_key_jwt): parsed at registration, and turned into verification keys."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gatehouse.shared.protocol.encoding import encode_base64url
from gatehouse.shared.protocol.jws import KEY_TYPES, InvalidKeySet, SigningKey, VerificationKey
from gatehouse.shared.protocol.key_sets import ForeignKey, UnusableKey, read_public_jwks, verification_keys
from gatehouse.shared.protocol.public_keys import MIN_RSA_BITS

MAX_CLIENT_KEYS = 8
"""Keys per client: an old and a new one for each of a few hosts. An assertion without `kid` tries all of them."""

MAX_KEY_FILE = 64 * 1024
"""Bytes of a file that keys are registered from."""

_PUBLIC_MEMBERS = ("kty", "alg", "crv", "x", "y", "n", "e")


@dataclass(frozen=True, slots=True)
class ClientKeySet:
    """The keys of a file."""

    jwks: Sequence[dict[str, Any]]
    """The JWKs to register, in a normal form. A missing `kid` is the thumbprint. A missing `alg` stays missing: such a
    key may verify every algorithm of its type."""
    ignored: Sequence[str]
    """The keys that are for another purpose or of an unknown kind, each with the reason."""


def parse_client_keys(document: bytes) -> ClientKeySet:
    """Read the public keys to register for a client: a JWK set (RFC 7517 5), or one JWK.

    Raises:
        InvalidKeySet: over 64 KiB, not JSON, private or symmetric material, a malformed or weak key, a repeated key,
            no key for signatures, or more than 8. The message names the key and the reason.
    """
    if len(document) > MAX_KEY_FILE:
        raise InvalidKeySet(f"the file is larger than {MAX_KEY_FILE // 1024} KiB")
    jwks: list[dict[str, Any]] = []
    ignored: list[str] = []
    names: dict[str, str] = {}
    for name, jwk in read_public_jwks(document, or_one=True).items():
        try:
            key = verification_keys(jwk)[0]
        except ForeignKey as error:
            ignored.append(f"{name}: {error}")
            continue
        except UnusableKey as error:
            raise InvalidKeySet(f"{name}: {error}") from None
        if (first := names.setdefault(key.thumbprint, name)) != name:
            raise InvalidKeySet(f"the file holds one key twice: {first} and {name}")
        kept = {member: jwk[member] for member in _PUBLIC_MEMBERS if jwk.get(member) is not None}
        jwks.append({**kept, "kid": key.kid})
    if not 0 < len(jwks) <= MAX_CLIENT_KEYS:
        found = f"the file is not a JWK set of 1 to {MAX_CLIENT_KEYS} keys for signatures"
        raise InvalidKeySet("; ".join([found, *(f"ignored {one}" for one in ignored)]))
    return ClientKeySet(jwks, ignored)


def client_verification_keys(jwk: dict[str, Any]) -> list[VerificationKey]:
    """Return one verification key for each algorithm that a client's public JWK may verify; none if it is unusable."""
    try:
        return verification_keys(jwk)
    except UnusableKey:
        return []


def decoy_key(alg: str) -> VerificationKey:
    """Return a key that belongs to nobody, for a verification that must fail and take the usual time.

    For RSA, the modulus is a random number: finding primes is slow, and the failing verification costs the same.
    """
    jwk = {"kid": "decoy", "alg": alg, "kty": KEY_TYPES[alg]}
    if jwk["kty"] == "RSA":
        modulus = secrets.randbits(MIN_RSA_BITS) | 1 << MIN_RSA_BITS - 1 | 1
        jwk |= {"n": encode_base64url(modulus.to_bytes(MIN_RSA_BITS // 8)), "e": "AQAB"}
    else:
        jwk |= SigningKey.generate(alg).public_jwk() | {"kid": "decoy"}
    return client_verification_keys(jwk)[0]
