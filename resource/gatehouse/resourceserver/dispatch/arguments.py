"""Validates the arguments of a call, and tells the caller what is wrong without repeating a value."""

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from gatehouse.resourceserver.catalogue.input_schema import Location, unknown_argument

_MAX_EXACT: Final = 2**53 - 1
"""Above it, a JSON number with a fraction is read as a float that may differ from what was sent (RFC 8259 6)."""

_INTEGER_EXPECTED: Final = frozenset({"int_type", "literal_error", "enum"})
"""The errors of pydantic for a float where the schema says integer: a plain integer, a literal or an enum."""

_MAX_PROBLEMS: Final = 10
"""Problems that one answer lists."""

_MAX_READ: Final = 10_000
"""Problems that are read one by one. A body of 1 MiB can have 100,000, and reading them would hold up other calls."""


def read_arguments(model: type[BaseModel], sent: Mapping[str, Any]) -> tuple[BaseModel, Mapping[str, Any]]:
    """Return the validated arguments, and the arguments as sent with 5 for each 5.0 whose schema says integer.

    To JSON Schema, a number with a zero fraction is an integer (2020-12, section 4.2.3), and some clients write all
    numbers with a fraction. Arguments with more than 10,000 problems are not converted.

    Raises:
        ValidationError: the arguments do not fit the model.
    """
    # Validated as JSON, so that strict mode accepts a string for a date or an Enum, and applies to nested models.
    try:
        document = json.dumps(sent)
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
    return model.model_validate_json(json.dumps(normal), strict=True), normal


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
