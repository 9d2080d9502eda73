"""The origins of web pages that a setting allows to call a server (RFC 6454)."""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.protocol.resource_identifiers import is_protected_transport, parse_resource_identifier

_ORIGIN = re.compile(
    r"https?://([a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?", re.ASCII | re.IGNORECASE
)


def parse_origins(text: str) -> frozenset[str]:
    """Return the origins in a setting, which spaces separate, as a browser writes them (RFC 6454 6.1).

    Raises:
        ValueError: one of them is not an origin, is not https and not on loopback, is `null`, or has a wildcard. The
            message names each of them.
    """
    origins, problems = set(), []
    for origin in text.split():
        try:
            origins.add(_parse_origin(origin))
        except ValueError as error:
            # Text before an @ may be a password.
            problems.append(f"{'one origin' if '@' in origin else quoted(origin)} {error}")
    if problems:
        raise ValueError("; ".join(problems))
    return frozenset(origins)


def _parse_origin(text: str) -> str:
    if text.lower() == "null":
        raise ValueError("is the origin of sandboxed frames and local files of any author; it cannot be allowed")
    if "*" in text:
        raise ValueError("has a wildcard; name each origin")
    if "," in text:
        raise ValueError("has a comma; separate origins by spaces")
    if _ORIGIN.fullmatch(text) is None:
        raise ValueError(
            "must be SCHEME://HOST or SCHEME://HOST:PORT, such as https://app.example.com, without a path, not even a /"
        )
    try:
        canonical = parse_resource_identifier(text)
        host = urlsplit(canonical).hostname or ""
        origin = canonical.replace(host, str(ip_address(host)), 1) if ":" in host else canonical
    except ValueError:
        raise ValueError("has no valid host or port") from None
    if not is_protected_transport(origin):
        raise ValueError("must be https; plain http is for loopback addresses only")
    return origin
