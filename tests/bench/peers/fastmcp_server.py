"""FastMCP's server: stateless, JSON responses, tokens verified with its JWTVerifier, on uvicorn with its fast parts.

Argument: JSON with port, issuer and resource.
"""

import json
import sys

import uvicorn
from fastmcp import FastMCP
from fastmcp.server.auth.providers.jwt import JWTVerifier
from fastmcp.server.dependencies import get_access_token
from identity import Identity, identity_of


def main() -> None:
    """Serve until SIGTERM."""
    options = json.loads(sys.argv[1])
    verifier = JWTVerifier(
        jwks_uri=f"{options['issuer']}/.well-known/jwks.json",
        issuer=options["issuer"],
        audience=options["resource"],
        algorithm="ES256",
    )
    server = FastMCP("bench", auth=verifier)

    @server.tool
    async def whoami() -> Identity:
        """Return your identity: your client_id, the scopes and expiry of your token, and your workspace."""
        token = get_access_token()
        assert token is not None
        return identity_of(token.client_id, token.scopes, token.expires_at, token.claims)

    app = server.http_app(path="/mcp", stateless_http=True, json_response=True)
    uvicorn.run(app, port=options["port"], loop="uvloop", http="httptools", access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
