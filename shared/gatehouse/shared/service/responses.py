"""Headers, texts and request ids that the responses of both servers share."""

import secrets
from collections.abc import Mapping
from typing import Final, Literal

SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
"""No response is meant for a browser to interpret."""

UNAVAILABLE: Final = "The server cannot process this request now. Try again in a few seconds."
"""The public text of every refusal that another attempt can get past, such as an outage of the database."""

RETRY_AFTER: Final = {"Retry-After": "2"}
"""Goes with UNAVAILABLE over HTTP (RFC 9110 10.2.3)."""

REQUEST_ID_HEADER: Final = "X-Request-Id"
"""Finds a refused request in the log and the audit log."""

UNKNOWN_PATH: Final = "(other)"
"""Stands in logs for a path that the server does not have, which may contain credentials."""


def raw_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers as ASGI has them."""
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


_RAW_SECURITY_HEADERS: Final = raw_headers(SECURITY_HEADERS)
_RAW_REQUEST_ID_HEADER: Final = REQUEST_ID_HEADER.lower().encode()


def common_headers(request_id: str) -> list[tuple[bytes, bytes]]:
    """Return the headers of every response, as ASGI has them."""
    return [*_RAW_SECURITY_HEADERS, (_RAW_REQUEST_ID_HEADER, request_id.encode())]


def outcome_of(status: int) -> Literal["allowed", "refused", "failed"]:
    """Return the outcome of a response, in the words of the audit log."""
    return "allowed" if status < 400 else "refused" if status < 500 else "failed"


def new_request_id() -> str:
    """Return `req_` and 24 hexadecimal digits. Never the client's choice, which could forge a log line."""
    return f"req_{secrets.token_hex(12)}"
