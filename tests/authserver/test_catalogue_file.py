"""Reading the catalogue file of a resource server."""

import json
from typing import Any

import pytest

from gatehouse.authserver.resources.catalogue import parse_catalogue
from gatehouse.authserver.resources.registration import ScopeDeclaration
from gatehouse.directory.catalogue import CATALOGUE
from gatehouse.shared.service.administrator import CommandRefused

RESOURCE = "https://a.example/mcp"


def document(**changes: Any) -> bytes:
    """Return a valid catalogue file with some members changed. None removes a member."""
    members = {
        "resource": RESOURCE,
        "scopes": [{"scope": "a:read", "description": "See"}, {"scope": "a:write", "implies": ["a:read"]}],
        "tools": [{"name": "get", "scopes": ["a:read"], "streaming": True}, {"name": "whoami", "scopes": []}],
        "made_by": "somebody",
        **changes,
    }
    return json.dumps({name: value for name, value in members.items() if value is not None}).encode()


def test_the_output_of_the_resource_server_is_read_completely() -> None:
    read = parse_catalogue(json.dumps(CATALOGUE.document(RESOURCE)).encode())
    assert read.resource == RESOURCE
    assert {scope.scope: scope.implies for scope in read.scopes} == {
        name: scope.implies for name, scope in CATALOGUE.scopes.items()
    }
    assert read.tools == {name: tool.scopes for name, tool in CATALOGUE.tools.items()}
    for scope in CATALOGUE.scopes:
        assert read.hierarchy.closure([scope]) == CATALOGUE.hierarchy.closure([scope])


def test_unknown_members_are_ignored() -> None:
    read = parse_catalogue(document())
    assert read.scopes == (ScopeDeclaration("a:read", "See"), ScopeDeclaration("a:write", "", ("a:read",)))
    assert read.tools == {"get": {"a:read"}, "whoami": frozenset()}


def test_a_catalogue_may_list_scopes_without_tools() -> None:
    assert parse_catalogue(document(tools=None)).tools == {}


@pytest.mark.threat("T-112")
@pytest.mark.parametrize(
    ("file", "problem"),
    [
        pytest.param(b"scopes", "cannot be read", id="not JSON"),
        pytest.param(b'{"scopes": [], "scopes": [{"scope": "a"}]}', "cannot be read", id="a duplicate member"),
        pytest.param(b"[]", "not a JSON object", id="a list"),
        pytest.param(document(scopes=None), "'scopes'", id="no scopes"),
        pytest.param(document(scopes=[]), "at least one scope", id="an empty list of scopes"),
        pytest.param(document(scopes=["a"]), "'scopes'", id="scopes are texts"),
        pytest.param(document(scopes=[{"description": "a"}]), "'scope'", id="scope without a name"),
        pytest.param(document(scopes=[{"scope": "a b"}]), "Invalid scope", id="scope syntax"),
        pytest.param(document(scopes=[{"scope": "a"}, {"scope": "a"}]), "each scope once", id="a duplicate scope"),
        pytest.param(document(scopes=[{"scope": "a", "implies": "b"}]), "'implies'", id="implies is a text"),
        pytest.param(document(scopes=[{"scope": "a", "implies": [1]}]), "'implies'", id="implies a number"),
        pytest.param(document(scopes=[{"scope": "a", "implies": ["\u0430"]}]), "Invalid scope", id="implied syntax"),
        pytest.param(document(scopes=[{"scope": "a", "description": "\x1b[2J"}]), "visible", id="an escape"),
        pytest.param(document(resource=None), "'resource'", id="no resource"),
        pytest.param(document(resource=1), "'resource'", id="resource is a number"),
        pytest.param(document(resource="http://a.example/mcp"), "https", id="plain http"),
        pytest.param(document(tools={}), "'tools'", id="tools are not a list"),
        pytest.param(document(tools=["get"]), "'tools'", id="tools are texts"),
        pytest.param(document(tools=[{"scopes": []}]), "'name'", id="tool without a name"),
        pytest.param(document(tools=[{"name": "", "scopes": []}]), "'name'", id="tool with an empty name"),
        pytest.param(document(tools=[{"name": "a" * 129, "scopes": []}]), "'name'", id="tool with a long name"),
        pytest.param(document(tools=[{"name": "a\x1b[2J", "scopes": []}]), "'name'", id="tool name with an escape"),
        pytest.param(document(tools=[{"name": "get"}]), "'scopes'", id="a tool without scopes"),
        pytest.param(document(tools=[{"name": "get", "scopes": None}]), "'scopes'", id="a tool needs null"),
        pytest.param(document(tools=[{"name": "get", "scopes": "a:read"}]), "'scopes'", id="a tool needs a text"),
        pytest.param(document(tools=[{"name": "get", "scopes": ["c"]}]), "not declare: 'c'", id="undeclared scope"),
        pytest.param(document(tools=[{"name": "get", "scopes": []}] * 2), "twice", id="a duplicate tool"),
    ],
)
def test_an_invalid_catalogue_is_refused(file: bytes, problem: str) -> None:
    assert parse_catalogue(document()).resource == RESOURCE
    with pytest.raises(CommandRefused, match=problem):
        parse_catalogue(file)
