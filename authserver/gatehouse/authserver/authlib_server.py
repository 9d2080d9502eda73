"""The edge to Authlib: its grant registry, on its framework-free core (docs/decisions/0004-authlib-at-the-edge.md).

Authlib finds the grant of a token request. Authentication, resource, scope and claims are decided by this server:
Authlib's defaults accept too much there (docs/divergences.md).
"""

from collections.abc import Mapping
from functools import lru_cache

from authlib.oauth2.rfc6749 import AuthorizationServer, OAuth2Request
from authlib.oauth2.rfc6749.errors import UnsupportedGrantTypeError
from authlib.oauth2.rfc6749.grants import ClientCredentialsGrant
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc7523 import JWTBearerGrant

from gatehouse.authserver.errors import OAuthError, invalid_request


class AuthlibServer(AuthorizationServer):
    """Authlib's server object with the grants that Gatehouse supports."""

    def __init__(self, issuer: str) -> None:
        super().__init__()
        self._token_endpoint = f"{issuer}/token"
        # An exception is not remembered, so the cache holds registered grant types only.
        self._find_grant = lru_cache(self._ask_registry)
        self.register_grant(ClientCredentialsGrant)
        self.register_grant(JWTBearerGrant)

    def find_grant(self, form: Mapping[str, str]) -> str:
        """Return the grant type of a token request.

        Raises:
            OAuthError: `invalid_request` without a grant type, `unsupported_grant_type` for another one.
        """
        if "grant_type" not in form:
            raise invalid_request("grant_type is missing. Send grant_type=client_credentials.")
        try:
            return self._find_grant(form["grant_type"])
        except UnsupportedGrantTypeError:
            raise OAuthError(
                "unsupported_grant_type",
                "Send grant_type=client_credentials, or another of grant_types_supported.",
            ) from None

    def _ask_registry(self, grant_type: str) -> str:
        """Return the registered grant for a grant type. Raises UnsupportedGrantTypeError."""
        request = OAuth2Request("POST", self._token_endpoint)
        request.payload = BasicOAuth2Payload({"grant_type": grant_type})
        return str(self.get_token_grant(request).GRANT_TYPE)
