"""Reads the headers of a request to the MCP endpoint, and its JSON-RPC message.

It reads so strictly that the SDK behind the gate cannot read the same request differently.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeGuard

from mcp_types import DEFAULT_NEGOTIATED_VERSION
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from gatehouse.resourceserver import json_rpc
from gatehouse.resourceserver.http import JSON, Headers
from gatehouse.resourceserver.json_rpc import RequestId
from gatehouse.shared.protocol.encoding import InvalidJson, parse_json
from gatehouse.shared.protocol.media_types import InvalidMediaType, accepts, parse_accept, parse_media_type

MAX_BODY: Final = 1024 * 1024
"""Bytes of one request with a valid token."""

MAX_UNPROVEN_BODY: Final = 64 * 1024
"""Bytes that are read of a request without a valid token. Larger bodies would let anyone fill the memory."""

STREAM: Final = "text/event-stream"

METHODS: Final = frozenset(
    {"initialize", "ping", "server/discover", "tools/list", "tools/call"}
    | {"resources/list", "resources/templates/list", "resources/read"}
)
"""The requests that are served. Any other is refused, even if the SDK has a handler for it."""

NOTIFICATIONS: Final = frozenset(
    f"notifications/{name}" for name in ("initialized", "cancelled", "progress", "roots/list_changed")
)
"""Notifications are acknowledged and have no effect, because there are no sessions."""

_UTF_8: Final = frozenset({"utf-8", "utf8"})
_SINGLE_PREFIX: Final = b"mcp-"
"""The headers that MCP defines have one value each. Of two lines, two readers could read different ones."""

_MAX_ACCEPT: Final = 4096
"""Characters of all Accept headers together. To parse a megabyte takes seconds, and results are remembered."""

_RESPONSE = frozenset({"result", "error"})
_MAX_ID_LENGTH = 128
_MAX_ID_NUMBER = 2**63
_AN_ID = f"a string of at most {_MAX_ID_LENGTH} characters, or a whole number of 64 bits"


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


class McpHeaders(NamedTuple):
    """What the headers of an accepted request say."""

    version: str
    """The protocol version, which may be one that nobody knows."""
    handshake: bool
    """Whether the protocol version is one of those that begin with `initialize`, up to 2025-11-25."""
    accepts_stream: bool
    """Whether the client lists text/event-stream. A range such as `*/*` does not request a stream."""


def read_headers(method: str, headers: Headers) -> McpHeaders:
    """Read the headers of a request: media types without regard to case, and Accept from all its lines.

    Raises:
        InvalidHeaders: 405 for another method than POST; 415 unless there is one Content-Type, JSON in UTF-8; 406 for
            an Accept without JSON (none accepts any media type, RFC 9110 12.5.1) or of more than 4096 characters; 400
            for two lines of an MCP header, or an Mcp-Name outside of ASCII.
    """
    if method != "POST":
        # GET and DELETE belong to sessions, which this server does not have.
        raise InvalidHeaders(405, "Send JSON-RPC by POST.", headers={"Allow": "POST"})
    content_types = headers.lines(b"content-type")
    if len(content_types) != 1 or not _is_json(content_types[0]):
        raise InvalidHeaders(415, "Send Content-Type: application/json, in UTF-8.")
    accept = headers.lines(b"accept")
    listed = b", ".join(accept)
    accepts_json, accepts_stream = _read_accept(listed) if len(listed) <= _MAX_ACCEPT else (False, False)
    if accept and not accepts_json:
        raise InvalidHeaders(406, "Send Accept: application/json, text/event-stream.")
    if headers.repeated:
        names = [name for name in headers.names() if name.startswith(_SINGLE_PREFIX)]
        if len(set(names)) != len(names):
            raise InvalidHeaders(400, "A header of MCP appears more than once.", code=json_rpc.HEADER_MISMATCH)
    if not (headers.get(b"mcp-name") or b"").isascii():
        # The SDK fails to decode the base64 form of such a value.
        raise InvalidHeaders(400, "Mcp-Name must be ASCII, or in its base64 form.", code=json_rpc.HEADER_MISMATCH)
    sent = headers.get(b"mcp-protocol-version")
    version = sent.decode("latin-1") if sent is not None else DEFAULT_NEGOTIATED_VERSION
    return McpHeaders(version, version in HANDSHAKE_PROTOCOL_VERSIONS, accepts_stream)


# A client sends the same headers with every request.
@lru_cache(maxsize=256)
def _is_json(value: bytes) -> bool:
    try:
        content_type = parse_media_type(value.decode("latin-1"))
    except InvalidMediaType:
        return False
    return content_type.name == JSON and content_type.parameters.get("charset", "utf-8").lower() in _UTF_8


@lru_cache(maxsize=256)
def _read_accept(value: bytes) -> tuple[bool, bool]:
    """Return whether Accept allows JSON, and whether it lists a stream of events."""
    ranges = parse_accept([value.decode("latin-1")])
    return accepts(ranges, JSON), accepts([found for found in ranges if found.name == STREAM], STREAM)


class InvalidMessage(Exception):
    """The body is not a JSON-RPC message that this server accepts. The text is public and says what to send."""

    def __init__(self, code: int, message: str, request_id: RequestId = None) -> None:
        super().__init__(message)
        self.code = code
        self.request_id = request_id


class Message(NamedTuple):
    """A request. Without an id, it is a notification."""

    id: RequestId
    method: str
    params: Mapping[str, Any]
    """Empty if they were not sent."""
    tool_name: str | None = None
    """`params.name` of a `tools/call`."""
    progress_token: str | int | None = None
    """`params._meta.progressToken`, which requests progress notifications."""
    resource_uri: str | None = None
    """`params.uri` of a `resources/read`."""


def read_message(body: bytes) -> Message:
    """Read one JSON-RPC request or notification, strictly, so that no other parser can read it differently.

    For an optional object (`params`, `_meta`, `arguments`), null counts as absent, as in the SDK; for `id` it does not.
    Messages that the SDK would reject as malformed are refused here, because the SDK's errors quote what was sent.

    Raises:
        InvalidMessage: not strict JSON, a batch, a response, another version, a malformed id or params.
    """
    try:
        message = parse_json(body)
    except InvalidJson as error:
        raise InvalidMessage(json_rpc.PARSE_ERROR, f"The body cannot be read. {error}") from None
    if not isinstance(message, dict):
        raise InvalidMessage(json_rpc.INVALID_REQUEST, "Send one JSON-RPC object; batches are not supported.")
    request_id = _read_id(message)
    method, params = message.get("method"), _object_or_null(message.get("params"))
    if message.get("jsonrpc") != "2.0" or not isinstance(method, str) or not message.keys().isdisjoint(_RESPONSE):
        raise InvalidMessage(
            json_rpc.INVALID_REQUEST, 'Send a JSON-RPC request: "jsonrpc": "2.0", a method, an id.', request_id
        )
    meta = _object_or_null(params.get("_meta")) if params is not None else None
    if params is None or meta is None:
        raise InvalidMessage(json_rpc.INVALID_PARAMS, "params must be an object, and so must params._meta.", request_id)
    progress_token = _read_progress_token(meta, request_id)
    if method == "resources/read":
        return Message(request_id, method, params, None, progress_token, _read_uri(params, request_id))
    if method != "tools/call":
        return Message(request_id, method, params, None, progress_token)
    name, arguments = params.get("name"), params.get("arguments")
    if not isinstance(name, str):
        raise InvalidMessage(json_rpc.INVALID_PARAMS, "params.name must be the name of a tool.", request_id)
    if arguments is not None and not isinstance(arguments, dict):
        raise InvalidMessage(json_rpc.INVALID_PARAMS, "params.arguments must be an object.", request_id)
    return Message(request_id, method, params, name, progress_token)


def _object_or_null(value: object) -> dict[str, Any] | None:
    """Return a JSON object, an empty one for null, or None for any other value."""
    if value is None:
        return {}
    return value if isinstance(value, dict) else None


def _read_uri(params: dict[str, Any], request_id: RequestId) -> str:
    uri = params.get("uri")
    if not isinstance(uri, str):
        raise InvalidMessage(json_rpc.INVALID_PARAMS, "params.uri must be the URI of a resource.", request_id)
    return uri


def _read_id(message: dict[str, Any]) -> RequestId:
    request_id = message.get("id")
    if request_id is None and "id" not in message:
        return None
    if _is_id(request_id):
        return request_id
    raise InvalidMessage(json_rpc.INVALID_REQUEST, f"id must be {_AN_ID}.")


def _read_progress_token(meta: dict[str, Any], request_id: RequestId) -> str | int | None:
    if "progressToken" not in meta:
        return None
    progress_token = meta["progressToken"]
    if _is_id(progress_token):
        return progress_token
    raise InvalidMessage(json_rpc.INVALID_PARAMS, f"params._meta.progressToken must be {_AN_ID}.", request_id)


def _is_id(value: object) -> TypeGuard[str | int]:
    if isinstance(value, str):
        return len(value) <= _MAX_ID_LENGTH
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MAX_ID_NUMBER


def unknown_method_status(message: Message, headers: McpHeaders) -> int:
    """Return the status of the refusal of a method or notification outside the closed tables; 0 for one in them.

    404 belongs to 2026-07-28. To clients of earlier versions, it means that their session has ended: they get the error
    in a 200, or for a notification, which has no response, a 400 (MCP 2025-11-25, "Streamable HTTP").
    """
    if message.method in (METHODS if message.id is not None else NOTIFICATIONS):
        return 0
    return 404 if not headers.handshake else 200 if message.id is not None else 400
