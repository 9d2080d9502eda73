"""`GET /.well-known/oauth-authorization-server` (RFC 8414)."""

from gatehouse.authserver.clients.registry import AUTH_METHODS
from gatehouse.authserver.credentials.resource_credentials import AUTH_METHODS as RESOURCE_AUTH_METHODS
from gatehouse.authserver.endpoints.jwks import PATH as JWKS_PATH
from gatehouse.authserver.grants import client_credentials, jwt_bearer
from gatehouse.authserver.http import Request, Response, json_response
from gatehouse.authserver.workloads.registry import TrustedIssuers
from gatehouse.shared.protocol.jws import ALLOWED_ALGORITHMS
from gatehouse.shared.protocol.status_list import PATH as STATUS_LISTS

PATH = "/.well-known/oauth-authorization-server"


class MetadataEndpoint:
    """Answers with the server's metadata. It names only what works.

    Every URL comes from the configured issuer, never from the request. No request waits for the database.
    """

    def __init__(self, issuer: str) -> None:
        self._issuer = issuer
        self._response = self._respond(TrustedIssuers(()))

    async def __call__(self, _: Request) -> Response:
        """Answer one request."""
        return self._response

    def renew(self, trusted: TrustedIssuers) -> None:
        """Name the methods that these trusted issuers allow: for platform tokens, only while an issuer is trusted."""
        self._response = self._respond(trusted)

    def _respond(self, trusted: TrustedIssuers) -> Response:
        issuer = self._issuer
        methods = [*AUTH_METHODS, *(["spiffe_jwt"] if trusted.spiffe else [])]
        document = {
            "issuer": issuer,
            # Most MCP clients refuse a document without it. The endpoint itself refuses every request.
            "authorization_endpoint": f"{issuer}/authorize",
            "token_endpoint": f"{issuer}/token",
            "revocation_endpoint": f"{issuer}/revoke",
            "introspection_endpoint": f"{issuer}/introspect",
            "status_list_aggregation_endpoint": f"{issuer}{STATUS_LISTS}",
            "jwks_uri": f"{issuer}{JWKS_PATH}",
            "response_types_supported": [],
            "grant_types_supported": [
                client_credentials.GRANT_TYPE,
                *([jwt_bearer.GRANT_TYPE] if trusted.any else []),
            ],
            # `none` is for the JWT bearer grant, whose assertion identifies the client.
            "token_endpoint_auth_methods_supported": [*methods, *(["none"] if trusted.any else [])],
            "token_endpoint_auth_signing_alg_values_supported": sorted(ALLOWED_ALGORITHMS),
            "revocation_endpoint_auth_methods_supported": methods,
            "revocation_endpoint_auth_signing_alg_values_supported": sorted(ALLOWED_ALGORITHMS),
            "introspection_endpoint_auth_methods_supported": list(RESOURCE_AUTH_METHODS),
        }
        return json_response(document, headers={"Cache-Control": "public, max-age=300"})
