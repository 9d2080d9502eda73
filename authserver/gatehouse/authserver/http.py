"""HTTP without a framework: the request that every endpoint reads, its form, and the response that it returns."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from werkzeug.http import parse_etags, unquote_etag

from gatehouse.shared.protocol.media_types import InvalidMediaType, parse_media_type

MAX_BODY = 64 * 1024
"""Bytes. No OAuth form needs more."""

NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}
"""Headers of every response that carries or concerns credentials (RFC 6749 5.1)."""

_MAX_LENGTH_DIGITS = 10
_FORM_TYPE = "application/x-www-form-urlencoded"
_MAX_PARAMETERS = 32
_UTF_8 = frozenset({"utf-8", "utf8"})
_ASCII_CHARSETS = frozenset({"us-ascii", "iso-8859-1"})
_NOT_ASCII = re.compile(rb"%[89A-Fa-f]")

_MAX_IF_NONE_MATCH = 1024
"""Characters. Anybody may send the header, and parsing a megabyte of commas takes a second."""


class BadRequest(Exception):
    """The body or the form of a request is malformed. `description` is public and says what to change."""

    def __init__(self, description: str, *, status: int = 400) -> None:
        super().__init__(description)
        self.description = description
        self.status = status


@dataclass(slots=True)
class Request:
    """One HTTP request. Header names are in lower case; the body is complete.

    `actor` and `target` are for the audit event of a refusal. A step of the endpoint sets each as soon as it is known.
    """

    headers: Mapping[str, str]
    body: bytes = b""
    query: str = ""
    path: str = ""
    request_id: str = ""
    actor: str | None = None
    """The authenticated client or credential, or `claimed:` and the client_id that the request claims."""
    target: str | None = None
    """What the request is about, such as a resource."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, Any]) -> "Request":
        """Read a WSGI environ (PEP 3333) and its body, whether sized or chunked.

        Raises:
            BadRequest: the body is larger than MAX_BODY, or shorter than its Content-Length.
        """
        headers = {
            name[5:].replace("_", "-").lower(): str(value)
            for name, value in environ.items()
            if name.startswith("HTTP_")
        }
        headers["content-type"] = str(environ.get("CONTENT_TYPE") or "")
        return cls(
            headers=headers,
            body=_read_body(environ),
            query=str(environ.get("QUERY_STRING") or ""),
            path=str(environ.get("PATH_INFO") or ""),
            request_id=str(environ["gatehouse.request_id"]),
        )


def _read_body(environ: Mapping[str, Any]) -> bytes:
    length = str(environ.get("CONTENT_LENGTH") or "")
    if length.isascii() and length.isdigit():
        if len(length) > _MAX_LENGTH_DIGITS or int(length) > MAX_BODY:
            raise _too_large()
        body = bytes(environ["wsgi.input"].read(int(length)))
        if len(body) < int(length):
            # A truncated form can mean something other than the complete one.
            raise BadRequest("The body ended before its Content-Length.")
        return body
    if not environ.get("wsgi.input_terminated"):
        return b""
    source: io.BufferedIOBase = environ["wsgi.input"]
    body = bytes(source.read(MAX_BODY + 1))
    if len(body) > MAX_BODY:
        raise _too_large()
    return body


def _too_large() -> BadRequest:
    return BadRequest(f"The body is larger than {MAX_BODY // 1024} KiB.", status=413)


@dataclass(frozen=True, slots=True)
class Form:
    """The parameters of a request: each once, except `resource`, which RFC 8707 allows to repeat."""

    parameters: Mapping[str, str] = field(default_factory=dict)
    resources: Sequence[str] = ()


def parse_form(request: Request) -> Form:
    """Parse the form in the body. Parameters anywhere else are refused (RFC 6749 3.2, 2.3.1).

    Raises:
        BadRequest: parameters in the URL, another media type, a malformed form, or a repeated parameter.
    """
    if request.query:
        raise BadRequest("Parameters belong in the body, not in the URL.")
    _check_form_type(request)
    try:
        # Empty pairs are skipped (WHATWG URL 5.1), and do not count as parameters.
        body = "&".join(filter(None, request.body.decode("ascii").split("&")))
        pairs = parse_qsl(
            body,
            keep_blank_values=True,
            strict_parsing=bool(body),
            encoding="utf-8",
            errors="strict",
            max_num_fields=_MAX_PARAMETERS,
        )
    except ValueError:
        raise BadRequest(
            f"The body is not a form. Send at most {_MAX_PARAMETERS} name=value pairs, percent-encoded UTF-8."
        ) from None
    if any("\x00" in name or "\x00" in value for name, value in pairs):
        raise BadRequest("A parameter holds a NUL character.")
    names = [name for name, _ in pairs if name != "resource"]
    if len(set(names)) != len(names):
        raise BadRequest("A parameter appears more than once (RFC 6749 3.2).")
    # "Parameters sent without a value MUST be treated as if they were omitted" (RFC 6749 3.2).
    present = [(name, value) for name, value in pairs if value]
    return Form(
        parameters={name: value for name, value in present if name != "resource"},
        resources=[value for name, value in present if name == "resource"],
    )


def _check_form_type(request: Request) -> None:
    """Check that the body is a form in UTF-8, whatever its charset label says.

    All bytes of an encoded form are ASCII, so it is the same in every charset of _ASCII_CHARSETS as long as no
    percent-encoded byte is above 7F. Libraries add such a label by themselves.
    """
    try:
        content_type = parse_media_type(request.headers["content-type"])
    except InvalidMediaType:
        raise BadRequest(f"Send the parameters as {_FORM_TYPE}.") from None
    if content_type.name != _FORM_TYPE:
        raise BadRequest(f"Send the parameters as {_FORM_TYPE}.")
    charset = content_type.parameters.get("charset", "utf-8").lower()
    if charset not in _UTF_8 | _ASCII_CHARSETS or content_type.parameters.keys() - {"charset"}:
        raise BadRequest("The only character set is UTF-8. Send no other parameter in Content-Type.")
    if charset in _ASCII_CHARSETS and _NOT_ASCII.search(request.body):
        raise BadRequest(f"A percent-encoded byte is above 7F, and the label is {charset}. The character set is UTF-8.")


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


def conditional_response(request: Request, body: bytes, etag: str, headers: Mapping[str, str]) -> Response:
    """Return 304 if the request already has this entity tag, by weak comparison, else the body (RFC 9110 13.1.2).

    A header of more than 1024 characters is ignored.
    """
    tag, _ = unquote_etag(etag)
    known = request.headers.get("if-none-match", "")
    if len(known) <= _MAX_IF_NONE_MATCH and parse_etags(known).contains_weak(tag):
        return Response(304, headers=headers)
    return Response(200, body, headers)
