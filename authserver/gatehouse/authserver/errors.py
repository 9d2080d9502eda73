"""What a caller is told when it is refused, and the one place that renders it."""

from collections.abc import Mapping

from gatehouse.authserver.http import NO_STORE, Response, json_response
from gatehouse.shared.service.responses import RETRY_AFTER, UNAVAILABLE


class OAuthError(Exception):
    """A refusal (RFC 6749 5.2).

    `description` is public: constant text that says how to fix it and repeats nothing of the request. `reason` is for
    the operator and goes to log and audit only, and so does `remediation`: the command that would allow the request,
    or what its caller has to change, where `description` may not say so.
    """

    def __init__(
        self,
        error: str,
        description: str,
        *,
        reason: str | None = None,
        remediation: str | None = None,
        status: int = 400,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(error)
        self.error = error
        self.description = description
        self.reason = reason or description
        self.remediation = remediation
        self.status = status
        self.headers = dict(headers or {})


def invalid_request(description: str, *, status: int = 400) -> OAuthError:
    """Return the refusal of a malformed request (RFC 6749 5.2)."""
    return OAuthError("invalid_request", description, status=status)


def invalid_client(reason: str, remediation: str) -> OAuthError:
    """Return the one answer to every failed authentication, whatever failed (RFC 6749 5.2).

    It always asks for Basic, also of a client that used another method, so that the answer does not tell methods
    apart.
    """
    return OAuthError(
        "invalid_client",
        "Client authentication failed. Check the client_id, the credential and the client's registered method.",
        reason=reason,
        remediation=remediation,
        status=401,
        headers={"WWW-Authenticate": 'Basic realm="gatehouse", charset="UTF-8"'},
    )


def temporarily_unavailable(reason: str) -> OAuthError:
    """Return the refusal of a request that cannot be judged now; it is worth another try."""
    return OAuthError(
        "temporarily_unavailable",
        UNAVAILABLE,
        reason=reason,
        status=503,
        headers=RETRY_AFTER,
    )


def render(error: OAuthError, request_id: str) -> Response:
    """Return the response to a refused request."""
    content = {"error": error.error, "error_description": error.description, "request_id": request_id}
    return json_response(content, error.status, {**NO_STORE, **error.headers})
