"""`GET /authorize`: there is no authorization-code grant here, and this says so in place."""

from gatehouse.authserver.errors import OAuthError
from gatehouse.authserver.http import Request, Response
from gatehouse.authserver.refusals import refuse
from gatehouse.authserver.services import Services


def authorization(services: Services, request: Request) -> Response:
    """Answer 400 and never redirect: there is no registered redirect URI to trust (RFC 6749 4.1.2.1)."""
    error = OAuthError(
        "unsupported_response_type",
        "This server issues tokens to machines only: use grant_type=client_credentials at the token endpoint.",
    )
    return refuse(services.audit, request.request_id, error, target="/authorize")
