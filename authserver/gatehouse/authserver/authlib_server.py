"""The edge to Authlib: its grant registry and its RFC 9068 token generator, on its framework-free core.

Authlib finds the grant of a request and shapes the token response. What it would decide too loosely by default
(docs/divergences.md) is decided before it is asked, by types that carry the proof: it is handed a token that was
issued for a `GrantedRequest`, and can make neither.
"""

from collections.abc import Mapping
from typing import Any

from authlib.oauth2.rfc6749 import AuthorizationServer, ClientMixin, OAuth2Request
from authlib.oauth2.rfc6749.errors import UnsupportedGrantTypeError
from authlib.oauth2.rfc6749.grants import ClientCredentialsGrant
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc9068 import JWTBearerTokenGenerator

from gatehouse.authserver.errors import OAuthError, invalid_request
from gatehouse.authserver.grants.client_credentials import GRANT_TYPE, GrantedRequest
from gatehouse.authserver.tokens.issue import IssuedToken, TokenIssuer
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.protocol.scopes import format_scope


class _TokenHolder(ClientMixin):
    """A client as Authlib's generator sees it: what it may have is decided, and its token is issued."""

    def __init__(self, issued: IssuedToken) -> None:
        self.issued = issued

    def get_client_id(self) -> str:
        return self.issued.claims.client_id

    def get_allowed_scope(self, scope: str) -> str:
        return format_scope(self.issued.claims.scope)


class _IssuedTokenGenerator(JWTBearerTokenGenerator):
    """Shapes the response around a token whose every claim comes from the granted request.

    Authlib's own claims would take the client for the audience (RFC 8707 is a TODO there), live ten days, and read
    the system's clock.
    """

    def access_token_generator(self, client: _TokenHolder, grant_type: str, user: None, scope: str) -> str:
        return client.issued.access_token

    def _get_expires_in(self, client: _TokenHolder, grant_type: str) -> int:
        return client.issued.claims.exp - client.issued.claims.iat


class AuthlibServer(AuthorizationServer):
    """Authlib's server object with the grants that Gatehouse supports."""

    def __init__(self, tokens: TokenIssuer) -> None:
        super().__init__()
        self._token_endpoint = f"{tokens.issuer}/token"
        self.register_grant(ClientCredentialsGrant)
        self._tokens = tokens
        self.register_token_generator(GRANT_TYPE, _IssuedTokenGenerator(tokens.issuer))

    def find_grant(self, form: Mapping[str, str]) -> str:
        """Return the grant type of a token request.

        Raises:
            OAuthError: `invalid_request` without a grant type, `unsupported_grant_type` for another one.
        """
        if "grant_type" not in form:
            raise invalid_request("grant_type is missing. Send grant_type=client_credentials.")
        request = OAuth2Request("POST", self._token_endpoint)
        request.payload = BasicOAuth2Payload(form)
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
        issued = self._tokens.issue(granted, key)
        response: dict[str, Any] = self.generate_token(grant_type, _TokenHolder(issued), include_refresh_token=False)
        return response, issued
