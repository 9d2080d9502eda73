"""Catalogues: the scopes and names of their tools, what a catalogue file contains, and what stops the start."""

from typing import Annotated, Any

import pytest
from pydantic import Field
from support.declarations import READ, Answer, declare

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
from gatehouse.shared.protocol.claims import AccessClaims


async def sound(query: Annotated[str, Field(max_length=5)], limit: int = 3) -> Answer:
    """Answer a query."""
    return Answer(text=query * limit)


def with_injected(_claims: AccessClaims, directory: Directory, query: str) -> Answer:
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


def in_thread(progress: Progress) -> Answer:
    """Report progress, in a thread."""
    return Answer(text=str(progress))


async def importing(transactions: Transactions, progress: Progress) -> Answer:
    """Change something, and report progress."""
    await progress.report(1, 1)
    return Answer(text=str(transactions))


def group_of(*functions: Any, scopes: Any = (READ.scope,)) -> ToolGroup:
    group = ToolGroup()
    for function in functions:
        group.tool(scopes=scopes, read_only=True)(function)
    return group


# Refused catalogues


@pytest.mark.parametrize("scopes", [(), [], frozenset(), "", None])
def test_a_tool_without_a_list_of_scopes_is_refused(scopes: Any) -> None:
    assert declare(sound).scopes == {"env:read"}
    with pytest.raises(InvalidCatalogue, match=r"test_catalogue\.py:\d+: sound has no scopes\. .*ANY_VALID_TOKEN"):
        declare(sound, scopes)


def test_a_tool_declares_its_scopes() -> None:
    with pytest.raises(InvalidCatalogue, match=r"test_catalogue\.py:\d+: sound has no scopes"):
        ToolGroup().tool(read_only=True)(sound)


@pytest.mark.parametrize(
    ("function", "options", "problem"),
    [
        pytest.param(sound, {"streaming": True}, "has only one of streaming=True and", id="without progress"),
        pytest.param(with_progress, {}, "has only one of streaming=True and", id="progress alone"),
        pytest.param(
            with_progress_and_directory, {"streaming": True}, "is streaming, .* Take Transactions", id="directory"
        ),
        pytest.param(
            in_thread, {"streaming": True}, "is streaming, and not async. Write it with async", id="in thread"
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


# What a catalogue contains


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
