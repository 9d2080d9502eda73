"""Resource identifiers (RFC 8707 2; MCP 2026-07-28, "Canonical Server URI").

Both servers compare identifiers as strings in one canonical form: scheme and host in lower case, no default
port, and no path where the path is only `/`. A longer path is kept exactly: `https://host/mcp` and
`https://host/mcp/` are two resources. If they were one, a token for either would work at the other.
"""

import re
from ipaddress import ip_address
from urllib.parse import unquote, urlsplit

_DEFAULT_PORTS = {"https": 443, "http": 80}
_URI_CHARACTERS = re.compile(r"[A-Za-z0-9\-._~:/\[\]@!$&'()*+,;=%]{1,512}", re.ASCII)

# Some versions of urlsplit ignore text before and after the brackets.
_IPV6_AUTHORITY = re.compile(r"\[[0-9A-Fa-f:.]+\](:[0-9]*)?", re.ASCII)


class InvalidResourceIdentifier(ValueError):
    """The text is not a resource identifier. The message says what to change."""


def parse_resource_identifier(text: str) -> str:
    """Return the canonical form of a resource identifier.

    Raises:
        InvalidResourceIdentifier: not an absolute http(s) URI, or it has a fragment, a query, user information,
            dot segments, or characters that no URI has.
    """
    if _URI_CHARACTERS.fullmatch(text) is None:
        raise InvalidResourceIdentifier(
            "A resource is an absolute URI of at most 512 ASCII characters, without query or fragment."
        )
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise InvalidResourceIdentifier("The host or port of the resource is malformed.") from None
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise InvalidResourceIdentifier("A resource is an absolute https URI, such as https://host/mcp.")
    if "@" in parts.netloc:
        raise InvalidResourceIdentifier("A resource has no user information before its host.")
    if any(unquote(segment) in {".", ".."} for segment in parts.path.split("/")):
        raise InvalidResourceIdentifier("A resource has no '.' or '..' in its path.")
    if "[" in parts.netloc and _IPV6_AUTHORITY.fullmatch(parts.netloc) is None:
        raise InvalidResourceIdentifier("The host of the resource is not an IPv6 address.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    authority = host if port in {None, _DEFAULT_PORTS[scheme]} else f"{host}:{port}"
    return f"{scheme}://{authority}{'' if parts.path == '/' else parts.path}"


def is_loopback(url: str) -> bool:
    """Tell whether a URL's host is this machine only: `localhost` or a loopback address."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def is_protected_transport(url: str) -> bool:
    """Tell whether a URL is https, or http that does not leave this machine (OAuth 2.1 1.5)."""
    scheme = urlsplit(url).scheme.lower()
    return scheme == "https" or (scheme == "http" and is_loopback(url))
