"""The Python SDK's server: stateless, JSON responses, tokens verified with joserfc, on uvicorn with its fast parts.

Argument: JSON with port, issuer and resource.
"""

import json
import sys
import urllib.request

import uvicorn
from identity import Identity, identity_of
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken, TokenVerifier
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import MCPServer


class JoserfcVerifier(TokenVerifier):
    """Verifies access tokens with the issuer's published keys, fetched at the start."""

    def __init__(self, issuer: str, resource: str) -> None:
        with urllib.request.urlopen(f"{issuer}/.well-known/jwks.json") as response:
            self._keys = KeySet.import_key_set(json.load(response))
        self._claims = jwt.JWTClaimsRegistry(
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": resource},
            exp={"essential": True},
        )

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return what the token says, or None if it is not valid."""
        try:
            decoded = jwt.decode(token, self._keys, algorithms=["ES256"])
            self._claims.validate(decoded.claims)
        except JoseError:
            return None
        claims = decoded.claims
        return AccessToken(
            token=token,
            client_id=claims["client_id"],
            scopes=claims["scope"].split(),
            expires_at=claims["exp"],
            resource=claims["aud"],
            subject=claims["sub"],
            claims=claims,
        )


def main() -> None:
    """Serve until SIGTERM."""
    options = json.loads(sys.argv[1])
    server = MCPServer(
        "bench",
        token_verifier=JoserfcVerifier(options["issuer"], options["resource"]),
        auth=AuthSettings(
            issuer_url=options["issuer"],
            resource_server_url=options["resource"],
            validate_token_resource=True,
        ),
        log_level="WARNING",
    )

    @server.tool()
    async def whoami() -> Identity:
        """Return your identity: your client_id, the scopes and expiry of your token, and your workspace."""
        token = get_access_token()
        assert token is not None
        return identity_of(token.client_id, token.scopes, token.expires_at, token.claims or {})

    app = server.streamable_http_app(stateless_http=True, json_response=True)
    uvicorn.run(app, port=options["port"], loop="uvloop", http="httptools", access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
