"""The edge to Authlib: its grant registry and its RFC 9068 token generator, on its framework-free core.

Authlib finds the grant of a request and shapes the token response. What it would decide too loosely by default
(docs/divergences.md) is decided before it is asked, by types that carry the proof: it sees a client that is
authenticated, and a scope that is granted.
"""

from collections.abc import Mapping
from typing import Any

from authlib.oauth2.rfc6749 import AuthorizationServer, ClientMixin, OAuth2Request
from authlib.oauth2.rfc6749.errors import UnsupportedGrantTypeError
from authlib.oauth2.rfc6749.grants import ClientCredentialsGrant
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc9068 import JWTBearerTokenGenerator

from gatehouse.authserver.clients.authenticate import AuthenticatedClient
from gatehouse.authserver.errors import OAuthError, invalid_request
from gatehouse.authserver.grants.client_credentials import GRANT_TYPE, GrantedRequest
from gatehouse.authserver.tokens.issue import IssuedToken, TokenIssuer
from gatehouse.shared.jose import SigningKey
from gatehouse.shared.scopes import format_scope


class _GrantedClient(ClientMixin):
    """A granted request as Authlib's generator sees its client. Carries the issued token back."""

    def __init__(self, granted: GrantedRequest, key: SigningKey) -> None:
        self.granted = granted
        self.key = key
        self.issued: IssuedToken | None = None

    def get_client_id(self) -> str:
        return self.granted.client.client_id

    def get_allowed_scope(self, scope: str) -> str:
        return format_scope(self.granted.scope)


class _AccessTokenGenerator(JWTBearerTokenGenerator):
    """RFC 9068 tokens whose every claim comes from the granted request.

    Authlib's own claims would take the client for the audience (RFC 8707 is a TODO there), live ten days, and read
    the system's clock.
    """

    def __init__(self, tokens: TokenIssuer) -> None:
        super().__init__(tokens.issuer, expires_generator=self._expires_in)
        self._tokens = tokens

    def access_token_generator(self, client: _GrantedClient, grant_type: str, user: None, scope: str) -> str:
        client.issued = self._tokens.issue(client.granted, client.key)
        return client.issued.access_token

    @staticmethod
    def _expires_in(client: _GrantedClient, _grant_type: str) -> int:
        assert client.issued is not None  # noqa: S101 - Authlib makes the token first
        return client.issued.claims.exp - client.issued.claims.iat


class AuthlibServer(AuthorizationServer):
    """Authlib's server object with the grants that Gatehouse supports."""

    def __init__(self, tokens: TokenIssuer) -> None:
        super().__init__()
        self._token_endpoint = f"{tokens.issuer}/token"
        self.register_grant(ClientCredentialsGrant)
        self.register_token_generator(GRANT_TYPE, _AccessTokenGenerator(tokens))

    def find_grant(self, form: Mapping[str, str], client: AuthenticatedClient) -> str:
        """Return the grant type of a token request of an authenticated client.

        Raises:
            OAuthError: `invalid_request` without a grant type, `unsupported_grant_type` for another one.
        """
        if "grant_type" not in form:
            raise invalid_request("grant_type is missing. Send grant_type=client_credentials.")
        request = OAuth2Request("POST", self._token_endpoint)
        request.payload = BasicOAuth2Payload(form)
        request.client = client
        try:
            grant = self.get_token_grant(request)
        except UnsupportedGrantTypeError:
            raise OAuthError(
                "unsupported_grant_type", "This server knows one grant: send grant_type=client_credentials."
            ) from None
        return str(grant.GRANT_TYPE)

    def issue_token(
        self, grant_type: str, granted: GrantedRequest, key: SigningKey
    ) -> tuple[dict[str, Any], IssuedToken]:
        """Return the token response (RFC 6749 5.1) and the token in it."""
        client = _GrantedClient(granted, key)
        response: dict[str, Any] = self.generate_token(grant_type, client, include_refresh_token=False)
        assert client.issued is not None  # noqa: S101 - the generator set it
        return response, client.issued
