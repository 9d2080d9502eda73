"""Makes the JSON of every answer, before the event of its call is recorded.

What cannot be sent is refused here. Otherwise the encoder would fail after the event says that the call succeeded, or a
client would fail to read the answer.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

from mcp_types import CallToolResult, TextContent
from mcp_types.methods import serialize_server_result
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from gatehouse.resourceserver.catalogue import Tool
from gatehouse.resourceserver.dispatch.containment import name_of
from gatehouse.shared.protocol import strict_json

_REPLACEMENT: Final = "\ufffd"

_HALF: Final = re.compile("[\ud800-\udfff]")


class UnservableAnswer(Exception):
    """A value cannot be sent as JSON, or does not have the declared shape. The text says why, without the value."""


def declared_answer(tool: Tool, value: object) -> CallToolResult:
    """Return the response for the result of a declared tool: a JSON object in the shape that its output schema shows.

    The declared type serializes it, by alias, whatever subclass the tool returned.

    Raises:
        UnservableAnswer: the value is not of the declared type, or cannot be sent as JSON.
    """
    if not isinstance(value, tool.result):
        raise UnservableAnswer("It is not what the output schema says.")
    content, text = _serialize(tool, value, warnings="error")
    required = tool.output_schema.get("required", ())
    if not isinstance(content, dict) or not content.keys() >= set(required):
        raise UnservableAnswer("It lacks a member that the output schema requires.")
    return CallToolResult(content=[TextContent(text=text)], structured_content=content)


def kept_answer(content: dict[str, Any]) -> CallToolResult:
    """Return the response for a result that was proven before, and is sent again. Raises UnservableAnswer."""
    return CallToolResult(content=[TextContent(text=_text(content))], structured_content=content)


def forwarded_answer(tool: Tool, result: CallToolResult, version: str) -> CallToolResult:
    """Return the result of an SDK server's tool, unchanged, as plain JSON in a protocol version.

    Raises:
        UnservableAnswer: it cannot be sent as JSON, or the protocol version does not have what it contains.
    """
    sent, _ = _serialize(tool, result, warnings=False, exclude_none=True)
    try:
        serialize_server_result("tools/call", version, sent)
        return CallToolResult.model_validate(sent, by_name=False)
    except ValidationError as error:
        raise UnservableAnswer(f"MCP {version} does not have what it contains.") from error


def _serialize(tool: Tool, value: object, **options: Any) -> tuple[Any, str]:
    """Return a result as JSON, and its text. Raises UnservableAnswer."""
    serialize = partial(tool.serializer.to_python, value, by_alias=True, **options)
    try:
        content = serialize(mode="json")
        text = _text(content)
        if _REPLACEMENT in text:
            _check_names(content, serialize(mode="python"))
    except UnservableAnswer:
        raise
    except Exception as error:
        # Not its text, which repeats values. What a serializer raises is the cause.
        if error.__cause__ is None and isinstance(error, PydanticSerializationError):
            raise UnservableAnswer("It is not what the output schema says.") from error
        raise UnservableAnswer(f"Its serializer raised {name_of(error.__cause__ or error)}.") from error
    return content, text


def _text(content: Any) -> str:
    """Return the JSON text of a value. Raises UnservableAnswer if there is none that every client can read."""
    try:
        return strict_json.dumps(content)
    except strict_json.InvalidJson as error:
        raise UnservableAnswer(str(error)) from None


def _check_names(content: Any, value: Any) -> None:
    """Refuse a replaced member name: pydantic writes U+FFFD for half of a surrogate pair in a key of `dict[str, ...]`.

    `value` is the same result before the conversion to JSON.

    Raises:
        UnservableAnswer: `value` has a name that is not text, or does not have a name that contains U+FFFD.
    """
    names = set(_names(value))
    replaced = {name for name in _names(content) if _REPLACEMENT in name}
    if not replaced <= names or any(_HALF.search(name) for name in names):
        raise UnservableAnswer("Half of a surrogate pair is not text.")


def _names(value: Any) -> Iterator[str]:
    """Yield the names of all members within a value."""
    if isinstance(value, Mapping):
        yield from (name for name in value if isinstance(name, str))
        value = value.values()
    elif not isinstance(value, list | tuple | set | frozenset):
        return
    for each in value:
        yield from _names(each)


def error_answer(message: str) -> CallToolResult:
    """Return the response for a call that failed. A character that cannot be sent is replaced."""
    text = message.encode(errors="replace").decode()
    return CallToolResult(content=[TextContent(text=text)], is_error=True)
