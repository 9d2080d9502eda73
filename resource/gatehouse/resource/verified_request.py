"""What the gate proved of a request, on its way to dispatch inside the ASGI scope."""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from gatehouse.shared.claims import AccessClaims

_KEY = "gatehouse.verified_request"


@dataclass(frozen=True, slots=True)
class VerifiedRequest:
    """A request whose token was verified. Only the gate makes one."""

    claims: AccessClaims
    request_id: str


def attach(scope: MutableMapping[str, Any], request: VerifiedRequest) -> None:
    """Hand a verified request on. An ASGI scope is made by the server: no client can write this key."""
    scope[_KEY] = request


def find(scope: Mapping[str, Any]) -> VerifiedRequest | None:
    """Return what the gate attached, or None: then nothing is proven, and nothing may run."""
    request = scope.get(_KEY)
    return request if isinstance(request, VerifiedRequest) else None
