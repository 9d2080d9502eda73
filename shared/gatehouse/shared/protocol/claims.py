"""The claims of a Gatehouse access token (RFC 9068 2.2), typed, to and from JSON, and the rules for their values."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, TypeGuard

from gatehouse.shared.protocol.scopes import InvalidScopeSyntax, format_scope, parse_scope

MAX_LIFETIME = 3600
"""Seconds. No token with a longer lifetime is issued or accepted."""

MAX_TOKEN_LENGTH = 8192
"""Characters. A longer token is refused before any of it is read."""

ACCESS_TOKEN_TYPE = "at+jwt"  # noqa: S105 - a media type
"""The JWS `typ` of an access token (RFC 9068 2.1)."""

MAX_NUMERIC_DATE = 253402300799
"""9999-12-31T23:59:59Z, the last second that the standard library can show."""

_TOKEN_CLAIMS = frozenset({"iss", "sub", "client_id", "aud", "iat", "exp", "jti", "scope", "status"})

RESERVED_CLAIMS = _TOKEN_CLAIMS | {
    # Registered by RFC 7519, 7800, 8693, 9068 and OpenID Connect, with meanings that a resource server may act upon.
    *("nbf", "cnf", "act", "may_act", "events", "sid", "nonce", "azp", "acr", "amr", "auth_time"),
    *("scp", "permissions", "email", "upn", "username", "preferred_username"),
    *("roles", "groups", "entitlements", "authorization_details", "token_introspection"),
}
"""Names that a static claim cannot have."""

WORKSPACE_CLAIM = "workspace_id"
"""The static claim that names the tenant a client acts in, where an admin has set one."""

MAX_STATIC_CLAIMS = 16
"""Static claims of one client."""

_STATIC_CLAIM_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)
_STATIC_CLAIM_VALUE = re.compile(r"[\x20-\x7e]{1,256}", re.ASCII)


# A client asks for the same scopes again and again.
_scope_text = lru_cache(maxsize=1024)(format_scope)


class InvalidClaims(ValueError):
    """A claim is missing, malformed or not accepted. The message is for the operator.

    `cause` is one of a few constants, for metrics.
    """

    def __init__(self, message: str, cause: str = "claims") -> None:
        super().__init__(message)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class StatusReference:
    """The status list and the bit in it that is set when a token is revoked (draft-ietf-oauth-status-list 6.2)."""

    uri: str
    idx: int


@dataclass(frozen=True, slots=True)
class AccessClaims:
    """The claims of an access token. `iat` and `exp` are seconds since the epoch; `aud` is one resource identifier."""

    iss: str
    sub: str
    client_id: str
    aud: str
    iat: int
    exp: int
    jti: str
    scope: frozenset[str]
    static: Mapping[str, str] = field(default_factory=dict)
    """Claims that an admin set on the client, such as `workspace_id`."""
    status: StatusReference | None = None
    """None for a token without a status list."""

    def to_json(self) -> dict[str, Any]:
        """Return the JWT claims set."""
        claims = {
            **self.static,
            "iss": self.iss,
            "sub": self.sub,
            "client_id": self.client_id,
            "aud": self.aud,
            "iat": self.iat,
            "exp": self.exp,
            "jti": self.jti,
            "scope": _scope_text(self.scope),
        }
        if self.status is not None:
            claims["status"] = {"status_list": {"idx": self.status.idx, "uri": self.status.uri}}
        return claims

    @classmethod
    def from_json(cls, claims: Mapping[str, Any]) -> "AccessClaims":
        """Read a claims set whose signature is verified. Checks form only, not time, issuer or audience.

        Raises:
            InvalidClaims: a claim that RFC 9068 2.2 requires is missing or has the wrong type; `aud` is not one
                string; `sub` is not the client (client credentials, RFC 9068 2.2); `status` is present and is not one
                reference to a status list.
        """
        client_id = _text(claims, "client_id")
        if _text(claims, "sub") != client_id:
            raise InvalidClaims("sub is not the client")
        try:
            scope = parse_scope(_text(claims, "scope"))
        except InvalidScopeSyntax:
            raise InvalidClaims("scope is malformed") from None
        static = {
            name: value for name, value in claims.items() if name not in RESERVED_CLAIMS and isinstance(value, str)
        }
        return cls(
            iss=_text(claims, "iss"),
            sub=client_id,
            client_id=client_id,
            aud=_text(claims, "aud"),
            iat=_numeric_date(claims, "iat"),
            exp=_numeric_date(claims, "exp"),
            jti=_text(claims, "jti"),
            scope=scope,
            static=MappingProxyType(static),
            status=_status(claims),
        )


def check_static_claim(name: str, value: str) -> None:
    """Check a claim that an admin sets on a client.

    Raises:
        InvalidClaims: the name is reserved or malformed, or the value is not 1 to 256 printable ASCII characters.
    """
    check_static_claim_name(name)
    if _STATIC_CLAIM_VALUE.fullmatch(value) is None:
        raise InvalidClaims(f"the value of {name} must be 1 to 256 printable ASCII characters")


def check_static_claim_name(name: str) -> None:
    """Check the name of a claim that an admin sets on a client. Raises InvalidClaims if it is reserved or malformed."""
    if name in RESERVED_CLAIMS:
        raise InvalidClaims(f"{name} is a reserved claim; choose another name")
    if _STATIC_CLAIM_NAME.fullmatch(name) is None:
        raise InvalidClaims("a claim name is lower case letters, digits and underscores, at most 64, a letter first")


def is_numeric_date(value: Any) -> TypeGuard[int]:
    """Tell whether a JSON value is a whole number of seconds from 0 to MAX_NUMERIC_DATE.

    RFC 7519 also allows fractions. The tokens and status lists of the authorization server have none.
    """
    return isinstance(value, int) and is_fractional_date(value)


def is_fractional_date(value: Any) -> TypeGuard[float]:
    """Tell whether a JSON value is a number of seconds from 0 to MAX_NUMERIC_DATE (NumericDate, RFC 7519 2)."""
    # bool is a subclass of int.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_NUMERIC_DATE


def _text(claims: Mapping[str, Any], name: str) -> str:
    if name not in claims:
        raise InvalidClaims(f"{name} is missing")
    value = claims[name]
    if not isinstance(value, str) or not value:
        raise InvalidClaims(f"{name} is not a non-empty string")
    return value


def _numeric_date(claims: Mapping[str, Any], name: str) -> int:
    if name not in claims:
        raise InvalidClaims(f"{name} is missing")
    value = claims[name]
    if not is_numeric_date(value):
        raise InvalidClaims(f"{name} is not a whole number of seconds")
    return value


def _status(claims: Mapping[str, Any]) -> StatusReference | None:
    if "status" not in claims:
        return None
    match claims["status"]:
        # A second mechanism next to it would be a condition that nobody checks.
        case {"status_list": {"idx": int(idx), "uri": str(uri), **beside}, **others} if not (beside or others):
            if idx >= 0 and not isinstance(idx, bool):
                return StatusReference(uri, idx)
    raise InvalidClaims("status is not one reference to a status list")
