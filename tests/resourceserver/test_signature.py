"""What the signature of a tool becomes, and which signatures are refused."""

import functools
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any, NamedTuple, NewType, TypeVar
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, RootModel, ValidationError
from support.declarations import Answer, declare
from typing_extensions import TypeAliasType

from gatehouse.directory.directory import Directory
from gatehouse.resourceserver.catalogue import Catalogue, Scope, ToolGroup
from gatehouse.resourceserver.catalogue.signature import InvalidCatalogue
from gatehouse.resourceserver.dispatch.payload import read_arguments
from gatehouse.shared.protocol.claims import AccessClaims


class Colour(Enum):
    """One of two."""

    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    """A place."""

    x: int
    y: int = 0


class Inner(BaseModel):
    """An object within an argument."""

    number: int


async def of_many_types(
    colour: Colour, since: datetime, point: Point, numbers: set[int], pair: tuple[int, str], uid: UUID, inner: Inner
) -> Answer:
    """Return arguments of types that JSON lacks."""
    return Answer(text=f"{colour} {since} {point} {numbers} {pair} {uid} {inner}")


async def sound(query: Annotated[str, Field(max_length=5)], limit: int = 3) -> Answer:
    """Answer a query."""
    return Answer(text=query * limit)


async def undocumented(query: str) -> Answer:
    return Answer(text=query)


def generating(query: str) -> Answer:  # type: ignore[misc]
    """Answer a query."""
    yield Answer(text=query)


async def generating_on_the_loop(query: str) -> Answer:  # type: ignore[misc]
    """Answer a query."""
    yield Answer(text=query)


async def joining(directory: Directory) -> Answer:
    """Read a directory."""
    return Answer(text=str(directory))


async def untyped(query) -> Answer:
    """Answer a query."""
    return Answer(text=query)


async def positional(*query: str) -> Answer:
    """Answer a query."""
    return Answer(text=query[0])


async def keywords(**query: str) -> Answer:
    """Answer a query."""
    return Answer(text=query["query"])


async def returning_text(query: str) -> str:
    """Answer a query."""
    return query


async def returning_nothing_said(query: str):
    """Answer a query."""
    return Answer(text=query)


async def of_unknown_type(query: "NoSuchType") -> Answer:  # noqa: F821
    """Answer a query."""
    return Answer(text=query)


async def of_no_json_type(query: Callable[[], object]) -> Answer:
    """Answer a query."""
    return Answer(text=str(query()))


async def by_position(query: str, /) -> Answer:
    """Answer a query."""
    return Answer(text=query)


async def hidden(_query: str) -> Answer:
    """Answer a query."""
    return Answer(text=_query)


async def configuring(model_config: str) -> Answer:
    """Answer a query."""
    return Answer(text=model_config)


async def dumping(model_dump: str) -> Answer:
    """Answer a query."""
    return Answer(text=model_dump)


async def shadowing(schema: str, copy: int, json: bool = False) -> Answer:
    """Answer a query."""
    return Answer(text=f"{schema} {copy} {json}")


def with_injected(_claims: AccessClaims, directory: Directory, query: str) -> Answer:
    """Answer a query of a caller in a workspace."""
    return Answer(text=f"{_claims} {directory} {query}")


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (undocumented, "has no docstring"),
        (generating, "is a generator. Return the result instead of yielding it"),
        (generating_on_the_loop, "is a generator"),
        (joining, "takes Directory, which works in the call's transaction, and is async. Such a tool runs in a thread"),
        (untyped, "has the argument query without a type. Annotate it"),
        (positional, "has the argument query"),
        (keywords, "has the argument query"),
        (returning_text, "does not return a pydantic model. Annotate its result"),
        (returning_nothing_said, "does not return a pydantic model. Annotate its result"),
        (of_unknown_type, "has a type that cannot be found: name 'NoSuchType'"),
        (of_no_json_type, "has the argument query, whose type JSON cannot represent"),
        (by_position, "takes query by position only. Remove the /"),
        (hidden, "has the argument _query, which a pydantic model cannot have. Rename it"),
        (configuring, "has the argument model_config, which a pydantic model cannot have"),
        (dumping, "has the argument model_dump, which a pydantic model cannot have"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_invalid_declaration_names_file_tool_and_fix(function: Any, problem: str) -> None:
    assert declare(sound)
    with pytest.raises(InvalidCatalogue) as refused:
        declare(function)
    line = function.__code__.co_firstlineno
    assert str(refused.value).startswith(f"test_signature.py:{line}: {function.__name__} {problem}")


def test_name_and_schemas_come_from_the_signature() -> None:
    tool = declare(sound)
    assert (tool.name, tool.description) == ("sound", "Answer a query.")
    schema = tool.input_schema
    assert schema["properties"]["query"]["maxLength"] == 5
    assert schema["properties"]["limit"]["default"] == 3
    assert (schema["required"], schema["additionalProperties"]) == (["query"], False)
    assert tool.output_schema["properties"]["text"]["type"] == "string"


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="missing"),
        pytest.param({"query": 5}, id="number for text"),
        pytest.param({"query": "abcdef"}, id="too long"),
        pytest.param({"query": "a", "limit": "3"}, id="text for number"),
        pytest.param({"query": "a", "limit": True}, id="bool for number"),
        pytest.param({"query": "a", "more": 1}, id="unknown"),
    ],
)
def test_arguments_are_never_converted(arguments: dict[str, Any]) -> None:
    model = declare(sound).arguments
    assert read_arguments(model, {"query": "a", "limit": 2})
    with pytest.raises(ValidationError):
        read_arguments(model, arguments)


OF_MANY_TYPES = {
    "colour": "red",
    "since": "2026-01-31T12:00:00Z",
    "point": {"x": 1},
    "numbers": [1, 2],
    "pair": [1, "a"],
    "uid": "6f9619ff-8b86-d011-b42d-00c04fc964ff",
    "inner": {"number": 1},
}


def test_types_that_json_lacks_are_sent_as_the_schema_says() -> None:
    tool = declare(of_many_types)
    assert tool.input_schema["$defs"]["Colour"]["enum"] == ["red", "blue"]
    read, _ = read_arguments(tool.arguments, OF_MANY_TYPES)
    assert {name: getattr(read, name) for name in OF_MANY_TYPES} == {
        "colour": Colour.RED,
        "since": datetime(2026, 1, 31, 12, tzinfo=UTC),
        "point": Point(1),
        "numbers": {1, 2},
        "pair": (1, "a"),
        "uid": UUID("6f9619ff-8b86-d011-b42d-00c04fc964ff"),
        "inner": Inner(number=1),
    }


@pytest.mark.parametrize(
    "wrong",
    [
        *({"colour": "green"}, {"since": 5}, {"since": "soon"}, {"point": {"x": "1"}}, {"numbers": ["1"]}),
        *({"pair": [1]}, {"uid": "x"}, {"inner": {"number": "1"}}, {"inner": None}),
    ],
    ids=json.dumps,
)
def test_nothing_within_an_argument_is_converted(wrong: dict[str, Any]) -> None:
    model = declare(of_many_types).arguments
    assert read_arguments(model, OF_MANY_TYPES)
    with pytest.raises(ValidationError):
        read_arguments(model, {**OF_MANY_TYPES, **wrong})


def test_arguments_that_are_nested_too_deeply_are_invalid() -> None:
    model, deep = declare(sound).arguments, {}  # type: ignore[var-annotated]
    for _ in range(5000):
        deep = {"a": deep}
    with pytest.raises(ValidationError, match="nested too deep"):
        read_arguments(model, {"query": deep})


def test_an_argument_may_have_the_name_of_an_old_pydantic_method() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tool = declare(shadowing)
    assert tool.input_schema["required"] == ["schema", "copy"]
    read, _ = read_arguments(tool.arguments, {"schema": "a", "copy": 2})
    assert [getattr(read, name) for name in tool.arguments.model_fields] == ["a", 2, False]


def test_injected_parameters_are_not_arguments() -> None:
    tool = declare(with_injected)
    assert dict(tool.injected) == {"_claims": AccessClaims, "directory": Directory}
    assert tool.input_schema["properties"].keys() == {"query"}
    assert tool.joins_transaction
    assert not declare(sound).joins_transaction


def test_a_plain_decorator_of_an_async_tool_is_refused() -> None:
    @functools.wraps(sound)
    def decorated(query: str) -> Any:
        return sound(query)

    with pytest.raises(InvalidCatalogue, match=r"sound has a decorator whose function is not async\. Write that with"):
        declare(decorated)


def test_a_plain_function_runs_in_a_thread() -> None:
    assert declare(with_injected).in_thread
    assert not declare(sound).in_thread


@pytest.mark.parametrize("name", ["_claims", "directory"])
def test_a_caller_cannot_send_an_injected_parameter(name: str) -> None:
    model = declare(with_injected).arguments
    assert read_arguments(model, {"query": "a"})
    with pytest.raises(ValidationError, match="extra_forbidden"):
        read_arguments(model, {"query": "a", name: {"client_id": "somebody else"}})


# Signatures with injected types, and results


class Words(RootModel[list[str]]):
    """A result that is not a JSON object."""


class Disguise(AccessClaims):
    """A kind of caller."""


async def optional(claims: AccessClaims | None = None) -> Answer:
    """Answer."""
    return Answer(text=str(claims))


async def annotated(claims: Annotated[AccessClaims, "the caller"]) -> Answer:
    """Answer."""
    return Answer(text=str(claims))


async def several(claims: list[AccessClaims]) -> Answer:
    """Answer."""
    return Answer(text=str(claims))


async def derived(claims: Disguise) -> Answer:
    """Answer."""
    return Answer(text=str(claims))


Caller = NewType("Caller", AccessClaims)

Renamed = TypeAliasType("Renamed", AccessClaims)

SomeCaller = TypeVar("SomeCaller", bound=AccessClaims)


class Envelope(BaseModel):
    """An argument with a caller in it."""

    inner: list[AccessClaims]


class Pair(NamedTuple):
    """Another one."""

    inner: AccessClaims


async def new_type(claims: Caller) -> Answer:
    """Answer."""
    return Answer(text=str(claims))


async def alias(claims: Renamed) -> Answer:
    """Answer."""
    return Answer(text=str(claims))


async def variable(claims: SomeCaller) -> Answer:
    """Answer."""
    return Answer(text=str(claims))


async def enclosed(claims: Envelope) -> Answer:
    """Answer."""
    return Answer(text=str(claims))


async def paired(claims: Pair) -> Answer:
    """Answer."""
    return Answer(text=str(claims))


async def plain(claims: AccessClaims) -> Answer:
    """Answer."""
    return Answer(text=claims.client_id)


DOORS = [Scope("door:open", "Open doors")]

SPELLINGS = [optional, annotated, several, derived, new_type, alias, variable, enclosed, paired]


@pytest.mark.threat("T-053")
@pytest.mark.parametrize("function", SPELLINGS, ids=lambda function: function.__name__)
def test_no_spelling_of_an_injected_type_becomes_an_argument(function: Any) -> None:
    """CWE-290, CWE-915: the caller could write another identity into the call."""
    group = ToolGroup()
    group.tool(scopes=["door:open"])(plain)
    assert Catalogue("test", DOORS, [group]).tools["plain"].input_schema["properties"] == {}
    group.tool(scopes=["door:open"])(function)
    with pytest.raises(InvalidCatalogue, match=rf"{function.__name__} has AccessClaims within .* Write claims: Access"):
        Catalogue("test", DOORS, [group])


class Unfinished(BaseModel):
    """A model with an undefined type."""

    other: "Nowhere"  # type: ignore[name-defined]  # noqa: F821


def test_a_type_that_pydantic_cannot_read_is_refused_with_the_tool() -> None:
    async def unfinished(thing: Unfinished) -> Answer:
        """Answer."""
        return Answer(text=str(thing))

    group = ToolGroup()
    group.tool(scopes=["door:open"])(unfinished)
    with pytest.raises(InvalidCatalogue, match="unfinished has the argument thing, whose type JSON cannot represent"):
        Catalogue("test", DOORS, [group])


def test_a_tool_returns_an_object_and_has_a_valid_name() -> None:
    async def words() -> Words:
        """Answer."""
        return Words(["a"])

    async def named() -> Answer:
        """Answer."""
        return Answer(text="")

    named.__name__ = "tür"
    for function, problem in (
        (words, "words does not return a JSON object"),
        (named, "'tür' is not a valid tool name"),
    ):
        group = ToolGroup()
        group.tool(scopes=["door:open"])(function)
        with pytest.raises(InvalidCatalogue, match=problem):
            Catalogue("test", DOORS, [group])


def test_a_tool_writes_unless_it_declares_that_it_only_reads() -> None:
    group = ToolGroup()
    group.tool(scopes=["door:open"])(plain)
    assert not group.declarations[0].read_only
