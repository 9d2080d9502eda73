"""Access tokens as RFC 9068 has them."""

import secrets
from dataclasses import dataclass, field

from gatehouse.authserver.errors import OAuthError
from gatehouse.authserver.grants.client_credentials import GrantedRequest
from gatehouse.shared.claims import ACCESS_TOKEN_TYPE, MAX_LIFETIME, MAX_TOKEN_LENGTH, AccessClaims
from gatehouse.shared.clock import Clock
from gatehouse.shared.jose import SigningKey


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A signed token and what it says."""

    access_token: str = field(repr=False)
    claims: AccessClaims


@dataclass(frozen=True, slots=True)
class TokenIssuer:
    """Issues tokens in the name of one issuer."""

    issuer: str
    default_ttl: int
    clock: Clock

    def issue(self, granted: GrantedRequest, key: SigningKey) -> IssuedToken:
        """Sign a token for a granted request.

        Raises:
            OAuthError: `invalid_scope` when the token would be longer than a resource server accepts.
        """
        client = granted.client
        now = int(self.clock())
        claims = AccessClaims(
            iss=self.issuer,
            sub=client.client_id,
            client_id=client.client_id,
            aud=granted.resource,
            iat=now,
            exp=now + min(client.token_ttl or self.default_ttl, MAX_LIFETIME),
            jti=secrets.token_urlsafe(16),
            scope=granted.scope,
            static=client.claims,
        )
        token = key.sign(ACCESS_TOKEN_TYPE, claims.to_json())
        if len(token) > MAX_TOKEN_LENGTH:
            raise OAuthError("invalid_scope", "So many scopes do not fit into one token. Ask for fewer.")
        return IssuedToken(token, claims)
