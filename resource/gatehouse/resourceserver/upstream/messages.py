"""The JSON-RPC messages between the gateway and an upstream: written from parsed values, and read strictly.

Both transports use this module. What an upstream sends is a claim of an untrusted server: a message is used only if no
two parsers read it differently, and error texts contain nothing of it.
"""

import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final, NamedTuple, TypeGuard

from mcp_types import CLIENT_CAPABILITIES_META_KEY, CLIENT_INFO_META_KEY, PROTOCOL_VERSION_META_KEY

from gatehouse.resourceserver.json_rpc import INTERNAL_ERROR, METHOD_NOT_FOUND
from gatehouse.resourceserver.upstream.upstream import (
    OutcomeUnknown,
    ToolCall,
    UpstreamError,
    UpstreamRefused,
    UpstreamUnavailable,
)
from gatehouse.shared.protocol.encoding import compact_json, parse_json

MODERN_VERSION: Final = "2026-07-28"
"""The protocol version whose requests are self-contained. There is no handshake."""

LEGACY_VERSIONS: Final = ("2025-11-25", "2025-06-18")
"""The protocol versions with a handshake, the preferred one first."""

UNSUPPORTED_VERSION: Final = -32022
"""MCP 2026-07-28, "Protocol Version Negotiation"."""

_CLIENT_INFO: Final = {"name": "gatehouse", "version": version("gatehouse")}

_MAX_PROGRESS_MESSAGE: Final = 1000
"""Characters of the message of a progress notification that are passed on."""

_MAX_VALUES: Final = 100_000
"""Members and elements of a message. To read a million small ones would stop every other call for seconds."""

_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
"""A string of JSON. It matches at every quotation mark, so that it reads each byte once."""

_MAX_ID: Final = 256
"""Characters of the id of a request of the server, which is sent back."""

_EXACT: Final = 2**53
"""Numbers beyond it are not exact in every parser."""

_MALFORMED: Final = "the upstream sent a message that is not valid JSON-RPC"


class Answer(NamedTuple):
    """The answer to a request."""

    request_id: int
    outcome: dict[str, Any] | UpstreamError
    """The result, or the error that the answer stands for."""

    def result(self) -> dict[str, Any]:
        """Return the result. Raises UpstreamError."""
        if isinstance(self.outcome, UpstreamError):
            raise self.outcome
        return self.outcome


class ProgressNotification(NamedTuple):
    """The progress of a request."""

    token: int
    """The progress token that the request had: its id."""
    progress: float
    total: float | None
    message: str | None


class ServerRequest(NamedTuple):
    """A request of the server to the client, which the gateway does not carry."""

    answer: bytes
    """The message to answer with: a refusal, or for `ping` an empty result."""


def write_request(request_id: int, method: str, params: Mapping[str, Any]) -> bytes:
    """Return a request as JSON in one line. Raises ValueError for a value that JSON does not have."""
    return compact_json({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}).encode()


def write_notification(method: str, params: Mapping[str, Any] | None = None) -> bytes:
    """Return a notification as JSON in one line."""
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
    return compact_json(message if params is None else {**message, "params": params}).encode()


def cancellation(request_id: int) -> bytes:
    """Return the notification that ends a request, except over Streamable HTTP of 2026-07-28."""
    return write_notification("notifications/cancelled", {"requestId": request_id})


def read_message(document: bytes) -> Answer | ProgressNotification | ServerRequest | None:
    """Read a message of an upstream. Return None for a notification that the gateway does not carry.

    Raises:
        OutcomeUnknown: it is not a message, or not one that every parser reads in the same way.
    """
    if _values(document) > _MAX_VALUES and _values(_STRING.sub(b"", document)) > _MAX_VALUES:
        raise OutcomeUnknown(f"the upstream sent a message of more than {_MAX_VALUES} values")
    try:
        message = parse_json(document)
    except ValueError:
        raise OutcomeUnknown("the upstream sent a message that is not valid JSON") from None
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        raise OutcomeUnknown(_MALFORMED)
    if "method" in message:
        return _read_method(message)
    request_id = message.get("id")
    if type(request_id) is not int or ("result" in message) == ("error" in message):
        raise OutcomeUnknown(_MALFORMED)
    return Answer(request_id, _read_error(message["error"]) if "error" in message else _read_result(message["result"]))


def _values(document: bytes) -> int:
    """Return at least the number of members and elements. Strings also count by what is in them."""
    return document.count(b",") + document.count(b"[") + document.count(b"{")


def _read_result(result: Any) -> dict[str, Any] | UpstreamError:
    if not isinstance(result, dict):
        return OutcomeUnknown(_MALFORMED)
    kind = result.get("resultType", "complete")
    if kind == "complete":
        return result
    if kind == "input_required":
        return OutcomeUnknown("the upstream requests input, which the gateway does not carry")
    return OutcomeUnknown("the upstream answered with a type of result that the gateway does not carry")


def _read_error(error: Any) -> UpstreamError:
    if not isinstance(error, dict):
        return OutcomeUnknown(_MALFORMED)
    code = error.get("code")
    return UpstreamRefused(code if type(code) is int and -(2**63) <= code < 2**63 else INTERNAL_ERROR)


def _read_method(message: dict[str, Any]) -> ProgressNotification | ServerRequest | None:
    if "result" in message or "error" in message or not isinstance(message["method"], str):
        raise OutcomeUnknown(_MALFORMED)
    if "id" in message:
        return _refuse_request(message)
    return _read_progress(message.get("params")) if message["method"] == "notifications/progress" else None


def _refuse_request(message: dict[str, Any]) -> ServerRequest:
    request_id = message["id"]
    valid = len(request_id) <= _MAX_ID if isinstance(request_id, str) else type(request_id) is int
    if not valid:
        raise OutcomeUnknown(_MALFORMED)
    answer: dict[str, Any] = {"jsonrpc": "2.0", "id": request_id}
    if message["method"] == "ping":
        answer["result"] = {}
    else:
        answer["error"] = {"code": METHOD_NOT_FOUND, "message": "This client serves no such method."}
    return ServerRequest(compact_json(answer).encode())


def _read_progress(params: Any) -> ProgressNotification | None:
    """Return None for a malformed notification: the outcome of the call does not depend on it."""
    if not isinstance(params, dict):
        return None
    token, message = params.get("progressToken"), params.get("message")
    progress, total = params.get("progress"), params.get("total")
    if type(token) is not int or not _is_number(progress) or not (total is None or _is_number(total)):
        return None
    return ProgressNotification(
        token, progress, total, message[:_MAX_PROGRESS_MESSAGE] if isinstance(message, str) else None
    )


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _EXACT


def modern_params(params: Mapping[str, Any], meta: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the parameters of a request of 2026-07-28, which states its version and its client in `_meta`.

    The gateway declares no capability: it carries no request of a server to its client.
    """
    own = {
        PROTOCOL_VERSION_META_KEY: MODERN_VERSION,
        CLIENT_INFO_META_KEY: _CLIENT_INFO,
        CLIENT_CAPABILITIES_META_KEY: {},
    }
    return {**params, "_meta": {**(meta or {}), **own}}


def initialize_params() -> dict[str, Any]:
    """Return the parameters of `initialize`, the handshake of the versions before 2026-07-28."""
    return {"protocolVersion": LEGACY_VERSIONS[0], "capabilities": {}, "clientInfo": _CLIENT_INFO}


def is_modern(discovered: Mapping[str, Any]) -> bool:
    """Tell whether the result of `server/discover` names the version 2026-07-28."""
    versions = discovered.get("supportedVersions")
    return isinstance(versions, list) and MODERN_VERSION in versions


def negotiated_version(initialized: Mapping[str, Any]) -> str:
    """Return the protocol version of the result of `initialize`.

    Raises:
        UpstreamUnavailable: it is none of LEGACY_VERSIONS.
    """
    for known in LEGACY_VERSIONS:
        if initialized.get("protocolVersion") == known:
            return known
    supported = ", ".join((MODERN_VERSION, *LEGACY_VERSIONS))
    raise UpstreamUnavailable(f"the upstream supports none of the MCP versions {supported}")


def call_params(call: ToolCall, protocol_version: str, request_id: int) -> dict[str, Any]:
    """Return the parameters of `tools/call`. The progress token is the id of the request."""
    params = {"name": call.tool["name"], "arguments": dict(call.arguments)}
    meta = call.meta if call.notify is None else {**call.meta, "progressToken": request_id}
    if protocol_version == MODERN_VERSION:
        return modern_params(params, meta)
    return {**params, "_meta": meta} if meta else params
