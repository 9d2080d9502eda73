"""Client secrets: 256 random bits, shown once, kept as HMAC-SHA-256 under a pepper.

A slow password hash protects guessable passwords. These cannot be guessed, and the token endpoint would be held to
some tens of requests a second by it (docs/decisions/0003-client-secrets.md).
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gatehouse.authserver.credentials.lifecycle import ENDLESS, Lifetime

PREFIX = "gths_"
"""Lets a secret be recognised where it should not be: in a repository, a log, a message."""

MAX_LIVE = 2
"""Secrets of one client that are accepted at once."""

REMEMBERED = 2
"""Secrets that are over, and are kept to tell their use from that of a wrong one."""

EXAMINED = MAX_LIVE + REMEMBERED
"""Digests that are made at every check, whoever asks: nobody can tell by the work how many secrets there are."""

_HINT_LENGTH = len(PREFIX) + 4


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """What is kept of a secret."""

    pepper_id: str
    digest: bytes = field(repr=False)
    secret_id: str = ""
    lifetime: Lifetime = ENDLESS


def generate_secret(prefix: str = PREFIX) -> str:
    """Return a new secret of 256 random bits."""
    return prefix + secrets.token_urlsafe(32)


def secret_prefix(secret: str) -> str:
    """Return the beginning of a secret, by which an admin can tell two of them apart."""
    return secret[:_HINT_LENGTH]


def digest(pepper: bytes, secret: str) -> bytes:
    """Return the 32 bytes that are kept of a secret."""
    return hmac.digest(pepper, secret.encode(), hashlib.sha256)


def find(secret: str, stored: Sequence[StoredSecret], peppers: Mapping[str, bytes]) -> StoredSecret | None:
    """Return the first of the stored secrets, or of the first EXAMINED of them, that a secret is; None if it is none.

    The work is the same for any secret and any client, known or not: EXAMINED digests and comparisons.
    """
    found = None
    padding = [StoredSecret("", bytes(32))] * EXAMINED
    for candidate in [*stored, *padding][:EXAMINED]:
        pepper = peppers.get(candidate.pepper_id)
        computed = digest(pepper if pepper is not None else bytes(32), secret)
        # No digest is all zeros: a padding never matches, and neither does a secret whose pepper is gone.
        if hmac.compare_digest(computed, candidate.digest if pepper is not None else bytes(32)) and found is None:
            found = candidate
    return found
