"""Is a token whose signature holds valid, here and now? Pure: what a resource server does, and an admin asks about.

One judge for both: a token that `authserver token inspect` calls good is one that the resource server takes.
"""

import math
from collections.abc import Mapping
from typing import Any

from gatehouse.shared.protocol import jws
from gatehouse.shared.protocol.claims import MAX_LIFETIME, AccessClaims, InvalidClaims
from gatehouse.shared.protocol.clock import LEEWAY
from gatehouse.shared.protocol.redaction import quoted


def check_restrictions(claims: Mapping[str, Any]) -> None:
    """Refuse what restricts a token in a way that is not enforced here: to ignore it would be to lift it.

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
        raise InvalidClaims(f"iss is {quoted(claims.iss)}, not the trusted issuer")


def foreign_issuer(token: str, issuer: str) -> str:
    """Return what to say of a token under no known key that does not even claim to be from the trusted issuer.

    Raises:
        InvalidToken: the text is no token.
    """
    iss = jws.read_unverified_claims(token).get("iss")
    return f"; unverified, its iss is {quoted(iss)}" if isinstance(iss, str) and iss != issuer else ""


def check_audience(claims: AccessClaims, resource: str) -> None:
    """Compare the audience exactly (RFC 9068 4; RFC 8707 2). Raises InvalidClaims."""
    if claims.aud != resource:
        raise InvalidClaims(f"aud is {quoted(claims.aud)}, not this resource")


def check_lifetime(claims: AccessClaims) -> None:
    """Refuse a token that lives for longer than any is issued for. Raises InvalidClaims."""
    if not 0 < claims.exp - claims.iat <= MAX_LIFETIME:
        raise InvalidClaims(f"lives for {claims.exp - claims.iat} s; 1 to {MAX_LIFETIME} s are allowed")


def check_time(claims: AccessClaims, now: float) -> None:
    """Judge the moment, in seconds since the epoch, with the leeway at both ends. Raises InvalidClaims."""
    if now >= claims.exp + LEEWAY:
        raise InvalidClaims(f"expired {math.floor(now - claims.exp)} s ago")
    if now < claims.iat - LEEWAY:
        raise InvalidClaims(f"issued {math.ceil(claims.iat - now)} s in the future")
