"""Access tokens (RFC 9068)."""

from collections.abc import Callable
from dataclasses import dataclass, field

from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.errors import OAuthError
from gatehouse.authserver.grants.client_credentials import GrantedRequest
from gatehouse.authserver.tokens.status_indices import Index
from gatehouse.shared.protocol.claims import (
    ACCESS_TOKEN_TYPE,
    MAX_LIFETIME,
    MAX_TOKEN_LENGTH,
    AccessClaims,
    StatusReference,
)
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.protocol.status_list import list_uri


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A signed token and its claims."""

    access_token: str = field(repr=False)
    claims: AccessClaims
    scope: str
    """The `scope` claim as text."""


@dataclass(frozen=True, slots=True)
class TokenIssuer:
    """Issues the tokens of one issuer."""

    issuer: str
    default_ttl: int
    clock: Clock
    allocate_index: Callable[[Client], Index]
    """Returns a status list index that no other token has. Raises OAuthError if the client is disabled."""

    def issue(self, granted: GrantedRequest, key: SigningKey) -> IssuedToken:
        """Sign a token for a granted request.

        Raises:
            OAuthError: `invalid_scope` if the token would be longer than a resource server accepts;
                `invalid_client` if the client was disabled since it authenticated.
            SQLAlchemyError: no index can be allocated.
        """
        client = granted.client
        index = self.allocate_index(client)
        now = int(self.clock())
        claims = AccessClaims(
            iss=self.issuer,
            sub=client.client_id,
            client_id=client.client_id,
            aud=granted.resource,
            iat=now,
            exp=now + min(client.token_ttl or self.default_ttl, MAX_LIFETIME),
            jti=index.new_jti(),
            scope=granted.scope,
            static=client.claims,
            status=StatusReference(list_uri(self.issuer, index.list_id), index.idx),
        )
        payload = claims.to_json()
        token = key.sign(ACCESS_TOKEN_TYPE, payload)
        if len(token) > MAX_TOKEN_LENGTH:
            raise OAuthError("invalid_scope", "So many scopes do not fit into one token. Ask for fewer.")
        return IssuedToken(token, claims, payload["scope"])
