"""The headers of a request to the MCP endpoint: read once, so that the SDK behind the gate reads them alike."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.datastructures import Headers

from gatehouse.resourceserver import json_rpc
from gatehouse.shared.protocol.media_types import InvalidMediaType, accepts, parse_accept, parse_media_type

_JSON: Final = "application/json"
_STREAM: Final = "text/event-stream"
_UTF_8: Final = frozenset({"utf-8", "utf8"})
_SINGLE_PREFIX: Final = "mcp-"
"""The headers that MCP defines have one value each. Of two lines, two readers could read different ones."""

_CANONICAL: Final = [(b"content-type", _JSON.encode()), (b"accept", f"{_JSON}, {_STREAM}".encode())]


class InvalidHeaders(Exception):
    """The method or a header of a request is not accepted. The text is public and says what to send."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: int = json_rpc.INVALID_REQUEST,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}


@dataclass(frozen=True, slots=True)
class McpHeaders:
    """What the headers of an accepted request say."""

    handshake: bool
    """Whether the protocol version is one of those that begin with `initialize`, up to 2025-11-25."""
    accepts_stream: bool
    """Whether the client lists text/event-stream. A range such as `*/*` does not request a stream."""


def read_headers(method: str, headers: Headers) -> McpHeaders:
    """Read the headers of a request: media types without regard to case, and Accept from all its lines.

    Raises:
        InvalidHeaders: 405 for another method than POST; 415 unless there is one Content-Type, JSON in UTF-8; 406 for
            an Accept without JSON (none accepts any media type, RFC 9110 12.5.1); 400 for two lines of an MCP header.
    """
    if method != "POST":
        # GET and DELETE belong to sessions, which this server does not have.
        raise InvalidHeaders(405, "Send JSON-RPC by POST.", headers={"Allow": "POST"})
    content_types = headers.getlist("content-type")
    if len(content_types) != 1 or not _is_json(content_types[0]):
        raise InvalidHeaders(415, "Send Content-Type: application/json, in UTF-8.")
    accept = headers.getlist("accept")
    accepts_json, accepts_stream = _read_accept(", ".join(accept))
    if accept and not accepts_json:
        raise InvalidHeaders(406, "Send Accept: application/json, text/event-stream.")
    names = [name for name in headers.keys() if name.startswith(_SINGLE_PREFIX)]  # noqa: SIM118 - a name for each line
    if len(set(names)) != len(names):
        raise InvalidHeaders(400, "A header of MCP appears more than once.", code=json_rpc.HEADER_MISMATCH)
    version = headers.get("mcp-protocol-version")
    return McpHeaders(
        # As in the SDK: without the header, the version is 2025-03-26.
        handshake=version is None or version in HANDSHAKE_PROTOCOL_VERSIONS,
        accepts_stream=accepts_stream,
    )


def canonical(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return accepted headers in a form that the SDK accepts: it compares these two by case, or reads one line."""
    replaced = {name for name, _ in _CANONICAL}
    return [*((name, value) for name, value in headers if name not in replaced), *_CANONICAL]


# A client sends the same headers with every request.
@lru_cache(maxsize=256)
def _is_json(value: str) -> bool:
    try:
        content_type = parse_media_type(value)
    except InvalidMediaType:
        return False
    return content_type.name == _JSON and content_type.parameters.get("charset", "utf-8").lower() in _UTF_8


@lru_cache(maxsize=256)
def _read_accept(value: str) -> tuple[bool, bool]:
    """Return whether Accept allows JSON, and whether it lists a stream of events."""
    ranges = parse_accept([value])
    return accepts(ranges, _JSON), accepts([found for found in ranges if found.name == _STREAM], _STREAM)
