"""Declarations of tools: what a signature becomes, and which declarations stop the start."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, ValidationError

from gatehouse.directory.catalogue import CATALOGUE
from gatehouse.directory.directory import Directory, open_directory
from gatehouse.resourceserver.catalogue import (
    ANY_VALID_TOKEN,
    Catalogue,
    Progress,
    Scope,
    Tool,
    ToolGroup,
    Transactions,
)
from gatehouse.resourceserver.catalogue.signature import InvalidCatalogue
from gatehouse.resourceserver.dispatch.payload import read_arguments
from gatehouse.shared.protocol.claims import AccessClaims

READ = Scope("env:read", "See environments")


class Answer(BaseModel):
    """The result of a tool."""

    text: str


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


def synchronous(query: str) -> Answer:
    """Answer a query."""
    return Answer(text=query)


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


async def with_injected(_claims: AccessClaims, directory: Directory, query: str) -> Answer:
    """Answer a query of a caller in a workspace."""
    return Answer(text=f"{_claims} {directory} {query}")


async def with_progress(progress: Progress) -> Answer:
    """Report progress."""
    await progress.report(1, 1)
    return Answer(text="")


async def with_progress_and_directory(progress: Progress, directory: Directory) -> Answer:
    """Report progress, with a directory."""
    await progress.report(1, 1)
    return Answer(text=str(directory))


async def with_transactions(transactions: Transactions) -> Answer:
    """Change something."""
    return Answer(text=str(transactions))


async def importing(transactions: Transactions, progress: Progress) -> Answer:
    """Change something, and report progress."""
    await progress.report(1, 1)
    return Answer(text=str(transactions))


def declare(function: Any, scopes: Any = (READ.scope,), **options: Any) -> Tool:
    """Declare a tool in a catalogue, and return it."""
    group = ToolGroup()
    group.tool(**{"scopes": scopes, "read_only": True, **options})(function)
    catalogue = Catalogue("test", [READ], [group], providers={Directory: open_directory})
    return catalogue.tools[function.__name__]


def group_of(*functions: Any, scopes: Any = (READ.scope,)) -> ToolGroup:
    group = ToolGroup()
    for function in functions:
        group.tool(scopes=scopes, read_only=True)(function)
    return group


# Refused declarations


@pytest.mark.parametrize("scopes", [(), [], frozenset(), "", None])
def test_a_tool_without_a_list_of_scopes_is_refused(scopes: Any) -> None:
    assert declare(sound).scopes == {"env:read"}
    with pytest.raises(InvalidCatalogue, match=r"test_catalogue\.py:\d+: sound has no scopes\. .*ANY_VALID_TOKEN"):
        declare(sound, scopes)


def test_a_tool_declares_its_scopes() -> None:
    with pytest.raises(InvalidCatalogue, match=r"test_catalogue\.py:\d+: sound has no scopes"):
        ToolGroup().tool(read_only=True)(sound)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (undocumented, "has no docstring"),
        (synchronous, "is not async. Write it with async def"),
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
    assert str(refused.value).startswith(f"test_catalogue.py:{line}: {function.__name__} {problem}")


@pytest.mark.parametrize(
    ("function", "options", "problem"),
    [
        pytest.param(sound, {"streaming": True}, "has only one of streaming=True and", id="without progress"),
        pytest.param(with_progress, {}, "has only one of streaming=True and", id="progress alone"),
        pytest.param(
            with_progress_and_directory, {"streaming": True}, "is streaming, .* Take Transactions", id="directory"
        ),
        pytest.param(with_transactions, {}, "takes Transactions, which only a streaming tool", id="transactions alone"),
        pytest.param(
            importing,
            {"streaming": True, "read_only": True},
            "takes Transactions, which only",
            id="transactions to read",
        ),
    ],
)
def test_only_a_streaming_tool_takes_progress_and_transactions(
    function: Any, options: dict[str, Any], problem: str
) -> None:
    assert declare(importing, streaming=True, read_only=False).streaming
    with pytest.raises(InvalidCatalogue, match=rf"test_catalogue\.py:\d+: {function.__name__} {problem}"):
        declare(function, **{"read_only": False, **options})


def test_two_tools_with_one_name_are_refused() -> None:
    assert Catalogue("test", [READ], [group_of(sound)])
    with pytest.raises(InvalidCatalogue, match=r"sound is already declared in test_catalogue\.py:\d+\. Rename one"):
        Catalogue("test", [READ], [group_of(sound), group_of(sound)])


def test_a_tool_that_needs_an_undeclared_scope_is_refused() -> None:
    with pytest.raises(InvalidCatalogue, match=r"test_catalogue\.py:\d+: sound needs the scope env:raed.*env:read"):
        Catalogue("test", [READ], [group_of(sound, scopes=["env:raed"])])


@pytest.mark.parametrize(
    ("scopes", "problem"),
    [
        pytest.param([Scope("env:read", "", ("env:list",))], "env:read implies env:list, which is not", id="implied"),
        pytest.param([READ, Scope("env:read", "again")], "env:read is declared twice", id="twice"),
        pytest.param([Scope("env read", "")], "'env read' cannot be used", id="space"),
        pytest.param([Scope("", "")], "'' cannot be used", id="empty"),
        pytest.param([Scope('env"read', "")], "cannot be used", id="quote"),
    ],
)
def test_scopes_that_cannot_be_granted_are_refused(scopes: list[Scope], problem: str) -> None:
    with pytest.raises(InvalidCatalogue, match=problem):
        Catalogue("test", scopes, [])


# What a declaration becomes


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


@pytest.mark.parametrize("name", ["_claims", "directory"])
def test_a_caller_cannot_send_an_injected_parameter(name: str) -> None:
    model = declare(with_injected).arguments
    assert read_arguments(model, {"query": "a"})
    with pytest.raises(ValidationError, match="extra_forbidden"):
        read_arguments(model, {"query": "a", name: {"client_id": "somebody else"}})


def test_a_tool_may_need_any_valid_token() -> None:
    assert declare(sound, ANY_VALID_TOKEN).scopes == frozenset()


def test_a_declared_function_is_unchanged() -> None:
    group = ToolGroup()
    assert group.tool(scopes=["env:read"], read_only=True)(sound) is sound


def test_a_catalogue_is_sorted_and_cannot_be_changed() -> None:
    catalogue = Catalogue("test", [READ], [group_of(with_injected, sound)], providers={Directory: open_directory})
    assert list(catalogue.tools) == ["sound", "with_injected"]
    with pytest.raises(TypeError):
        catalogue.tools["late"] = catalogue.tools["sound"]  # type: ignore[index]
    with pytest.raises(TypeError):
        catalogue.scopes["late"] = READ  # type: ignore[index]


def test_the_catalogue_file_contains_the_scope_hierarchy_and_tools() -> None:
    document = CATALOGUE.document("https://mcp.example.com/mcp")
    assert document["resource"] == "https://mcp.example.com/mcp"
    scopes = {scope["scope"]: scope for scope in document["scopes"]}
    assert scopes["env:write"]["description"].startswith("Create environments")
    assert scopes["env:write"]["implies"] == ["env:read"]
    tools = {tool["name"]: tool for tool in document["tools"]}
    assert tools["create_environment"]["scopes"] == ["env:write"]
    assert tools["whoami"]["scopes"] == []
    assert [name for name, tool in tools.items() if tool["streaming"]] == ["import_organizations"]


@pytest.mark.parametrize("tool", CATALOGUE.tools.values(), ids=list(CATALOGUE.tools))
def test_every_bundled_tool_is_described_completely(tool: Tool) -> None:
    """These texts are all that an agent sees: each argument has a description, or a self-explanatory list of values."""
    assert len(tool.description) > 20
    for schema in tool.input_schema.get("properties", {}).values():
        assert schema.get("enum") or any("description" in part for part in schema.get("anyOf", [schema]))
    assert tool.read_only == tool.name.startswith(("list_", "get_", "search_", "whoami"))
    assert (tool.name in {"whoami", "search_docs"}) == (not tool.scopes)
