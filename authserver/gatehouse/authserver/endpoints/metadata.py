"""`GET /.well-known/oauth-authorization-server` (RFC 8414)."""

from gatehouse.authserver.clients.registry import AUTH_METHODS
from gatehouse.authserver.credentials.resource_credentials import AUTH_METHODS as RESOURCE_AUTH_METHODS
from gatehouse.authserver.endpoints.jwks import PATH as JWKS_PATH
from gatehouse.authserver.grants.client_credentials import GRANT_TYPE
from gatehouse.authserver.http import Request, Response, json_response
from gatehouse.shared.protocol.jws import ALLOWED_ALGORITHMS
from gatehouse.shared.protocol.status_list import PATH as STATUS_LISTS

PATH = "/.well-known/oauth-authorization-server"


async def metadata(issuer: str, _: Request) -> Response:
    """Answer with the server's metadata. It names only what works.

    Every URL comes from the configured issuer, never from the request.
    """
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
        "grant_types_supported": [GRANT_TYPE],
        "token_endpoint_auth_methods_supported": list(AUTH_METHODS),
        "token_endpoint_auth_signing_alg_values_supported": sorted(ALLOWED_ALGORITHMS),
        "revocation_endpoint_auth_methods_supported": list(AUTH_METHODS),
        "revocation_endpoint_auth_signing_alg_values_supported": sorted(ALLOWED_ALGORITHMS),
        "introspection_endpoint_auth_methods_supported": list(RESOURCE_AUTH_METHODS),
    }
    return json_response(document, headers={"Cache-Control": "public, max-age=300"})
