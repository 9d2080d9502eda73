"""Makes the JSON of every answer, before the event of its call is recorded.

What cannot be sent is refused here. Otherwise the encoder would fail after the event says that the call succeeded, or a
client would fail to read the answer.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from mcp_types import CallToolResult, TextContent
from mcp_types.methods import serialize_server_result
from pydantic import ValidationError

from gatehouse.resourceserver.catalogue import Tool
from gatehouse.resourceserver.dispatch.containment import name_of

MAX_DEPTH: Final = 50
"""Maximum number of arrays and objects around a value. The official C# client reads at most 64, with the envelope."""


class UnservableAnswer(Exception):
    """A value cannot be sent as JSON, or does not have the declared shape. The text says why, without the value."""


def json_text(value: Any) -> str:
    """Return a value as the text of a JSON document (RFC 8259) that every client can read.

    Raises:
        UnservableAnswer: it contains NaN, an infinity, half of a surrogate pair, or a type that JSON does not have, or
            it is nested deeper than MAX_DEPTH.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:
        raise UnservableAnswer("it contains half of a surrogate pair, which is no character") from None
    except TypeError:
        raise UnservableAnswer("it contains a type that JSON does not have") from None
    except RecursionError:
        raise UnservableAnswer(f"it is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError:
        raise UnservableAnswer("it contains NaN, an infinity or a number that is too long") from None
    # Counting brackets is fast, and settles it for nearly every value.
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise UnservableAnswer(f"it is nested deeper than {MAX_DEPTH} levels")
    return text


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [part for item in level for part in (item.values() if isinstance(item, dict) else item)]
    return depth


def content_of(tool: Tool, value: object) -> dict[str, Any]:
    """Return the result of a declared tool as a JSON object, in the shape that its output schema shows.

    The declared type serializes it, by alias, whatever subclass the tool returned.

    Raises:
        UnservableAnswer: the value is not of the declared type, or `json_text` refuses it.
    """
    try:
        content = tool.result.__pydantic_serializer__.to_python(value, mode="json", by_alias=True, warnings="error")
    except Exception as error:
        # Not its text, which repeats values. What a serializer raises is the cause.
        cause = error.__cause__
        why = "it is not what the output schema says" if cause is None else f"its serializer raised {name_of(cause)}"
        raise UnservableAnswer(why) from error
    required = tool.output_schema.get("required", ())
    if not isinstance(content, dict) or not content.keys() >= set(required):
        raise UnservableAnswer("it lacks a member that the output schema requires")
    return content


def structured_answer(content: Mapping[str, Any]) -> CallToolResult:
    """Return the response for a tool's result: its JSON, both as text and as structured content.

    Raises:
        UnservableAnswer: as `json_text`.
    """
    return CallToolResult(content=[TextContent(text=json_text(content))], structured_content=dict(content))


def forwarded_answer(result: CallToolResult, version: str) -> CallToolResult:
    """Return the result of an SDK server's tool, unchanged, as plain JSON in a protocol version.

    Raises:
        UnservableAnswer: `json_text` refuses it, or the protocol version does not have what it contains.
    """
    try:
        sent = result.model_dump(mode="json", by_alias=True, exclude_none=True)
        json_text(sent)
        serialize_server_result("tools/call", version, sent)
        return CallToolResult.model_validate(sent, by_name=False)
    except ValidationError as error:
        raise UnservableAnswer(f"MCP {version} does not have what it contains") from error
    except UnservableAnswer:
        raise
    except Exception as error:
        raise UnservableAnswer(f"its serializer raised {name_of(error.__cause__ or error)}") from error


def error_answer(message: str) -> CallToolResult:
    """Return the response for a call that failed. A character that cannot be sent is replaced."""
    text = message.encode(errors="replace").decode()
    return CallToolResult(content=[TextContent(text=text)], is_error=True)
