"""Types for URL and URI arguments. The server never fetches them."""

import re
from collections.abc import Callable
from typing import Annotated, Final
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from gatehouse.shared.protocol.resource_identifiers import (
    InvalidResourceIdentifier,
    is_protected_transport,
    parse_resource_identifier,
)

MAX_URI: Final = 1024

# Without '*': redirect URIs are compared exactly, so a wildcard would have no effect (RFC 9700 section 2.1).
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9\-._~:/?\[\]@!$&'()+,;=%]+", re.ASCII)
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_REVERSED_DOMAIN = re.compile(r"[a-z][a-z0-9-]*(\.[a-z0-9-]+)+", re.ASCII)
_HOST = re.compile(r"[a-z0-9_.-]+|[0-9a-f:.]+", re.ASCII)
_REFUSED = "address_refused"


def _check_redirect_uri(text: str) -> str:
    """Check a redirect URI (RFC 9700 section 2.1, RFC 8252 sections 7.1 and 7.3). Raises ValueError."""
    if _URI.fullmatch(text) is None or _ESCAPE.search(text):
        raise ValueError("must be an absolute URI in ASCII, without fragment and without wildcard")
    if any(unquote(segment) in {".", ".."} for segment in urlsplit(text).path.split("/")):
        raise ValueError("must not have '.' or '..' in its path")
    scheme, _, rest = text.partition(":")
    if scheme.lower() in {"http", "https"}:
        _check_web_address(text)
    elif _REVERSED_DOMAIN.fullmatch(scheme) is None or not rest.startswith("/") or rest.startswith("//"):
        raise ValueError(
            "must be https, http on a loopback address, or a private-use scheme such as com.example.app:/callback"
        )
    return text


def _check_web_address(text: str) -> None:
    parts = urlsplit(text)
    if not is_protected_transport(_check_server(f"{parts.scheme}://{parts.netloc}")):
        raise ValueError("must be https; http is for loopback addresses only")


def _check_server(text: str) -> str:
    """Return the canonical form of a URL without query and fragment. Raises ValueError."""
    try:
        canonical = parse_resource_identifier(text)
    except InvalidResourceIdentifier:
        raise ValueError("must be https://HOST or https://HOST/PATH, in ASCII, without user information") from None
    if _HOST.fullmatch(urlsplit(canonical).hostname or "") is None:
        raise ValueError("must have a host name or address of letters, digits, hyphens and dots")
    return canonical


def _check_https(text: str) -> str:
    if not text.lower().startswith("https://"):
        raise ValueError("must be https")
    return text


def _check_initiate_login_uri(text: str) -> str:
    return _check_redirect_uri(_check_https(text))


def _check_issuer(text: str) -> str:
    """Check an issuer, which is stored unchanged (OpenID Connect Discovery section 4.3). Raises ValueError."""
    _check_server(_check_https(text))
    return text


def _check_resource(text: str) -> str:
    """Return the canonical form of an MCP server's URL (RFC 8707 section 2). Raises ValueError."""
    canonical = _check_server(text)
    if not is_protected_transport(canonical):
        raise ValueError("must be https; http is for loopback addresses only")
    return canonical


def _explained(check: Callable[[str], str]) -> AfterValidator:
    def explain(text: str) -> str:
        try:
            return check(text)
        except ValueError as error:
            raise PydanticCustomError(_REFUSED, "{why}", {"why": str(error)}) from None

    return AfterValidator(explain)


RedirectUri = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_URI,
        description="An absolute URI, compared exactly: https, http on a loopback address, or a private-use "
        "scheme such as com.example.app:/callback. No fragment, no wildcard.",
    ),
    _explained(_check_redirect_uri),
]
InitiateLoginUri = Annotated[
    str,
    Field(min_length=1, max_length=MAX_URI, description="An https URL without fragment."),
    _explained(_check_initiate_login_uri),
]
IssuerUrl = Annotated[
    str,
    Field(
        min_length=1,
        max_length=512,
        description="Issuer of an OpenID provider: its https URL, exactly.",
    ),
    _explained(_check_issuer),
]
McpServerUrl = Annotated[
    str,
    Field(
        min_length=1,
        max_length=512,
        description="The server's resource identifier (RFC 8707): the https URL that MCP clients call, without query "
        "and fragment.",
    ),
    _explained(_check_resource),
]
