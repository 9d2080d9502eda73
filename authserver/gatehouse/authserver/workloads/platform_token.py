"""Platform tokens as a request presents them. Nothing in them is proven yet."""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final

from gatehouse.authserver.clients.registry import WORKLOAD_IDENTITY
from gatehouse.authserver.workloads.kinds import SPIFFE_SCHEME
from gatehouse.shared.protocol import jws

JWT_SPIFFE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"
"""The type of a client assertion that is a JWT-SVID (draft-ietf-oauth-spiffe-client-auth)."""


class Presented(Enum):
    """How a request presents a platform token."""

    CLIENT_ASSERTION = auto()
    """It authenticates the client (RFC 7523 2.2)."""
    SPIFFE_ASSERTION = auto()
    """The same, with the assertion type for SPIFFE."""
    GRANT = auto()
    """It is the grant itself (RFC 7523 2.1; SEP-1933), without authentication of a client."""


@dataclass(frozen=True, slots=True)
class PlatformCredentials:
    """A platform token and what it claims."""

    token: str = field(repr=False)
    header: jws.Header
    claims: dict[str, Any] = field(repr=False)
    presented: Presented
    client_id: str = ""
    """As it was sent; empty if it was not. The token identifies the client, and must agree."""
    method: str = WORKLOAD_IDENTITY

    @property
    def issuer(self) -> str:
        """The `iss`; for a token without one, as some JWT-SVIDs are, the trust domain of its subject."""
        return _text(self.claims.get("iss")) or self.trust_domain or ""

    @property
    def trust_domain(self) -> str | None:
        """The trust domain of a SPIFFE ID as subject."""
        return trust_domain(self.subject)

    @property
    def subject(self) -> str:
        """The `sub`."""
        return _text(self.claims.get("sub"))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def is_platform_token(claims: dict[str, Any], assertion_type: str | None) -> bool:
    """Tell whether the claims of a client assertion are those of a platform token.

    The issuer of a platform token is a URL, which no `client_id` is. A client that signs its own assertions is both
    their issuer and their subject (RFC 7523 3).
    """
    issuer, subject = _text(claims.get("iss")), _text(claims.get("sub"))
    return assertion_type == JWT_SPIFFE or "://" in issuer or subject.startswith(SPIFFE_SCHEME)


def trust_domain(subject: str) -> str | None:
    """Return the trust domain of a SPIFFE ID, with its scheme; None if the subject is not one (SPIFFE-ID 2)."""
    domain, slash, path = subject.removeprefix(SPIFFE_SCHEME).partition("/")
    if not subject.startswith(SPIFFE_SCHEME) or not domain or not slash or not path:
        return None
    return f"{SPIFFE_SCHEME}{domain}"
