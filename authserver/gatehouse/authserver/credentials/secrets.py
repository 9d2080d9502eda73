"""Secrets: 256 random bits, shown once, stored as HMAC-SHA-256 under a pepper.

A slow password hash protects passwords that can be guessed. These cannot, and such a hash would limit the token
endpoint to some tens of requests a second (docs/decisions/0003-client-secrets.md).
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gatehouse.authserver.credentials.lifecycle import NEVER_EXPIRES, Lifetime

PREFIX = "gths_"
"""Starts every client secret, so that scanners recognise one in a repository, a log or a message."""

MAX_ACTIVE = 2
"""Secrets of one client that are active at once."""

MAX_INACTIVE = 2
"""Inactive secrets of one client that are kept, so that their use can be told from that of a wrong secret."""

EXAMINED = MAX_ACTIVE + MAX_INACTIVE
"""Comparisons at every check, for every client: the work does not reveal how many secrets there are."""

_PREFIX_LENGTH = len(PREFIX) + 4
_NO_DIGEST = bytes(32)


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """What is stored of a secret."""

    pepper_id: str
    digest: bytes = field(repr=False)
    secret_id: str = ""
    lifetime: Lifetime = NEVER_EXPIRES


_PADDING = [StoredSecret("", b"\xff" * 32)] * EXAMINED
"""Compared with _NO_DIGEST, in place of the secrets that a client does not have."""


def generate_secret(prefix: str = PREFIX) -> str:
    """Return a new secret of 256 random bits."""
    return prefix + secrets.token_urlsafe(32)


def secret_prefix(secret: str) -> str:
    """Return the start of a secret, by which an admin can tell two of them apart."""
    return secret[:_PREFIX_LENGTH]


def digest(pepper: bytes, secret: str) -> bytes:
    """Return the 32 bytes that are stored of a secret."""
    return hmac.digest(pepper, secret.encode(), hashlib.sha256)


def find_secret(secret: str, stored: Sequence[StoredSecret], peppers: Mapping[str, bytes]) -> StoredSecret | None:
    """Return the first of the first EXAMINED stored secrets that a secret matches; None if it matches none.

    The work is the same for every secret and every client, known or not: a digest for each pepper, and EXAMINED
    comparisons.
    """
    computed = {pepper_id: digest(pepper, secret) for pepper_id, pepper in peppers.items()}
    found = None
    for candidate in [*stored, *_PADDING][:EXAMINED]:
        matches = hmac.compare_digest(computed.get(candidate.pepper_id, _NO_DIGEST), candidate.digest)
        # The pepper of a stored secret may be gone. Nothing matches that secret then, even if its digest is all zeros.
        if matches and candidate.pepper_id in computed and found is None:
            found = candidate
    return found
