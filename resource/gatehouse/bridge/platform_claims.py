"""What a platform token says of itself. Its holder cannot verify it, and a message may name a part of it only."""

from collections.abc import Collection, Mapping
from typing import Any

from gatehouse.shared.protocol.claims import is_fractional_date
from gatehouse.shared.protocol.clock import iso_time
from gatehouse.shared.protocol.encoding import InvalidBase64url, InvalidJson, decode_base64url, parse_json
from gatehouse.shared.protocol.redaction import as_word, quoted


def is_made_for(token: str, audiences: Collection[str]) -> bool:
    """Tell whether a token says that it is for one of some audiences, and for nobody else."""
    claims = read_claims(token)
    audience = only_audience(claims) if claims is not None else None
    return isinstance(audience, str) and audience in audiences


def only_audience(claims: Mapping[str, Any]) -> object:
    """Return the `aud` of a token: the only element of an array, otherwise the value as it is."""
    audience = claims.get("aud")
    return audience[0] if isinstance(audience, list) and len(audience) == 1 else audience


def describe(token: str) -> str:
    """Return who issued a token, to whom, for whom and until when, as it says itself; empty if it cannot be read.

    No other claim is repeated, because a platform may put anything into its tokens.
    """
    claims = read_claims(token)
    if claims is None:
        return ""
    expires_at = claims.get("exp")
    until = iso_time(expires_at) if is_fractional_date(expires_at) else _shown(expires_at)
    named = ", ".join(f"{name} {_shown(claims.get(name))}" for name in ("iss", "sub", "aud"))
    return f" ({named}, exp {until})"


def read_claims(token: str) -> dict[str, Any] | None:
    """Return what a token claims, which nobody has verified; None if it cannot be read."""
    try:
        claims = parse_json(decode_base64url(token.split(".")[1]))
    except (InvalidBase64url, InvalidJson, IndexError):
        return None
    return claims if isinstance(claims, dict) else None


def _shown(value: object) -> str:
    return quoted(" and ".join(map(_shown_one, value))) if isinstance(value, list) else _shown_one(value)


def _shown_one(value: object) -> str:
    if isinstance(value, str):
        return as_word(quoted(value))
    return "missing" if value is None else "invalid"
