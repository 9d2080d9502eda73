"""Web pages of other origins: which of them may call, and the headers that let a browser pass on the response.

Source: Fetch, "CORS protocol". `Access-Control-Allow-Credentials` is never sent: a page sends a token or a client's
credentials itself, and the servers read no cookies.
"""

import re
from collections.abc import Mapping, Set
from typing import Final

from gatehouse.shared.service.requests import REQUEST_ID_HEADER

REQUEST_HEADERS: Final = (
    *("Accept", "Authorization", "Content-Type", "Last-Event-ID"),
    *("MCP-Protocol-Version", "Mcp-Method", "Mcp-Name", "Mcp-Session-Id"),
)
"""The headers that MCP clients send, in the protocol versions up to 2025-11-25 and in 2026-07-28."""

EXPOSED_HEADERS: Final = f"WWW-Authenticate, {REQUEST_ID_HEADER}, Retry-After"
"""The response headers that a page may read, besides those that it always may (Fetch, "CORS-safelisted")."""

MAX_AGE: Final = 7200
"""Seconds for which a browser may remember the answer to a preflight. Chromium remembers none for longer."""

_PARAMETER_HEADER = re.compile(r"mcp-param-[a-z0-9!#$%&'*+.^_`|~-]{1,64}", re.ASCII | re.IGNORECASE)
"""A header that repeats an argument of a tool (MCP 2026-07-28). The tools decide which ones there are."""

Header = tuple[bytes, bytes]

_VARY: Final[Header] = (b"vary", b"Origin")
_EXPOSE: Final[Header] = (b"access-control-expose-headers", EXPOSED_HEADERS.encode())


class CorsPolicy:
    """Decides which pages may call which paths of a server. Paths are compared exactly."""

    def __init__(self, origins: Set[str], methods: Mapping[str, str]) -> None:
        """Create the policy. `methods` has, for each path that pages may call, its methods separated by commas."""
        self._methods = methods
        self.without_origin: Mapping[str, list[Header]] = {path: [_VARY] for path in methods}
        """By path, the headers to add to every response to a request without an Origin header."""
        self._headers = {
            origin: [_VARY, (b"access-control-allow-origin", origin.encode()), _EXPOSE] for origin in origins
        }

    def allows(self, origin: str) -> bool:
        """Tell whether pages of an origin may call."""
        return origin.lower() in self._headers

    def response_headers(self, path: str, origin: str | None) -> list[Header]:
        """Return the headers to add to every response to a request, whatever its status.

        `origin` is the value of the request's Origin header; several values never match one. A response to other
        requests varies by origin as well, or a cache would pass it on to a page that then could not read it.
        """
        if path not in self._methods:
            return []
        return self._headers.get((origin or "").lower(), [_VARY])

    def is_preflight(self, path: str, headers: Mapping[str, str]) -> bool:
        """Tell whether an OPTIONS request of a browser asks what a page may send (Fetch, "CORS-preflight request").

        Such a request has no credentials, and must be answered before authentication. The names of `headers` are in
        lower case.
        """
        return path in self._methods and "origin" in headers and "access-control-request-method" in headers

    def preflight_headers(self, path: str, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers of the answer to a preflight, in addition to those of every response."""
        requested = (name.strip() for name in headers.get("access-control-request-headers", "").split(","))
        parameters = (name for name in requested if _PARAMETER_HEADER.fullmatch(name))
        return {
            "Access-Control-Allow-Methods": self._methods[path],
            "Access-Control-Allow-Headers": ", ".join((*REQUEST_HEADERS, *parameters)),
            "Access-Control-Max-Age": str(MAX_AGE),
        }
