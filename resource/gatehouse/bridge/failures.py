"""What keeps a request from being forwarded, in words for an assistant and the person it works for."""

import re
import shlex
import ssl

import httpx2

from gatehouse.shared.protocol.redaction import mask, printable
from gatehouse.shared.protocol.scopes import InvalidScopeSyntax, format_scope, parse_scope
from gatehouse.shared.service.remediation import grant_command

NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
"""Errors of a request that no server has seen."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


class Failure(Exception):
    """A request that was refused, or is not known to have arrived. The message is public and says how to fix it."""

    def __init__(self, message: str, *, temporary: bool = False, outcome_unknown: bool = False) -> None:
        """Make a failure.

        Args:
            message: what happened, and what to do.
            temporary: nothing was carried out, and another try may succeed.
            outcome_unknown: it was sent, and nobody can tell whether it was carried out.
        """
        super().__init__(printable(mask(message)))
        self.temporary = temporary
        self.outcome_unknown = outcome_unknown


def not_reached(server: str, url: str, error: Exception) -> Failure:
    """Return the failure of a request that was not sent, for the server's name and address."""
    if (problem := _tls_problem(error)) is not None:
        return Failure(
            f"The {server} at {url} cannot prove who it is: {problem}. Nothing was sent. If its certificate is from"
            " an authority of your own, name the authority's file in the variable SSL_CERT_FILE."
        )
    return Failure(
        f"The {server} at {url} does not answer ({type(error).__name__}). Nothing was carried out; try again later.",
        temporary=True,
    )


def broken_off(url: str, reason: str) -> Failure:
    """Return the failure of a request whose answer did not come."""
    return Failure(
        f"The connection to {url} broke before the answer came ({reason}). Whether the request was carried out is not"
        " known: look before you repeat it.",
        outcome_unknown=True,
    )


def lacks_scope(client_id: str, resource: str, needed: str | None, request_id: str | None) -> Failure:
    """Return the refusal of a client that lacks the scopes `needed`, as a challenge names them."""
    try:
        scope = format_scope(parse_scope(needed or ""))
    except InvalidScopeSyntax:
        return Failure(f"This client may not do that. Ask the admin of {resource}.{_reference(request_id)}")
    command = grant_command(client_id, resource, scope)
    return Failure(
        f"This client lacks the scope {scope}. Ask the admin to run `{command}`, then repeat the call."
        f"{_reference(request_id)}"
    )


def refused_token(issuer: str, resource: str, request_id: str | None) -> Failure:
    """Return the refusal of a token that was just issued."""
    return Failure(
        f"The MCP server {resource} refuses the token that {issuer} has just issued for it. Ask its admin whether it"
        f" trusts that issuer, and whether the clocks agree.{_reference(request_id)}"
    )


def refused_client(
    issuer: str, client_id: str, source: str, resource: str, code: str, request_id: str | None
) -> Failure:
    """Return the refusal of a token request, by the error code of RFC 6749 5.2 or RFC 8707 2."""
    reference = _reference(request_id)
    audit = shlex.join(["authserver", "audit", "--client", client_id])
    match code:
        case "invalid_client":
            return Failure(
                f"The authorization server {issuer} does not accept the client {client_id} with the credential from"
                f" {source}. The credential may be wrong or replaced, or the client disabled or deleted. Ask the admin"
                f" to run `{audit}`.{reference}"
            )
        case "invalid_scope" | "invalid_target" | "unauthorized_client":
            command = grant_command(client_id, resource, "SCOPE")
            return Failure(
                f"The client {client_id} may have nothing at {resource}. Ask the admin to run `{command}`."
                f" The URL must be the one that the server is registered with.{reference}"
            )
        case _:
            return Failure(
                f"The authorization server {issuer} refuses a token ({code}). Ask the admin to run"
                f" `{audit}`.{reference}"
            )


def busy(server: str, url: str, status: int) -> Failure:
    """Return the failure of a request that a server asks to send again later (RFC 9110 15.6.4; RFC 6585 4)."""
    return Failure(
        f"The {server} at {url} asks to come back later (status {status}). Nothing was carried out; try again.",
        temporary=True,
    )


def _reference(request_id: object) -> str:
    """Name the request for the admin, whose audit log has the private reason."""
    if not isinstance(request_id, str) or _REQUEST_ID.fullmatch(request_id) is None:
        return ""
    return f" (Request {request_id}.)"


def _tls_problem(error: BaseException | None) -> str | None:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message.rstrip(".")
        if isinstance(error, ssl.SSLError):
            return "no TLS"
        error = error.__cause__ or error.__context__
    return None
