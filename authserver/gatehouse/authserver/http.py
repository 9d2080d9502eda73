"""HTTP without a framework: the request that every endpoint reads, its form, and the response that it returns.

`Request.in_thread`, `Request.load` and `Request.on_loop` wait no longer than the deadline of the request.
"""

import asyncio
import contextvars
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple, ParamSpec, TypeVar
from urllib.parse import parse_qsl

from werkzeug.http import parse_etags, unquote_etag

from gatehouse.shared.protocol.encoding import compact_json
from gatehouse.shared.protocol.media_types import InvalidMediaType, parse_media_type
from gatehouse.shared.service.cache import MustWait
from gatehouse.shared.service.deadline import DeadlineExceeded, before_deadline, remaining

MAX_BODY = 64 * 1024
"""Bytes. No OAuth form needs more."""

P = ParamSpec("P")
T = TypeVar("T")

NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}
"""Headers of every response that carries or concerns credentials (RFC 6749 5.1)."""

Scope = MutableMapping[str, Any]
"""ASGI's description of a request."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
"""ASGI's function that returns the next message of a request."""

_MAX_LENGTH_DIGITS = 10
_FORM_TYPE = "application/x-www-form-urlencoded"
_MAX_PARAMETERS = 32
_UTF_8 = frozenset({"utf-8", "utf8"})
_ASCII_CHARSETS = frozenset({"us-ascii", "iso-8859-1"})
_NOT_ASCII = re.compile(rb"%[89A-Fa-f]")

_WITHOUT_CREDENTIALS = re.compile(rb"(?:(?:grant_type|resource|scope)=[^&]*(?:&|\Z))*")
"""Matches a form of these parameters only. Any other parameter could be a credential."""

_MAX_REMEMBERED = 1024
"""Bytes of a form that is remembered, at most."""

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
    method: str = "GET"
    path: str = ""
    """As it was sent, percent-encoded."""
    query: str = ""
    peer: str = ""
    """The address of the connection: the client's, or that of a proxy."""
    pool: Executor | None = field(default=None, repr=False)
    """The threads of `in_thread`. None for those of the event loop."""
    request_id: str = ""
    actor: str | None = None
    """The authenticated client or credential, or `claimed:` and the client_id that the request claims."""
    target: str | None = None
    """What the request is about, such as a resource."""
    external: Mapping[str, str] = field(default_factory=dict)
    """The issuer and the subject of a platform token, for audit events. Proven like the `actor`."""
    grant_type: str = ""
    """As it was sent. For metrics, as the next field."""
    auth_method: str = ""
    """The method by which the client sent its credentials."""
    _loop: asyncio.AbstractEventLoop = field(init=False, repr=False)
    """The event loop of `on_loop`."""

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that may wait, in a thread, and return its result.

        Raises:
            DeadlineExceeded: the function was not called, or its result is unknown.
        """
        self._loop = asyncio.get_running_loop()
        call = partial(contextvars.copy_context().run, partial(function, *args, **kwargs))
        # A call that waits for a thread is cancelled at the deadline.
        return await before_deadline(self._loop.run_in_executor(self.pool, call))

    def on_loop(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the event loop, from a function that `in_thread` calls, and return its result.

        The coroutine must not wait for another thread of the pool: all of them may be here.

        Raises:
            DeadlineExceeded: it was cancelled at the deadline of the request.
        """
        running = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return running.result(remaining())
        except TimeoutError:
            running.cancel()
            raise DeadlineExceeded from None

    async def load(self, function: Callable[..., T], *args: object) -> T:
        """Call a function with `wait=False` on the event loop or, if that raises MustWait, in a thread.

        Raises:
            DeadlineExceeded: as for `in_thread`.
        """
        try:
            return function(*args, wait=False)
        except MustWait:
            return await self.in_thread(function, *args)


def read_request(scope: Scope, request_id: str) -> Request:
    """Return a request of ASGI, without its body. Headers of one name are joined by commas (RFC 9110 5.3)."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    headers.setdefault("content-type", "")
    client = scope.get("client")
    return Request(
        headers,
        method=scope["method"],
        path=scope["raw_path"].decode("latin-1"),
        query=scope["query_string"].decode("latin-1"),
        peer=client[0] if client else "",
        request_id=request_id,
    )


class RequestBody:
    """The body of a request, of at most MAX_BODY bytes, as an ASGI server delivers it."""

    def __init__(self, headers: Mapping[str, str], receive: Receive) -> None:
        """Prepare to read the body of a request with these headers. Their names are in lower case."""
        self._length = headers.get("content-length", "")
        self._receive = receive
        self._more = "transfer-encoding" in headers or self._length.strip("0") != ""

    async def read(self) -> bytes:
        """Return the whole body, whether sized or chunked.

        Raises:
            BadRequest: the body is larger than MAX_BODY, or the client sent only a part of it.
        """
        if len(self._length) > _MAX_LENGTH_DIGITS or int(self._length or "0") > MAX_BODY:
            raise _too_large()
        if not self._more:
            return b""
        body = bytearray()
        while self._more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                # A truncated form can mean something other than the complete one.
                raise BadRequest("The body ended before its Content-Length, or its chunks are malformed.")
            body += message.get("body") or b""
            if len(body) > MAX_BODY:
                raise _too_large()
            self._more = message.get("more_body", False)
        return bytes(body)


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
    remembered = len(request.body) <= _MAX_REMEMBERED and _WITHOUT_CREDENTIALS.fullmatch(request.body)
    return _parse_remembered(request.body) if remembered else _parse(request.body)


def _parse(document: bytes) -> Form:
    """Parse a form. Raises BadRequest."""
    try:
        # Empty pairs are skipped (WHATWG URL 5.1), and do not count as parameters.
        body = "&".join(filter(None, document.decode("ascii").split("&")))
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
        resources=tuple(value for name, value in present if name == "resource"),
    )


# A client sends the same form for every token.
_parse_remembered = lru_cache(maxsize=256)(_parse)


def _check_form_type(request: Request) -> None:
    """Check that the body is a form in UTF-8, whatever its charset label says.

    All bytes of an encoded form are ASCII, so it is the same in every charset of _ASCII_CHARSETS as long as no
    percent-encoded byte is above 7F. Libraries add such a label by themselves.
    """
    # What nearly every client sends has nothing to parse.
    if request.headers["content-type"] == _FORM_TYPE:
        return
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


class Response(NamedTuple):
    """One HTTP response."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = MappingProxyType({})
    error: str = ""
    """The error code of a refusal (RFC 6749 5.2), for metrics."""
    cause: str = ""
    """Why authentication failed, for metrics. See `AuthFailure`."""


Endpoint = Callable[[Request], Awaitable[Response]]
"""Answers one request. A refusal is raised as OAuthError or BadRequest."""


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response."""
    body = compact_json(content).encode()
    return Response(status, body, {"Content-Type": "application/json", **(headers or {})})


def conditional_response(request: Request, body: bytes, etag: str, headers: Mapping[str, str]) -> Response:
    """Return 304 if the request already has this entity tag, by weak comparison, else the body (RFC 9110 13.1.2).

    A header of more than 1024 characters is ignored.
    """
    known = request.headers.get("if-none-match", "")
    return Response(304, headers=headers) if _has_etag(known, etag) else Response(200, body, headers)


def _has_etag(known: str, etag: str) -> bool:
    # Most clients send no tag, or the one that they got.
    if not known or known == etag:
        return bool(known)
    return len(known) <= _MAX_IF_NONE_MATCH and parse_etags(known).contains_weak(unquote_etag(etag)[0])
