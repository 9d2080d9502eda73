"""The assertions that a client signs with its private key (RFC 7523 2.2 and 3)."""

import secrets
import time
from typing import Final

from gatehouse.shared.protocol.jws import SigningKey

_LIFETIME: Final = 60
"""Seconds. An assertion is sent immediately; the rest allows for clock differences."""


def sign_assertion(client_id: str, private_key: str, algorithm: str, audience: str) -> str:
    """Return a new assertion of a client for one authorization server.

    Args:
        client_id: the client, which is both issuer and subject.
        private_key: the key in PEM.
        algorithm: ES256, RS256 or EdDSA, which fits the key.
        audience: the issuer identifier of the authorization server.
    """
    now = int(time.time())
    claims = {
        "iss": client_id,
        "sub": client_id,
        "aud": audience,
        "iat": now,
        "exp": now + _LIFETIME,
        "jti": secrets.token_urlsafe(16),
    }
    return SigningKey.from_private_pem(algorithm, private_key.encode()).sign("JWT", claims)
