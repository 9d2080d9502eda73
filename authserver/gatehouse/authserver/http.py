"""A request and a response without a framework: what every endpoint takes and gives."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_BODY = 64 * 1024
"""Bytes. An OAuth form has no reason to be larger."""

_MAX_LENGTH_DIGITS = 10

NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}
"""Headers of every response that carries or concerns credentials (RFC 6749 5.1)."""


class BodyTooLarge(Exception):
    """The body is longer than MAX_BODY. It was not read to its end."""


class BodyIncomplete(Exception):
    """The body ended before its announced length: what is there may mean something else."""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. Header names are in lower case; the body is complete."""

    query: str
    headers: Mapping[str, str]
    body: bytes
    request_id: str
    path: str = ""

    @classmethod
    def from_environ(cls, environ: Mapping[str, Any]) -> "Request":
        """Read a WSGI environ (PEP 3333) and its body, whether sized or chunked.

        Raises:
            BodyTooLarge: the body is larger than MAX_BODY.
            BodyIncomplete: the body is shorter than announced.
        """
        headers = {
            name[5:].replace("_", "-").lower(): str(value)
            for name, value in environ.items()
            if name.startswith("HTTP_")
        }
        headers["content-type"] = str(environ.get("CONTENT_TYPE") or "")
        return cls(
            query=str(environ.get("QUERY_STRING") or ""),
            headers=headers,
            body=_read_body(environ),
            request_id=str(environ["gatehouse.request_id"]),
            path=str(environ.get("PATH_INFO") or ""),
        )


def _read_body(environ: Mapping[str, Any]) -> bytes:
    length = str(environ.get("CONTENT_LENGTH") or "")
    if length.isascii() and length.isdigit():
        if len(length) > _MAX_LENGTH_DIGITS or int(length) > MAX_BODY:
            raise BodyTooLarge
        body = bytes(environ["wsgi.input"].read(int(length)))
        if len(body) < int(length):
            raise BodyIncomplete
        return body
    if not environ.get("wsgi.input_terminated"):
        return b""
    source: io.BufferedIOBase = environ["wsgi.input"]
    body = bytes(source.read(MAX_BODY + 1))
    if len(body) > MAX_BODY:
        raise BodyTooLarge
    return body


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP response."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response."""
    body = json.dumps(content, separators=(",", ":")).encode()
    return Response(status, body, {"Content-Type": "application/json", **(headers or {})})
