"""JSON-RPC as far as the gate reads it, and the errors that both the gate and dispatch answer with."""

from dataclasses import dataclass
from typing import Any, Final

from gatehouse.shared import strict_json

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602

# Ours, in the range that JSON-RPC leaves to servers; the last two digits are those of the HTTP status.
UNAUTHENTICATED: Final = -32041
INSUFFICIENT_SCOPE: Final = -32043
UNAVAILABLE: Final = -32053

UNKNOWN_TOOL_MESSAGE: Final = "There is no such tool. Call tools/list for those that you may call."

RequestId = str | int | None


class InvalidMessage(Exception):
    """The body is no JSON-RPC message that this server reads. The text is public and says what to send."""

    def __init__(self, code: int, message: str, request_id: RequestId = None) -> None:
        super().__init__(message)
        self.code = code
        self.request_id = request_id


@dataclass(frozen=True, slots=True)
class Message:
    """What a body asks for. Without an id it is a notification."""

    id: RequestId
    method: str
    tool_name: str | None
    """`params.name` of a `tools/call`, if it is a string."""


def read_message(body: bytes) -> Message:
    """Read one JSON-RPC request or notification, so that no other reader can take it for another one.

    Raises:
        InvalidMessage: not strict JSON, a batch, a response, or a malformed id.
    """
    try:
        message = strict_json.loads(body)
    except strict_json.InvalidJson as error:
        raise InvalidMessage(PARSE_ERROR, f"The body cannot be read. {error}") from None
    if not isinstance(message, dict):
        raise InvalidMessage(INVALID_REQUEST, "Send one JSON-RPC object; batches are not served.")
    method, request_id = message.get("method"), message.get("id")
    if isinstance(request_id, bool) or not isinstance(request_id, str | int | None):
        raise InvalidMessage(INVALID_REQUEST, "id must be a string or a whole number.")
    if not isinstance(method, str) or ("id" in message and request_id is None):
        raise InvalidMessage(INVALID_REQUEST, "Send a JSON-RPC request: a method, and an id.", request_id)
    params = message.get("params")
    name = params.get("name") if isinstance(params, dict) and method == "tools/call" else None
    return Message(request_id, method, name if isinstance(name, str) else None)


def error_body(code: int, message: str, request_id: RequestId, data: dict[str, Any]) -> dict[str, Any]:
    """Return an error response (JSON-RPC 2.0, 5.1). SDK clients hand `message` to the agent."""
    return {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message, "data": data}}
