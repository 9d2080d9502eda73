"""Reads the function of a tool: description, arguments, injected parameters and result."""

import inspect
import warnings
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, get_type_hints

from mcp_types import CallToolResult
from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.errors import PydanticUserError
from pydantic_core import SchemaError

from gatehouse.resourceserver.catalogue.output_schema import object_schema, unwrapped

IDEMPOTENCY_KEY: Final = "idempotency_key"
"""Name of the argument that the server adds to every tool that writes in one transaction."""

IdempotencyKey = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9._:-]{8,128}$",
        description="Your own unique name for this call, 8 to 128 of A-Z a-z 0-9 . _ : -. If you get no response, "
        "repeat the call with the same key and arguments within 24 hours: it does not run twice.",
    ),
]

_RESERVED: Final = frozenset(name for name in dir(BaseModel) if name.startswith("model_"))
"""Names that a pydantic model reserves."""

ToolFunction = Callable[..., BaseModel] | Callable[..., Awaitable[BaseModel]]
"""A plain function runs in a thread, an async function on the event loop."""


class InvalidCatalogue(Exception):
    """A declaration is invalid. The message names the file and the tool, and says how to fix it."""


def source_of(function: ToolFunction) -> str:
    """Return file and line of a function, for messages."""
    code = inspect.unwrap(function).__code__
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}"


def read_description(function: ToolFunction, name: str, source: str) -> str:
    """Return the docstring. Raises InvalidCatalogue if there is none."""
    description = inspect.getdoc(function)
    if not description:
        raise InvalidCatalogue(f"{source}: {name} has no docstring. An agent reads it to decide whether to call.")
    return description


def read_signature(
    function: ToolFunction, name: str, source: str, injectable: Collection[type]
) -> tuple[dict[str, type], dict[str, Any], type[BaseModel]]:
    """Return the injected types by parameter, the fields of the argument model, and the model of the result.

    Args:
        function: the tool.
        name: its name, for messages.
        source: its file and line, for messages.
        injectable: types that the server injects. Parameters of every other type are arguments.

    Raises:
        InvalidCatalogue: the function is a generator, a parameter or the result has no usable type, or an argument
            could contain an injected type or has a reserved name.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidCatalogue(f"{source}: {name} is a generator. Return the result instead of yielding it.")
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise InvalidCatalogue(f"{source}: {name} has a type that cannot be found: {error}.") from None
    result = unwrapped(hints.pop("return", None))
    if not (inspect.isclass(result) and issubclass(result, BaseModel)) or issubclass(result, CallToolResult):
        raise InvalidCatalogue(f"{source}: {name} does not return a pydantic model. Annotate its result with one.")
    injected: dict[str, type] = {}
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        _check_parameter(parameter, hints, name, source, injectable)
        if hints[parameter.name] in injectable:
            injected[parameter.name] = hints[parameter.name]
        elif (hidden := _injected_within(hints[parameter.name], injectable)) is not None:
            # As an argument, callers could send it, for example another identity.
            raise InvalidCatalogue(
                f"{source}: {name} has {hidden.__name__} within the type of {parameter.name}. "
                f"Write {parameter.name}: {hidden.__name__}, and the server injects it."
            )
        else:
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints[parameter.name], default)
    return injected, fields, result


def _check_parameter(
    parameter: inspect.Parameter, hints: Mapping[str, Any], name: str, source: str, injectable: Collection[type]
) -> None:
    """Raise InvalidCatalogue for a parameter that a caller cannot send and the server does not inject."""
    if parameter.name not in hints or parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
        raise InvalidCatalogue(f"{source}: {name} has the argument {parameter.name} without a type. Annotate it.")
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise InvalidCatalogue(f"{source}: {name} takes {parameter.name} by position only. Remove the / after it.")
    injected = hints[parameter.name] in injectable
    if not injected and (parameter.name.startswith("_") or parameter.name in _RESERVED):
        raise InvalidCatalogue(
            f"{source}: {name} has the argument {parameter.name}, which a pydantic model cannot have. Rename it."
        )
    if parameter.name == IDEMPOTENCY_KEY:
        raise InvalidCatalogue(
            f"{source}: {name} has the argument {parameter.name}, which the server adds to tools that write in one "
            "transaction. Remove it."
        )


def _injected_within(hint: Any, injectable: Collection[type]) -> type | None:
    """Return the injected type that an argument of this type would be parsed into, or would contain."""
    config = ConfigDict(arbitrary_types_allowed=True)
    try:
        probe = create_model("probe", __config__=config, argument=(hint, ...))
        classes = list(_classes_of(probe.__pydantic_core_schema__))
    except Exception:  # noqa: BLE001 - building the model of the arguments reports why
        return None
    return next((injected for found in classes for injected in injectable if issubclass(found, injected)), None)


def _classes_of(schema: Any) -> Iterator[type]:
    """Yield the classes that a pydantic core schema creates or checks instances of."""
    if isinstance(schema, Mapping):
        if inspect.isclass(schema.get("cls")):
            yield schema["cls"]
        schema = list(schema.values())
    if isinstance(schema, list | tuple):
        for part in schema:
            yield from _classes_of(part)


def arguments_model(name: str, fields: dict[str, Any]) -> type[BaseModel]:
    """Return the model that validates what a caller sends."""
    # Unknown arguments are refused, and types are not converted: "5" is not 5.
    config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)
    with warnings.catch_warnings():
        # An argument may be called `schema` or `copy`: the deprecated methods of these names are not used here.
        warnings.filterwarnings("ignore", r'Field name ".*" in ".*" shadows an attribute', UserWarning)
        return create_model(f"{name}_arguments", __config__=config, **fields)


def read_arguments_model(name: str, fields: dict[str, Any], source: str) -> tuple[type[BaseModel], dict[str, Any]]:
    """Return the model that validates what a caller sends, and its JSON schema.

    Raises:
        InvalidCatalogue: pydantic cannot read an argument's type from JSON, or cannot describe it.
    """
    try:
        model = arguments_model(name, fields)
        return model, model.model_json_schema()
    except Exception as error:  # noqa: BLE001 - pydantic raises many types, and runs code of the argument's type
        argument = next((each for each in fields if not _is_readable(each, fields[each])), None)
        what = f"the argument {argument}, whose type" if argument is not None else "a type that"
        raise InvalidCatalogue(f"{source}: {name} has {what} JSON cannot represent: {_why(error)}") from None


def read_result(model: type[BaseModel], name: str, source: str) -> dict[str, Any]:
    """Return the JSON schema of a tool's result.

    Raises:
        InvalidCatalogue: pydantic cannot describe it, or its JSON is not an object.
    """
    try:
        schema = object_schema(model)
    except Exception as error:  # noqa: BLE001 - pydantic raises many types, and runs code of the model
        raise InvalidCatalogue(
            f"{source}: {name} returns {model.__name__}, which has a type that JSON cannot represent: {_why(error)}"
        ) from None
    if schema is None:
        raise InvalidCatalogue(
            f"{source}: {name} does not return a JSON object: {model.__name__} can be something else. "
            "Put its result into a member of a model."
        )
    return schema


def _is_readable(name: str, field: Any) -> bool:
    try:
        arguments_model("probe", {name: field}).model_json_schema()
    except Exception:  # noqa: BLE001 - as in read_arguments_model
        return False
    return True


def _why(error: Exception) -> str:
    """Return why pydantic refuses a type, and what to do instead, in one line."""
    if isinstance(error, SchemaError) and "regex parse error" in str(error):
        reason = str(error).rpartition("error: ")[2].strip()
        return f"its pattern cannot be compiled: {reason}. Write a simpler pattern, or check the value in the tool."
    if isinstance(error, SchemaError):
        return f"{str(error).rpartition(': ')[2].strip()}. Use another type."
    text = error.message if isinstance(error, PydanticUserError) else str(error)
    return f"{text.partition('. ')[0].partition(chr(10))[0].rstrip('.')}. Use a type that pydantic reads from JSON."
