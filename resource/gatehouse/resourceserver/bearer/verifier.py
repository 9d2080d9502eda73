"""Decides whether an access token is valid (RFC 9068 section 4; RFC 8725).

A verified signature is cached by the token's digest, and bound to the key that signed it: it is valid until the token
expires or the key is removed from the set. Expiry and revocation are checked on every request.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cachetools import LRUCache

from gatehouse.resourceserver.bearer.jwks import KeySource
from gatehouse.resourceserver.bearer.refusal import Cause
from gatehouse.resourceserver.bearer.status import REVOKED, StatusLists
from gatehouse.shared.protocol import jws, token_validation
from gatehouse.shared.protocol.claims import ACCESS_TOKEN_TYPE, AccessClaims, InvalidClaims
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.service.metrics import UNCOUNTED, Counter

_NOT_ONE_TOKEN: Final = "not one bearer token"  # noqa: S105 - a reason
"""The reason if the request does not have exactly one bearer token, or its characters are not those of a token."""

CACHED_TOKENS = 4096
"""Tokens whose verified claims are kept in memory."""

_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
"""A bearer token (RFC 6750 section 2.1)."""


class TokenRefused(Exception):
    """The token is not valid here. `reason` is for the operator: the response says only that it is not valid.

    `cause` is for metrics. `claims` are set if the issuer signed the token. They name its client in the audit log.
    """

    def __init__(self, cause: Cause, reason: str, claims: AccessClaims | None = None) -> None:
        super().__init__(reason)
        self.cause = cause
        self.reason = reason
        self.claims = claims


@dataclass(frozen=True, slots=True)
class _Verified:
    claims: AccessClaims
    kid: str
    thumbprint: str
    begins: int
    ends: int
    """The first second at which the token is valid, and the first at which it no longer is."""


class Verifier:
    """Verifies tokens of one issuer for one resource."""

    def __init__(
        self,
        issuer: str,
        resource: str,
        keys: KeySource,
        statuses: StatusLists,
        clock: Clock,
        *,
        cache_size: int = CACHED_TOKENS,
        hits: Counter = UNCOUNTED,
        misses: Counter = UNCOUNTED,
    ) -> None:
        """Create the verifier. `hits` and `misses` count the tokens that its cache has, and does not have."""
        self._issuer = issuer
        self._resource = resource
        self._keys = keys
        self._statuses = statuses
        self._clock = clock
        self._cache: LRUCache[bytes, _Verified] = LRUCache(cache_size)
        self._hits = hits
        self._misses = misses

    async def verify(self, token: str) -> AccessClaims:
        """Return the claims of a valid token.

        Raises:
            TokenRefused: it is not valid.
            KeysUnavailable: no key of the issuer is known.
            StatusUnavailable: no recent status list is known, so it may have been revoked.
        """
        digest = hashlib.sha256(token.encode()).digest()
        cached = verified = self._cached(digest)
        if verified is None:
            self._misses.inc()
            verified = await self._verify_signature(token)
            self._check_identity(verified.claims)
        else:
            self._hits.inc()
        now = self._clock()
        try:
            if not verified.begins <= now < verified.ends:
                token_validation.check_time(verified.claims, now)
        except InvalidClaims as error:
            raise TokenRefused(Cause(error.cause), str(error), verified.claims) from None
        if cached is None:
            self._cache[digest] = verified
        # Last, as in section 8.3 of the draft, and on every request, because a cached token can be revoked.
        if (reason := await self._statuses.refusal(verified.claims.status)) is not None:
            cause = Cause.REVOKED if reason == REVOKED else Cause.STATUS
            raise TokenRefused(cause, reason, verified.claims)
        return verified.claims

    def _cached(self, digest: bytes) -> _Verified | None:
        verified = self._cache.get(digest)
        if verified is None:
            return None
        key = self._keys.keys.get(verified.kid)
        if key is None or key.thumbprint != verified.thumbprint:
            del self._cache[digest]
            return None
        return verified

    async def _verify_signature(self, token: str) -> _Verified:
        # Checked only here: a token in the cache has passed.
        if _TOKEN.fullmatch(token) is None:
            raise TokenRefused(Cause.MALFORMED_TOKEN, _NOT_ONE_TOKEN)
        try:
            header = jws.read_header(token)
            if header.typ != ACCESS_TOKEN_TYPE:
                raise TokenRefused(Cause.CLAIMS, "typ is not at+jwt")
            if header.kid is None:
                raise TokenRefused(Cause.UNKNOWN_KEY, "kid is missing")
            key = await self._keys.find(header.kid)
            if key is None:
                foreign = token_validation.foreign_issuer(token, self._issuer)
                raise TokenRefused(Cause.UNKNOWN_KEY, f"kid is not in the issuer's key set{foreign}")
            claims = jws.verify(token, header, key)
            token_validation.check_restrictions(claims)
            access = AccessClaims.from_json(claims)
            return _Verified(access, key.kid, key.thumbprint, *token_validation.validity(access))
        except (jws.InvalidToken, InvalidClaims) as error:
            raise TokenRefused(Cause(error.cause), str(error)) from None

    def _check_identity(self, claims: AccessClaims) -> None:
        try:
            token_validation.check_issuer(claims, self._issuer)
            token_validation.check_audience(claims, self._resource)
            token_validation.check_lifetime(claims)
        except InvalidClaims as error:
            raise TokenRefused(Cause(error.cause), str(error), claims) from None


def bearer_token(authorization: Sequence[bytes]) -> str:
    """Return the token of the only Authorization header (RFC 6750 section 2.1). Raises TokenRefused."""
    scheme, _, token = authorization[0].decode("latin-1").partition(" ")
    if len(authorization) != 1 or scheme.lower() != "bearer":
        raise TokenRefused(Cause.MALFORMED_TOKEN, _NOT_ONE_TOKEN)
    return token.strip(" ")
