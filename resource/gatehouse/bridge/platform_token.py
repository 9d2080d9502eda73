"""The token that a platform issues to its workload: as it is sent, and what of it a message may name."""

import errno
import os
import re
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

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
    claims = _claims(token)
    audience = claims.get("aud") if claims is not None else None
    if isinstance(audience, list) and len(audience) == 1:
        audience = audience[0]
    return isinstance(audience, str) and audience in audiences


def describe(token: str) -> str:
    """Return who issued a token, to whom and for whom, as it says itself; empty if it cannot be read."""
    claims = _claims(token)
    if claims is None:
        return ""
    return f" (iss {_shown(claims, 'iss')}, sub {_shown(claims, 'sub')}, aud {_shown(claims, 'aud')})"


def _claims(token: str) -> dict[str, Any] | None:
    """Return what a token claims; None if it cannot be read."""
    try:
        claims = parse_json(decode_base64url(token.split(".")[1]))
    except (InvalidBase64url, InvalidJson, IndexError):
        return None
    return claims if isinstance(claims, dict) else None


def _shown(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name)
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return quoted(str(value)) if value is not None else "missing"
