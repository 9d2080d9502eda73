"""The one error type of the bridge, and its messages: what happened, and how to fix it."""

import re
import shlex
from typing import Final, TypeGuard
from urllib.parse import urlsplit

import httpx2

from gatehouse.bridge.settings import BRIDGE, SettingNames
from gatehouse.shared.protocol.redaction import mask, printable
from gatehouse.shared.protocol.scopes import InvalidScopeSyntax, format_scope, parse_scope
from gatehouse.shared.service.remediation import grant_command
from gatehouse.shared.service.tls import certificate_problem

AUTHORIZATION_SERVER: Final = "authorization server"
MCP_SERVER: Final = "MCP server"

NOT_SENT: Final = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
"""Errors raised before the server received any part of the request."""

LONGEST_WAIT: Final = 12
"""Seconds that the bridge may keep a call waiting. After that, its caller is told to wait."""

_SECONDS = re.compile(r"[0-9]{1,6}", re.ASCII)
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


class BridgeError(Exception):
    """A request was rejected or got no usable response. The message is public and says how to fix it."""

    def __init__(self, message: str, *, temporary: bool = False, outcome_unknown: bool = False) -> None:
        """Create an error.

        Args:
            message: what happened, and what to do. Secrets and control characters are removed.
            temporary: the request was not executed, and a retry may succeed.
            outcome_unknown: the request was sent, and may or may not have been executed.
        """
        super().__init__(printable(mask(message)))
        self.temporary = temporary
        self.outcome_unknown = outcome_unknown


def unreachable(server: str, url: str, error: Exception, names: SettingNames = BRIDGE) -> BridgeError:
    """Return the error for a request that was not sent, or that an authorization server did not answer.

    Args:
        server: `AUTHORIZATION_SERVER` or `MCP_SERVER`.
        url: its address.
        error: what the HTTP client raised.
        names: names the setting of the trusted authorities.
    """
    if (problem := certificate_problem(error, urlsplit(url).netloc, names.ca_file)) is not None:
        return BridgeError(f"The TLS connection to the {server} failed: {problem}. Nothing was sent.")
    return BridgeError(
        f"The {server} at {url} does not respond ({type(error).__name__}). The request was not executed; try again"
        " later.",
        temporary=True,
    )


def no_response(url: str, reason: str) -> BridgeError:
    """Return the error for a request that was sent and got no usable response."""
    return BridgeError(
        f"No valid response from {url} ({reason}). The request may have been executed: check before you repeat it.",
        outcome_unknown=True,
    )


def retry_later(server: str, url: str, status: int, retry_after: str | None) -> BridgeError:
    """Return the error for status 429 (RFC 6585 section 4) or 503 (RFC 9110 section 15.6.4).

    `retry_after` is the value of the header Retry-After. If the MCP server asks for a longer wait than a call should
    have, the error is not temporary. That of a token request is, because the current token may still be valid.
    """
    wait = int(retry_after) if retry_after is not None and _SECONDS.fullmatch(retry_after) else 0
    then = f"wait {wait} s, then try again" if wait else "try again"
    return BridgeError(
        f"The {server} at {url} asks to retry later (status {status}). The request was not executed; {then}.",
        temporary=wait <= LONGEST_WAIT or server == AUTHORIZATION_SERVER,
    )


def redirected(url: str, status: int) -> BridgeError:
    """Return the error for a redirect: the token is for this URL only (RFC 8707 section 2)."""
    return BridgeError(
        f"The MCP server at {url} redirects to another URL (status {status}), which the bridge does not follow. Start"
        " the bridge with the URL that the server is registered with."
    )


def missing_scope(client_id: str, resource: str, needed: str | None, request_id: str | None) -> BridgeError:
    """Return the error for a client without the scopes that the server's challenge names.

    `client_id` is empty if only a platform token says who the client is.
    """
    try:
        scope = format_scope(parse_scope(needed or ""))
    except InvalidScopeSyntax:
        return BridgeError(
            f"This client is not allowed to do that. Ask the admin of {resource}.{_reference(request_id)}"
        )
    command = grant_command(client_id or "CLIENT_ID", resource, scope)
    return BridgeError(
        f"This client lacks the scope {scope}. Ask the admin to run `{command}`, then repeat the call."
        f"{_reference(request_id)}"
    )


def token_rejected(issuer: str, resource: str, request_id: str | None) -> BridgeError:
    """Return the error for a new token that the MCP server rejected."""
    return BridgeError(
        f"The MCP server {resource} rejected the token that {issuer} has just issued for it. Ask its admin whether the"
        f" server trusts this issuer, and whether the clocks of both are correct.{_reference(request_id)}"
    )


def token_refused(
    issuer: str, client_id: str, source: str, resource: str, scope: str, code: str, request_id: object
) -> BridgeError:
    """Return the error for a refused token request, by its error code (RFC 6749 section 5.2, RFC 8707 section 2).

    `client_id` is empty if only a platform token says who the client is, and `scope` if none was requested.
    """
    reference, audit = _reference(request_id), audit_command(client_id, request_id)
    match code:
        case "invalid_client":
            return BridgeError(
                f"The authorization server {issuer} did not accept the client {client_id} with the credential from"
                f" {source}. The credential may be wrong or replaced, or the client disabled or deleted. Ask the admin"
                f" to run `{audit}`, which names the reason."
            )
        case "invalid_scope" | "invalid_target" | "unauthorized_client":
            command = grant_command(client_id or "CLIENT_ID", resource, scope or "SCOPE")
            client = f"client {client_id}" if client_id else "client of this platform token"
            missing = f"is not granted {scope} at" if scope else "has no grants at"
            which = "" if client_id else f" `{audit}` names the client."
            return BridgeError(
                f"The {client} {missing} {resource}. The URL must be the one that the server is registered with, to"
                f" the last character: `authserver resource list` shows it. If it is, ask the admin to run `{command}`."
                f"{which or reference}"
            )
        case _:
            return BridgeError(
                f"The authorization server {issuer} refused to issue a token ({code}). Ask the admin to run"
                f" `{audit}`, which names the reason."
            )


def audit_command(client_id: str, request_id: object) -> str:
    """Return the command that shows the private reason of a refused token request, quoted for a shell.

    Args:
        client_id: the client; empty if unknown.
        request_id: that of the response. Anything that is not one is left out, and the command finds more requests.
    """
    if _is_request_id(request_id):
        selection = ["--request", request_id]
    else:
        selection = ["--client", client_id] if client_id else ["--action", "token.issue"]
    return shlex.join(["authserver", "audit", *selection])


def _is_request_id(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and _REQUEST_ID.fullmatch(value) is not None


def _reference(request_id: object) -> str:
    """Name the request, so that the admin finds the private reason in the audit log."""
    return f" (Request {request_id}.)" if _is_request_id(request_id) else ""
