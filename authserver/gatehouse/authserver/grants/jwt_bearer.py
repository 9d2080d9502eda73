"""The JWT bearer grant with a platform token (RFC 7523 2.1; MCP's workload identity extension, SEP-1933).

The token takes the place of client authentication: it identifies the client, and no other credential is sent. What is
granted then is the same as for client credentials.
"""

from typing import Final

from gatehouse.authserver.clients.assertions import read_jwt
from gatehouse.authserver.errors import OAuthError, invalid_grant, invalid_request
from gatehouse.authserver.http import Form, Request
from gatehouse.authserver.workloads.platform_token import PlatformCredentials, Presented

GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"

_CREDENTIALS = ("client_secret", "client_assertion", "client_assertion_type")


def read_grant_assertion(request: Request, form: Form) -> PlatformCredentials:
    """Read the platform token of a token request.

    Raises:
        OAuthError: `invalid_request` without an assertion or with client authentication, `invalid_grant` for an
            assertion that is malformed.
    """
    parameters = form.parameters
    if "authorization" in request.headers or any(name in parameters for name in _CREDENTIALS):
        raise invalid_request("Send no client authentication with this grant: the assertion identifies the client.")
    if "assertion" not in parameters:
        raise invalid_request("assertion is missing. Send the token that the platform issued to the workload.")
    try:
        header, claims = read_jwt(parameters["assertion"])
    except OAuthError as malformed:
        raise invalid_grant(malformed) from None
    return PlatformCredentials(
        parameters["assertion"], header, claims, Presented.GRANT, parameters.get("client_id", "")
    )
