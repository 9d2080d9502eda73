"""Makes the JSON of every answer, before the event of its call is recorded.

What cannot be sent is refused here. Otherwise the encoder would fail after the event says that the call succeeded, or a
client would fail to read the answer.
"""

from collections.abc import Mapping
from typing import Any

from mcp_types import CallToolResult, TextContent
from mcp_types.methods import serialize_server_result
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from gatehouse.resourceserver.catalogue import Tool
from gatehouse.resourceserver.dispatch.containment import name_of
from gatehouse.shared.protocol import strict_json


class UnservableAnswer(Exception):
    """A value cannot be sent as JSON, or does not have the declared shape. The text says why, without the value."""


def proven_text(value: Any) -> str:
    """Return the JSON text of a value. Raises UnservableAnswer if there is none that every client can read."""
    try:
        return strict_json.dumps(value)
    except strict_json.InvalidJson as error:
        raise UnservableAnswer(str(error)) from None


def content_of(tool: Tool, value: object) -> dict[str, Any]:
    """Return the result of a declared tool as a JSON object, in the shape that its output schema shows.

    The declared type serializes it, by alias, whatever subclass the tool returned.

    Raises:
        UnservableAnswer: the value is not of the declared type, or `proven_text` refuses it.
    """
    if not isinstance(value, tool.result):
        raise UnservableAnswer("It is not what the output schema says.")
    try:
        content = tool.result.__pydantic_serializer__.to_python(value, mode="json", by_alias=True, warnings="error")
    except Exception as error:
        # Not its text, which repeats values. What a serializer raises is the cause.
        cause = error.__cause__
        why = "It is not what the output schema says." if cause is None else f"Its serializer raised {name_of(cause)}."
        raise UnservableAnswer(why) from error
    required = tool.output_schema.get("required", ())
    if not isinstance(content, dict) or not content.keys() >= set(required):
        raise UnservableAnswer("It lacks a member that the output schema requires.")
    return content


def structured_answer(content: Mapping[str, Any]) -> CallToolResult:
    """Return the response for a tool's result: its JSON, both as text and as structured content.

    Raises:
        UnservableAnswer: as `proven_text`.
    """
    return CallToolResult(content=[TextContent(text=proven_text(content))], structured_content=dict(content))


def forwarded_answer(result: CallToolResult, version: str) -> CallToolResult:
    """Return the result of an SDK server's tool, unchanged, as plain JSON in a protocol version.

    Raises:
        UnservableAnswer: `proven_text` refuses it, or the protocol version does not have what it contains.
    """
    try:
        sent = result.model_dump(mode="json", by_alias=True, exclude_none=True, warnings=False)
        if result.structured_content is not None:
            # The SDK would send null for NaN, which the output schema of the tool does not have to allow.
            sent["structuredContent"] = to_jsonable_python(result.structured_content, inf_nan_mode="constants")
        proven_text(sent)
        serialize_server_result("tools/call", version, sent)
        return CallToolResult.model_validate(sent, by_name=False)
    except ValidationError as error:
        raise UnservableAnswer(f"MCP {version} does not have what it contains.") from error
    except UnservableAnswer:
        raise
    except Exception as error:
        raise UnservableAnswer(f"Its serializer raised {name_of(error.__cause__ or error)}.") from error


def error_answer(message: str) -> CallToolResult:
    """Return the response for a call that failed. A character that cannot be sent is replaced."""
    text = message.encode(errors="replace").decode()
    return CallToolResult(content=[TextContent(text=text)], is_error=True)
