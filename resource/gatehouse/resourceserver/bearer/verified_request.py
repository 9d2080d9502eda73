"""What the gate verified of a request, handed to dispatch inside the ASGI scope."""

import logging
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, NamedTuple

from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError

from gatehouse.resourceserver import json_rpc
from gatehouse.shared.protocol.claims import AccessClaims

Context = ServerRequestContext[Any, Any]

_KEY = "gatehouse.verified_request"

log = logging.getLogger(__name__)


class VerifiedRequest(NamedTuple):
    """A request whose token was verified. Only the gate makes one."""

    claims: AccessClaims
    request_id: str
    fail: Callable[[str | int], None] = lambda error: None
    """Notes, for metrics, the error that is answered: the code of a JSON-RPC error, or `tool_error`."""
    record: Callable[[], None] = lambda: None
    """Notes that the error has an audit event."""


def attach(scope: MutableMapping[str, Any], request: VerifiedRequest) -> None:
    """Attach a verified request to its ASGI scope. The server makes the scope, so no client can write this key."""
    scope[_KEY] = request


def find(scope: Mapping[str, Any]) -> VerifiedRequest | None:
    """Return the request that the gate attached. None means that no token was verified, and nothing may run."""
    request = scope.get(_KEY)
    return request if isinstance(request, VerifiedRequest) else None


def require(context: Context) -> VerifiedRequest:
    """Return the verified request behind a request that the SDK serves. Raises MCPError if there is none."""
    request = find(context.request.scope) if context.request is not None else None
    if request is None:
        log.error("a request reached dispatch without a verified token; it is refused")
        raise MCPError(json_rpc.UNAUTHENTICATED, "No verified access token.")
    return request
