"""Access tokens as RFC 9068 has them."""

from collections.abc import Callable
from dataclasses import dataclass, field

from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.errors import OAuthError
from gatehouse.authserver.grants.client_credentials import GrantedRequest
from gatehouse.authserver.tokens.indices import Index
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
    """A signed token and what it says."""

    access_token: str = field(repr=False)
    claims: AccessClaims
    scope: str
    """The `scope` claim as text."""


@dataclass(frozen=True, slots=True)
class TokenIssuer:
    """Issues tokens in the name of one issuer."""

    issuer: str
    default_ttl: int
    clock: Clock
    take_index: Callable[[Client], Index]
    """Returns an index of a status list that no other token has. Raises OAuthError for a client that is disabled."""

    def issue(self, granted: GrantedRequest, key: SigningKey) -> IssuedToken:
        """Sign a token for a granted request.

        Raises:
            OAuthError: `invalid_scope` when the token would be longer than a resource server accepts;
                `invalid_client` when the client was disabled since it authenticated.
            SQLAlchemyError: no index can be had.
        """
        client = granted.client
        index = self.take_index(client)
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
