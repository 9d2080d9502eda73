"""The arguments and the result of a call: both are validated before they go further.

The caller learns what is wrong with an argument, without its value. A result that cannot be sent is refused before the
event of its call is recorded. Otherwise the encoder would fail after the event says that the call succeeded, or a
client would fail to read the answer.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from mcp_types import CallToolResult, TextContent
from mcp_types.methods import serialize_server_result
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError, PydanticSerializationError

from gatehouse.resourceserver.catalogue import Tool
from gatehouse.resourceserver.catalogue.input_schema import Location, unknown_argument
from gatehouse.resourceserver.dispatch.containment import name_of
from gatehouse.shared.protocol.encoding import InvalidJson, compact_json, format_json

_MAX_EXACT: Final = 2**53 - 1
"""Above it, a JSON number with a fraction is read as a float that may differ from what was sent (RFC 8259 6)."""

_INTEGER_EXPECTED: Final = frozenset({"int_type", "literal_error", "enum"})
"""The errors of pydantic for a float where the schema says integer: a plain integer, a literal or an enum."""

_MAX_PROBLEMS: Final = 10
"""Problems that one answer lists."""

_MAX_READ: Final = 10_000
"""Problems that are read one by one. A body of 1 MiB can have 100,000, and reading them would hold up other calls."""

_REPLACEMENT: Final = "\ufffd"

_HALF: Final = re.compile("[\ud800-\udfff]")


def read_arguments(model: type[BaseModel], sent: Mapping[str, Any]) -> tuple[BaseModel, Mapping[str, Any]]:
    """Return the validated arguments, and the arguments as sent with 5 for each 5.0 whose schema says integer.

    To JSON Schema, a number with a zero fraction is an integer (2020-12, section 4.2.3), and some clients write all
    numbers with a fraction. Arguments with more than 10,000 problems are not converted.

    Raises:
        ValidationError: the arguments do not fit the model.
    """
    # Validated as JSON, so that strict mode accepts a string for a date or an Enum, and applies to nested models.
    try:
        document = compact_json(sent)
    except RecursionError:
        too_deep = InitErrorDetails(type=PydanticCustomError("too_deep", "nested too deep"), input=None)
        raise ValidationError.from_exception_data(model.__name__, [too_deep]) from None
    try:
        return model.model_validate_json(document, strict=True), sent
    except ValidationError as error:
        if error.error_count() > _MAX_READ:
            raise
        normal: dict[str, Any] = json.loads(document)
        problems = error.errors(include_input=False, include_url=False, include_context=False)
        converted = [_convert(normal, problem["loc"]) for problem in problems if problem["type"] in _INTEGER_EXPECTED]
        if not any(converted):
            raise
    return model.model_validate_json(compact_json(normal), strict=True), normal


def _convert(document: dict[str, Any], location: Location) -> bool:
    """Replace a whole float by its integer. Return whether there is one at the location."""
    parent: Any = None
    key: Any = None
    value: Any = document
    step: Any
    for step in location:
        # A step that is not in the document names a member of a union.
        if (isinstance(value, dict) and step in value) or (isinstance(value, list) and isinstance(step, int)):
            parent, key, value = value, step, value[step]
    if not isinstance(value, float) or not value.is_integer() or abs(value) > _MAX_EXACT:
        return False
    parent[key] = int(value)
    return True


def explain(error: ValidationError, input_schema: Mapping[str, Any]) -> str:
    """Say which argument is wrong and what it must be. Repeats no value, and of unknown arguments not even the name."""
    if error.error_count() > _MAX_READ:
        return f"The arguments do not fit the tool's input schema in more than {_MAX_READ} places."
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    told = dict.fromkeys(_explain_one(problem, input_schema) for problem in problems)
    return f"The arguments do not fit the tool's input schema: {'; '.join([*told][:_MAX_PROBLEMS])}."


def _explain_one(problem: ErrorDetails, input_schema: Mapping[str, Any]) -> str:
    location = problem["loc"]
    if problem["type"] == "extra_forbidden":
        return unknown_argument(input_schema, location[:-1])
    return f"{'.'.join(map(str, location)) or 'arguments'}: {problem['msg']}"


class Answer(NamedTuple):
    """What the caller of a tool is told."""

    text: str
    """The JSON of the result, for clients that do not read `content`; or why the call failed."""
    content: Any = None
    """The structured result."""
    is_error: bool = False
    forwarded: CallToolResult | None = None
    """The result of an SDK server's tool, which replaces all others."""

    def as_result(self) -> CallToolResult:
        """Return the answer as the SDK sends it."""
        if self.forwarded is not None:
            return self.forwarded
        return CallToolResult(
            content=[TextContent(text=self.text)], structured_content=self.content, is_error=self.is_error
        )


class UnservableAnswer(Exception):
    """A value cannot be sent as JSON, or does not have the declared shape. The text says why, without the value."""


def declared_answer(tool: Tool, value: object) -> Answer:
    """Return the response for the result of a declared tool: a JSON object in the shape that its output schema shows.

    The declared type serializes it, by alias, whatever subclass the tool returned.

    Raises:
        UnservableAnswer: the value is not of the declared type, or cannot be sent as JSON.
    """
    if not isinstance(value, tool.result):
        raise UnservableAnswer("It is not what the output schema says.")
    content, text = _serialize(tool, value, warnings="error")
    if not isinstance(content, dict) or not all(map(content.__contains__, tool.output_schema.get("required", ()))):
        raise UnservableAnswer("It lacks a member that the output schema requires.")
    return Answer(text, content)


def kept_answer(content: dict[str, Any]) -> Answer:
    """Return the response for a result that was proven before, and is sent again. Raises UnservableAnswer."""
    return Answer(_text(content), content)


def forwarded_answer(tool: Tool, result: CallToolResult, version: str) -> Answer:
    """Return the result of an SDK server's tool, unchanged, as plain JSON in a protocol version.

    Raises:
        UnservableAnswer: it cannot be sent as JSON, or the protocol version does not have what it contains.
    """
    sent, _ = _serialize(tool, result, warnings=False, exclude_none=True)
    try:
        serialize_server_result("tools/call", version, sent)
        forwarded = CallToolResult.model_validate(sent, by_name=False)
    except ValidationError as error:
        raise UnservableAnswer(f"MCP {version} does not have what it contains.") from error
    return Answer("", forwarded.structured_content, forwarded.is_error, forwarded)


def _serialize(tool: Tool, value: object, **options: Any) -> tuple[Any, str]:
    """Return a result as JSON, and its text. Raises UnservableAnswer."""
    serialize = tool.serializer.to_python
    try:
        content = serialize(value, mode="json", by_alias=True, **options)
        text = _text(content)
        if _REPLACEMENT in text:
            _check_names(content, serialize(value, mode="python", by_alias=True, **options))
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
        return format_json(content)
    except InvalidJson as error:
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


def error_answer(message: str) -> Answer:
    """Return the response for a call that failed. A character that cannot be sent is replaced."""
    return Answer(message.encode(errors="replace").decode(), is_error=True)
