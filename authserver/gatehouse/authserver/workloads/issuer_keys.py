"""The key set of a trusted issuer: which of its keys verify platform tokens, and until when."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final

from gatehouse.authserver.workloads.kinds import KINDS
from gatehouse.shared.protocol.encoding import InvalidJson, parse_json
from gatehouse.shared.protocol.jws import InvalidKeySet, VerificationKey
from gatehouse.shared.protocol.key_sets import UnusableKey, read_public_jwks, verification_keys

MAX_LENGTH: Final = 64 * 1024
"""Bytes of a key set."""

REFRESH_INTERVAL: Final = 600
"""Seconds after which a key set is fetched again. A bundle of SPIFFE may name a shorter time."""

REFETCH_INTERVAL: Final = 60
"""Seconds after a fetch during which nothing causes another one, on any node: no failure, and no unknown `kid`."""

FETCH_LIMIT: Final = 10
"""Seconds that a fetch takes at most: 5 s for each of two documents."""

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
        raise InvalidKeySet("; ".join(["the set holds no usable key", *(unusable or ["'keys' is empty"])]))
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


def is_unsettled(attempted_at: int, fetched_at: int | None, failure: str | None) -> bool:
    """Tell whether the last fetch has no result: it is under way on some node, or the node was stopped."""
    return failure is None and (fetched_at or 0) < attempted_at


def is_fresh(now: float, fetched_at: int | None) -> bool:
    """Tell whether a key set that was fetched at a time may be used.

    A time that lies further ahead was written by a wrong clock: nobody knows how old the set is.
    """
    return fetched_at is not None and -REFETCH_INTERVAL <= now - fetched_at <= MAX_AGE


def is_under_way(now: float, attempted_at: int, fetched_at: int | None, failure: str | None) -> bool:
    """Tell whether a node fetches the keys now. While an issuer does not answer, this is not known, and False."""
    return is_unsettled(attempted_at, fetched_at, failure) and abs(now - attempted_at) < FETCH_LIMIT


def refresh_interval(bundle: bytes) -> int:
    """Return the seconds until a bundle of SPIFFE is fetched again (SPIFFE Trust Domain and Bundle 4.1.2).

    Its `spiffe_refresh_hint`, but at least REFETCH_INTERVAL and at most REFRESH_INTERVAL.
    """
    hint = _number(bundle, "spiffe_refresh_hint")
    return REFRESH_INTERVAL if hint is None else min(max(hint, REFETCH_INTERVAL), REFRESH_INTERVAL)


def check_sequence(bundle: bytes, stored: bytes) -> None:
    """Refuse a bundle of SPIFFE that is older than the stored one, as from a cache or a server that was left behind.

    `spiffe_sequence` grows with every change (SPIFFE Trust Domain and Bundle 4.1.1). A bundle without one is older
    than every bundle with one. Raises InvalidKeySet.
    """
    found, known = (_number(one, "spiffe_sequence") or 0 for one in (bundle, stored))
    if found < known:
        raise InvalidKeySet(f"its spiffe_sequence is {found}, lower than {known} of the last bundle")


def _number(bundle: bytes, name: str) -> int | None:
    """Return a member of a bundle that is a number; None if there is none."""
    try:
        read = parse_json(bundle)
    except InvalidJson:
        return None
    value = read.get(name) if isinstance(read, dict) else None
    return value if type(value) is int else None
