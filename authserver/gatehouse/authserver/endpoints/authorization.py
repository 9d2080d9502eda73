"""`GET /authorize`: this server has no authorization-code grant, and this endpoint says so."""

from gatehouse.authserver.errors import OAuthError
from gatehouse.authserver.http import Request, Response


def authorization(_: Request) -> Response:
    """Refuse with 400 and never redirect: there is no registered redirect URI to trust (RFC 6749 4.1.2.1)."""
    raise OAuthError(
        "unsupported_response_type",
        "This server issues tokens to machines only: use grant_type=client_credentials at the token endpoint.",
    )
