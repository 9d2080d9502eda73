"""The token that a platform issues to its workload: as it is sent, and what of it a message may name."""

import errno
import os
import re
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from gatehouse.shared.protocol.claims import is_fractional_date
from gatehouse.shared.protocol.clock import iso_time
from gatehouse.shared.protocol.encoding import InvalidBase64url, InvalidJson, decode_base64url, parse_json
from gatehouse.shared.protocol.redaction import quoted

ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
"""RFC 7523 2.2. A JWT-SVID may have it, too."""

MAX_PLATFORM_TOKEN: Final = 16 * 1024
"""Bytes of a platform token."""

_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)


def is_compact_jwt(text: str) -> bool:
    """Tell whether a text has the form of a signed JWT (RFC 7515 7.1). Nothing in it is read."""
    return len(text) <= MAX_PLATFORM_TOKEN and _COMPACT.fullmatch(text) is not None


def read_token_file(path: Path) -> bytes:
    """Read at most MAX_PLATFORM_TOKEN + 1 bytes of a regular file.

    Links are followed, and others may read the file: kubelet mounts `token -> ..data/token` with mode 0644.

    Raises:
        OSError: it cannot be read, or is not a regular file.
    """
    # Without O_NONBLOCK, a named pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return os.read(descriptor, MAX_PLATFORM_TOKEN + 1)
    finally:
        os.close(descriptor)


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
    return quoted(", ".join(map(_shown_one, value))) if isinstance(value, list) else _shown_one(value)


def _shown_one(value: object) -> str:
    if isinstance(value, str):
        return f'"{quoted(value)}"' if not value or " " in value else quoted(value)
    return "missing" if value is None else "invalid"
