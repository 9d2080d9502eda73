"""Client secrets: 256 random bits, shown once, kept as HMAC-SHA-256 under a pepper.

A slow password hash protects guessable passwords. These cannot be guessed, and the token endpoint would be held to
some tens of requests a second by it (docs/decisions/0003-client-secrets.md).
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

PREFIX = "gths_"
"""Lets a secret be recognised where it should not be: in a repository, a log, a message."""

MAX_SECRETS = 2
"""Digests that are made at every check, whoever asks. A client has one secret, because a rotation ends the old one
at once; the second digest is for an overlap that nobody could tell by the work."""

_HINT_LENGTH = len(PREFIX) + 4


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """What is kept of a secret."""

    pepper_id: str
    digest: bytes = field(repr=False)


def generate_secret(prefix: str = PREFIX) -> str:
    """Return a new secret of 256 random bits."""
    return prefix + secrets.token_urlsafe(32)


def hint(secret: str) -> str:
    """Return the beginning of a secret, by which an admin can tell two of them apart."""
    return secret[:_HINT_LENGTH]


def digest(pepper: bytes, secret: str) -> bytes:
    """Return the 32 bytes that are kept of a secret."""
    return hmac.digest(pepper, secret.encode(), hashlib.sha256)


def matches(secret: str, stored: Sequence[StoredSecret], peppers: Mapping[str, bytes]) -> bool:
    """Tell whether a secret is one of the stored ones.

    The work is the same for any secret and any client, known or not: MAX_SECRETS digests and comparisons.
    """
    found = False
    padding = [StoredSecret("", bytes(32))] * MAX_SECRETS
    for candidate in [*stored, *padding][:MAX_SECRETS]:
        pepper = peppers.get(candidate.pepper_id)
        computed = digest(pepper if pepper is not None else bytes(32), secret)
        # No digest is all zeros: a padding never matches, and neither does a secret whose pepper is gone.
        equal = hmac.compare_digest(computed, candidate.digest if pepper is not None else bytes(32))
        found |= equal
    return found
