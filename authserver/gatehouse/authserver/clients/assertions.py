"""`private_key_jwt`: a client proves who it is by a signed assertion (RFC 7523 2.2, 3; draft-ietf-oauth-rfc7523bis).

The audience is this issuer alone. An assertion for several, or for the token endpoint of a server that the client
mistook for ours, could be used at another one than it was made for (CVE-2025-27370, CVE-2025-27371).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gatehouse.authserver.clients.credentials import AssertionCredentials
from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.errors import OAuthError, invalid_client
from gatehouse.authserver.store.replay import ReplayStore
from gatehouse.shared import jose
from gatehouse.shared.clock import LEEWAY, Clock

MAX_LIFETIME = 300
"""Seconds from now that an assertion may be valid: so long, and the leeway, its use has to be remembered."""

MAX_JTI = 256
"""Characters."""

PURPOSE = "token_endpoint"

_TYPES = frozenset({None, "JWT", "client-authentication+jwt"})
"""Values of `typ`: none, the usual one, and that of rfc7523bis. An access token's is not among them."""


def _refuse(reason: str) -> OAuthError:
    return invalid_client(f"assertion: {reason}")


@dataclass(frozen=True, slots=True)
class AssertionVerifier:
    """Verifies assertions made for one issuer."""

    issuer: str
    clock: Clock
    replay: ReplayStore

    def verify(self, credentials: AssertionCredentials, client: Client) -> None:
        """Accept an assertion of a client, once.

        Raises:
            OAuthError: `invalid_client`; the private reason names the failed check.
        """
        if credentials.header.typ not in _TYPES:
            raise _refuse("typ is not that of a client assertion")
        claims = _verify_signature(credentials, client)
        self._check_parties(claims, client)
        expires_at = self._check_time(claims)
        jti = claims.get("jti")
        if not isinstance(jti, str) or not 0 < len(jti) <= MAX_JTI:
            raise _refuse(f"jti is not a string of 1 to {MAX_JTI} characters")
        # Last, because only an assertion that is good in all else may spend its jti.
        if not self.replay.spend(PURPOSE, client.client_id, jti, expires_at):
            raise _refuse("jti was used before")

    def _check_parties(self, claims: Mapping[str, Any], client: Client) -> None:
        if claims.get("iss") != client.client_id or claims.get("sub") != client.client_id:
            raise _refuse("iss and sub are not both the client")
        audiences = {self.issuer, f"{self.issuer}/"}
        if client.token_endpoint_audience:
            audiences.add(f"{self.issuer}/token")
        audience = claims.get("aud")
        if not isinstance(audience, str) or audience not in audiences:
            raise _refuse("aud is not this issuer, as one string")

    def _check_time(self, claims: Mapping[str, Any]) -> int:
        now = self.clock()
        expires_at = _numeric_date(claims, "exp")
        if expires_at is None:
            raise _refuse("exp is missing")
        if now >= expires_at + LEEWAY:
            raise _refuse("expired")
        if expires_at > now + MAX_LIFETIME + LEEWAY:
            raise _refuse(f"valid for longer than {MAX_LIFETIME} s from now")
        for name in ("iat", "nbf"):
            begin = _numeric_date(claims, name)
            if begin is not None and begin > now + LEEWAY:
                raise _refuse(f"{name} is in the future")
        return expires_at


def _verify_signature(credentials: AssertionCredentials, client: Client) -> dict[str, Any]:
    """Return the claims if one of the client's keys signed them; with a `kid`, only the key of that name is tried."""
    header = credentials.header
    named = [key for key in client.keys if header.kid in {None, key.kid}]
    fitting = [key for key in named if key.alg == header.alg]
    if not fitting:
        raise _refuse("the client has no key of that kid and algorithm")
    for key in fitting:
        try:
            return jose.verify(credentials.assertion, header, key)
        except jose.InvalidToken as error:
            reason = error.reason
    raise _refuse(reason)


def _numeric_date(claims: Mapping[str, Any], name: str) -> int | None:
    if name not in claims:
        return None
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise _refuse(f"{name} is not a whole number of seconds")
    return value
