"""The reader of JSON-RPC requests, and the error codes and bodies of the gate and dispatch."""

from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from gatehouse.shared.protocol import strict_json

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602

HEADER_MISMATCH: Final = -32020
"""MCP 2026-07-28, "Streamable HTTP"."""

# Outside of -32768 to -32000: JSON-RPC reserves the range, and MCP 2026-07-28 keeps what is left of it for itself. The
# last two digits are those of the HTTP status.
UNAUTHENTICATED: Final = -31041
INSUFFICIENT_SCOPE: Final = -31043
UNAVAILABLE: Final = -31053

UNKNOWN_TOOL_MESSAGE: Final = "There is no such tool. Call tools/list for those that you may call."
UNKNOWN_RESOURCE_MESSAGE: Final = "There is no such resource. Call resources/list for those that you may read."

RequestId = str | int | None

_RESPONSE = frozenset({"result", "error"})
_MAX_ID_LENGTH = 128
_MAX_ID_NUMBER = 2**63
_AN_ID = f"a string of at most {_MAX_ID_LENGTH} characters, or a whole number of 64 bits"


class InvalidMessage(Exception):
    """The body is not a JSON-RPC message that this server accepts. The text is public and says what to send."""

    def __init__(self, code: int, message: str, request_id: RequestId = None) -> None:
        super().__init__(message)
        self.code = code
        self.request_id = request_id


@dataclass(frozen=True, slots=True)
class Message:
    """A request. Without an id, it is a notification."""

    id: RequestId
    method: str
    tool_name: str | None
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
        message = strict_json.loads(body)
    except strict_json.InvalidJson as error:
        raise InvalidMessage(PARSE_ERROR, f"The body cannot be read. {error}") from None
    if not isinstance(message, dict):
        raise InvalidMessage(INVALID_REQUEST, "Send one JSON-RPC object; batches are not supported.")
    request_id = _read_id(message)
    method, params = message.get("method"), _object_or_null(message.get("params"))
    if message.get("jsonrpc") != "2.0" or not isinstance(method, str) or not message.keys().isdisjoint(_RESPONSE):
        raise InvalidMessage(INVALID_REQUEST, 'Send a JSON-RPC request: "jsonrpc": "2.0", a method, an id.', request_id)
    meta = _object_or_null(params.get("_meta")) if params is not None else None
    if params is None or meta is None:
        raise InvalidMessage(INVALID_PARAMS, "params must be an object, and so must params._meta.", request_id)
    progress_token = _read_progress_token(meta, request_id)
    if method == "resources/read":
        return Message(request_id, method, None, progress_token, _read_uri(params, request_id))
    if method != "tools/call":
        return Message(request_id, method, None, progress_token)
    name, arguments = params.get("name"), params.get("arguments")
    if not isinstance(name, str):
        raise InvalidMessage(INVALID_PARAMS, "params.name must be the name of a tool.", request_id)
    if not isinstance(arguments, dict | None):
        raise InvalidMessage(INVALID_PARAMS, "params.arguments must be an object.", request_id)
    return Message(request_id, method, name, progress_token)


def _object_or_null(value: object) -> dict[str, Any] | None:
    """Return a JSON object, an empty one for null, or None for any other value."""
    if value is None:
        return {}
    return value if isinstance(value, dict) else None


def _read_uri(params: dict[str, Any], request_id: RequestId) -> str:
    uri = params.get("uri")
    if not isinstance(uri, str):
        raise InvalidMessage(INVALID_PARAMS, "params.uri must be the URI of a resource.", request_id)
    return uri


def _read_id(message: dict[str, Any]) -> RequestId:
    request_id = message.get("id")
    if request_id is None and "id" not in message:
        return None
    if _is_id(request_id):
        return request_id
    raise InvalidMessage(INVALID_REQUEST, f"id must be {_AN_ID}.")


def _read_progress_token(meta: dict[str, Any], request_id: RequestId) -> str | int | None:
    if "progressToken" not in meta:
        return None
    progress_token = meta["progressToken"]
    if _is_id(progress_token):
        return progress_token
    raise InvalidMessage(INVALID_PARAMS, f"params._meta.progressToken must be {_AN_ID}.", request_id)


def _is_id(value: object) -> TypeGuard[str | int]:
    if isinstance(value, str):
        return len(value) <= _MAX_ID_LENGTH
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MAX_ID_NUMBER


def error_body(code: int, message: str, request_id: RequestId, data: dict[str, Any]) -> dict[str, Any]:
    """Return an error response (JSON-RPC 2.0, 5.1). SDK clients show `message` to the agent."""
    return {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message, "data": data}}
