"""The checks of a token whose signature is verified. Pure functions, without I/O.

The resource server and `authserver token inspect` share them, so that both always agree.
"""

import math
from collections.abc import Mapping
from typing import Any

from gatehouse.shared.protocol import jws
from gatehouse.shared.protocol.claims import MAX_LIFETIME, AccessClaims, InvalidClaims
from gatehouse.shared.protocol.clock import LEEWAY
from gatehouse.shared.protocol.redaction import quoted


def check_restrictions(claims: Mapping[str, Any]) -> None:
    """Refuse a token with a restriction that is not enforced here. Ignoring the restriction would lift it.

    Raises:
        InvalidClaims: `cnf` (RFC 7800) or `nbf` (RFC 7519 4.1.5) is among the claims.
    """
    if "cnf" in claims:
        raise InvalidClaims("the token is bound to a key (cnf), which cannot be checked here")
    if "nbf" in claims:
        raise InvalidClaims("the token has nbf, which this issuer does not set")


def check_issuer(claims: AccessClaims, issuer: str) -> None:
    """Compare the issuer exactly (RFC 9068 4). Raises InvalidClaims."""
    if claims.iss != issuer:
        raise InvalidClaims(f"iss is {quoted(claims.iss)}, not the trusted issuer", "issuer")


def foreign_issuer(token: str, issuer: str) -> str:
    """Return a remark about a token under an unknown key that does not claim to be from the trusted issuer.

    Raises:
        InvalidToken: the text is not a token.
    """
    iss = jws.read_unverified_claims(token).get("iss")
    return f"; unverified, its iss is {quoted(iss)}" if isinstance(iss, str) and iss != issuer else ""


def check_audience(claims: AccessClaims, resource: str) -> None:
    """Compare the audience exactly (RFC 9068 4; RFC 8707 2). Raises InvalidClaims."""
    if claims.aud != resource:
        raise InvalidClaims(f"aud is {quoted(claims.aud)}, not this resource", "audience")


def check_lifetime(claims: AccessClaims) -> None:
    """Refuse a token with a longer lifetime than is ever issued. Raises InvalidClaims."""
    if not 0 < claims.exp - claims.iat <= MAX_LIFETIME:
        raise InvalidClaims(f"the lifetime is {claims.exp - claims.iat} s; 1 to {MAX_LIFETIME} s are allowed")


def validity(claims: AccessClaims) -> tuple[int, int]:
    """Return when a token begins and ends to be valid, in seconds since the epoch, with the leeway at both ends."""
    return claims.iat - LEEWAY, claims.exp + LEEWAY


def check_time(claims: AccessClaims, now: float) -> None:
    """Check the time, in seconds since the epoch, with the leeway at both ends. Raises InvalidClaims."""
    begins, ends = validity(claims)
    if now >= ends:
        raise InvalidClaims(f"expired {math.floor(now - claims.exp)} s ago", "expired")
    if now < begins:
        raise InvalidClaims(f"issued {math.ceil(claims.iat - now)} s in the future", "not_yet_valid")
