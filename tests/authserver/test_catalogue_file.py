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


POLICY = """
resource = "https://a.example/mcp"
[upstream]
url = "http://127.0.0.1:3001/mcp"
[scopes."a:read"]
description = "See"
[scopes."a:write"]
implies = ["a:read"]
[tools.get]
scopes = ["a:read"]
digest = "sha256:00"
[tools.get.arguments.text]
max_length = 5
[tools.whoami]
any_valid_token = true
[tools.delete_all]
deny = true
"""


def test_a_policy_file_is_a_catalogue_without_its_denied_tools() -> None:
    read = parse_catalogue(POLICY.encode())
    assert read == parse_catalogue(document())
    assert read.tools == {"get": {"a:read"}, "whoami": frozenset()}


@pytest.mark.parametrize("file", [document(), POLICY.encode()], ids=["JSON", "TOML"])
def test_the_resource_of_the_command_must_be_that_of_the_file(file: bytes) -> None:
    assert parse_catalogue(file, "HTTPS://a.example/mcp").resource == RESOURCE
    with pytest.raises(CommandRefused, match=r"belongs to https://a\.example/mcp, not to"):
        parse_catalogue(file, "https://b.example")


@pytest.mark.parametrize(
    "file", [document(resource=None), POLICY.replace("resource =", "name =").encode()], ids=["JSON", "TOML"]
)
def test_the_command_names_the_resource_if_the_file_does_not(file: bytes) -> None:
    assert parse_catalogue(file, "HTTPS://b.example/mcp").resource == "https://b.example/mcp"
    with pytest.raises(CommandRefused, match="name it in the command"):
        parse_catalogue(file)


@pytest.mark.threat("T-112")
@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        pytest.param("[upstream]", "[upstream", "cannot be read as TOML: line 3: ", id="not TOML"),
        pytest.param("See", "\udcff", "not text in UTF-8", id="not UTF-8"),
        pytest.param('"https://a.example/mcp"', "1", "'resource'", id="resource is a number"),
        pytest.param('"https://a.example/mcp"', '"http://a.example/mcp"', "https", id="plain http"),
        pytest.param('[scopes."a:read"]', "[[scopes]]", "has no tables", id="two kinds of scopes"),
        pytest.param('description = "See"', "description = 1", "'description'", id="description is a number"),
        pytest.param('description = "See"', 'description = "\\u001b"', "visible", id="an escape"),
        pytest.param('description = "See"', 'scope = "b"', "unknown key scope", id="another name"),
        pytest.param("implies =", "implie =", "The scope a:write has the unknown key implie", id="misspelt"),
        pytest.param('"a:write"', '"a write"', "Invalid scope", id="scope syntax"),
        pytest.param("[tools.get]", "[[tools]]", "has no tables", id="tools are a list"),
        pytest.param("[upstream]", "tools = 1\n[upstream]", "Cannot", id="tools are a number"),
        pytest.param('["a:read"]\ndigest', '["b"]\ndigest', "not declare: 'b'", id="undeclared scope"),
        pytest.param('["a:read"]\ndigest', "[]\ndigest", "The tool get has no scopes", id="no scopes"),
        pytest.param('["a:read"]\ndigest', '"a:read"\ndigest', "'scopes'", id="scopes are a text"),
        pytest.param("scopes =", "scope =", "The tool get needs one of", id="misspelt scopes"),
        pytest.param("any_valid_token = true", "any_valid_token = false", "whoami needs one of", id="false"),
        pytest.param("any_valid_token = true", "any_valid_token = 1", "whoami needs one of", id="1 for true"),
        pytest.param("deny = true", "deny = 1", "delete_all needs one of", id="deny is 1"),
        pytest.param("deny = true", 'deny = true\nscopes = ["a:read"]', "delete_all needs one of", id="both"),
        pytest.param("[tools.whoami]", '[tools."a\\u001b"]', "'name'", id="a tool name with an escape"),
    ],
)
def test_an_invalid_policy_file_is_refused(before: str, after: str, problem: str) -> None:
    assert parse_catalogue(POLICY.encode()).resource == RESOURCE
    changed = POLICY.replace(before, after, 1)
    assert changed != POLICY
    with pytest.raises(CommandRefused, match=problem):
        parse_catalogue(changed.encode(errors="surrogateescape"))


@pytest.mark.parametrize(
    "changed", ["scopes = []", "scopes = {a = 1}", "tools = 1\nscopes.a = {}", "tools.a = 1\nscopes.a = {}"]
)
def test_scopes_and_tools_of_a_policy_file_are_tables(changed: str) -> None:
    with pytest.raises(CommandRefused, match="has no tables"):
        parse_catalogue(f'resource = "{RESOURCE}"\n{changed}'.encode())


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
        pytest.param(b'{"scopes"', "cannot be read", id="cut off"),
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
