"""The JSON-RPC error codes and bodies of the gate and dispatch."""

from typing import Any, Final

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603

HEADER_MISMATCH: Final = -32020
"""MCP 2026-07-28, "Streamable HTTP"."""

# Outside of -32768 to -32000: JSON-RPC reserves the range, and MCP 2026-07-28 reserves the rest of it for itself. The
# last two digits are those of the HTTP status.
UNAUTHENTICATED: Final = -31041
INSUFFICIENT_SCOPE: Final = -31043
TOO_MANY_REQUESTS: Final = -31029
UNAVAILABLE: Final = -31053

UNKNOWN_TOOL_MESSAGE: Final = "There is no such tool. tools/list names the tools that you may call."
WITHHELD_TOOL_MESSAGE: Final = "This tool is not available now: the operator of this server must confirm it first."
UNKNOWN_RESOURCE_MESSAGE: Final = "There is no such resource. Call resources/list for those that you may read."

RequestId = str | int | None


def error_body(code: int, message: str, request_id: RequestId, data: dict[str, Any]) -> dict[str, Any]:
    """Return an error response (JSON-RPC 2.0, 5.1). SDK clients show `message` to the agent."""
    return {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message, "data": data}}
