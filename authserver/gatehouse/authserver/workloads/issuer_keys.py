"""The key set of a trusted issuer: which of its keys verify platform tokens, and until when."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final

from gatehouse.authserver.workloads.kinds import KINDS
from gatehouse.shared.protocol.jws import InvalidKeySet, VerificationKey
from gatehouse.shared.protocol.key_sets import UnusableKey, read_public_jwks, verification_keys

MAX_LENGTH: Final = 64 * 1024
"""Bytes of a key set."""

REFRESH_INTERVAL: Final = 600
"""Seconds after which a key set is fetched again."""

REFETCH_INTERVAL: Final = 60
"""Seconds after a fetch during which an unknown `kid` causes no other one, on any node."""

MAX_AGE: Final = 24 * 3600
"""Seconds for which the last key set is used while the issuer does not answer."""

IssuerKeys = Mapping[str, tuple[VerificationKey, ...]]
"""The keys by `kid`, each once for every algorithm that it may verify."""


def parse_issuer_keys(
    document: bytes, kind: str, algorithms: Sequence[str], note_unused: Callable[[str], object] = lambda _: None
) -> IssuerKeys:
    """Read the key set of an issuer of a kind.

    Keys without a `kid`, for other purposes, for algorithms that the issuer may not use, or too weak are not used;
    `note_unused` gets the name of each and why. In a SPIFFE bundle, only keys whose `use` is `jwt-svid` are for tokens.

    Raises:
        InvalidKeySet: over 64 KiB, not a JWK set, with private or symmetric key material, one `kid` or key twice, or
            without a usable key.
    """
    if len(document) > MAX_LENGTH:
        raise InvalidKeySet(f"the key set is larger than {MAX_LENGTH // 1024} KiB")
    keys: dict[str, tuple[VerificationKey, ...]] = {}
    thumbprints: set[str] = set()
    unusable: list[str] = []
    for name, jwk in read_public_jwks(document).items():
        try:
            usable = _usable(jwk, kind, algorithms)
        except UnusableKey as error:
            unusable.append(f"{name}: {error}")
            continue
        kid, thumbprint = usable[0].kid, usable[0].thumbprint
        if kid in keys or thumbprint in thumbprints:
            raise InvalidKeySet(f"the set holds one kid or key twice: {name}")
        keys[kid] = usable
        thumbprints.add(thumbprint)
    if not keys:
        raise InvalidKeySet("; ".join(["the set holds no usable key", *unusable]))
    for reason in unusable:
        note_unused(reason)
    return keys


def _usable(jwk: Mapping[str, object], kind: str, algorithms: Sequence[str]) -> tuple[VerificationKey, ...]:
    """Return a key for each algorithm that it may verify. Raises UnusableKey."""
    if jwk.get("kid") is None:
        raise UnusableKey("it has no kid")
    if kind == "spiffe":
        if jwk.get("use") != "jwt-svid":
            raise UnusableKey("its use is not jwt-svid")
        jwk = {**jwk, "use": "sig"}
    usable = tuple(key for key in verification_keys(jwk) if key.alg in algorithms)
    if not usable:
        raise UnusableKey("its algorithm is not one that the issuer may use")
    return usable


@lru_cache(maxsize=256)
def parse_stored_keys(document: str, kind: str, algorithms: tuple[str, ...]) -> IssuerKeys:
    """Return the keys of a stored key set; none if it cannot be used, as after an upgrade with stricter rules."""
    try:
        return parse_issuer_keys(document.encode(), KINDS[kind].name, algorithms)
    except InvalidKeySet:
        return {}
