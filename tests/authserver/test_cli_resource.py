"""The command group `resource`: registration, scopes and removal of resources."""

import json

import pytest
from support.authserver import RESOURCE
from support.shell import CREATE, Shell


def test_a_resource_is_shown_with_its_scope_descriptions(shell: Shell) -> None:
    shown = shell.json("resource", "show", RESOURCE)
    described = {"scope": "env:read", "description": "See environments", "implies": [], "declared": True}
    assert described in shown["scopes"]
    assert "See environments" in shell.text("resource", "show", RESOURCE)
    assert "There is no resource" in shell.refusal("resource", "show", f"{RESOURCE}/other")


def test_an_undeclared_scope_is_kept_but_cannot_be_granted(shell: Shell) -> None:
    holder, other = shell.json(*CREATE)["client_id"], shell.json(*CREATE)["client_id"]
    shell.text("client", "grant", "add", holder, "--resource", RESOURCE, "--scope", "env:write")
    result = shell.run("resource", "add", RESOURCE, "--name", "tools", "--scope", "env:read")
    assert result.exit_code == 0
    assert "No longer declared: env:write org:read. Clients keep their grants of these" in result.stderr
    assert "env:write" not in result.stdout
    assert shell.json("audit")[-1]["detail"] == {"scopes": ["env:read"], "undeclared": ["env:write", "org:read"]}
    shown = shell.json("resource", "show", RESOURCE)
    assert shown["scopes_supported"] == ["env:read"]
    assert {row["scope"]: row["declared"] for row in shown["scopes"]} == {
        "env:read": True,
        "env:write": False,
        "org:read": False,
    }
    assert "declared" in shell.text("resource", "show", RESOURCE).splitlines()[3]
    refusal = shell.refusal("client", "grant", "add", other, "--resource", RESOURCE, "--scope", "env:write")
    assert "The resource no longer declares the scope env:write. Its scopes are: env:read." in refusal
    assert shell.json("token", "issue", "--client", holder, "--resource", RESOURCE)["scope"] == "env:read env:write"
    again = shell.run("resource", "add", RESOURCE, "--name", "tools", "--scope", "env:read", "--scope", "env:write")
    assert "No longer declared: org:read." in again.stderr
    assert shell.text("client", "grant", "add", other, "--resource", RESOURCE, "--scope", "env:write")


def test_scopes_separated_by_commas_are_refused_with_a_hint(shell: Shell) -> None:
    client_id = shell.json(*CREATE)["client_id"]
    add = ("client", "grant", "add", client_id, "--resource", RESOURCE, "--scope")
    assert shell.text(*add, "env:read env:write")
    assert shell.refusal(*add, "env:read,env:write").endswith("env:write, org:read. Separate scopes by spaces.\n")
    assert "Separate scopes by one space" in shell.refusal(*add, "env:read  env:write")
    refusal = shell.refusal("token", "issue", "--client", client_id, "--resource", RESOURCE, "--scope", "a,b")
    assert f"{RESOURCE} has no scope a,b; it has: env:read env:write org:read." in refusal
    assert refusal.endswith("Ask for a scope that the resource has. Separate scopes by spaces.\n")


@pytest.mark.both_databases
def test_a_resource_is_removed_with_its_grants(shell: Shell) -> None:
    client_id = shell.json(*CREATE)["client_id"]
    assert "Repeat the command with --yes" in shell.refusal("resource", "remove", RESOURCE)
    assert shell.json("resource", "list")
    assert shell.json("resource", "remove", RESOURCE, "--yes")["clients"] == [client_id]
    assert shell.json("resource", "list") == []
    assert shell.json("client", "show", client_id)["grants"] == []
    assert shell.json("audit")[-1]["action"] == "resource.remove"
    assert "There is no resource" in shell.refusal("resource", "remove", RESOURCE, "--yes")


@pytest.mark.both_databases
def test_a_registered_resource_is_listed_with_its_scopes(shell: Shell) -> None:
    [listed] = shell.json("resource", "list")
    assert listed == {
        "resource": RESOURCE,
        "resource_name": "tools",
        "scopes_supported": ["env:read", "env:write", "org:read"],
        "scopes": [
            {"scope": "env:read", "description": "See environments", "implies": [], "declared": True},
            {"scope": "env:write", "description": "", "implies": [], "declared": True},
            {"scope": "org:read", "description": "", "implies": [], "declared": True},
        ],
    }
    table = shell.text("resource", "list")
    assert RESOURCE in table
    assert "env:read env:write org:read" in table


def test_a_resource_takes_its_scopes_from_a_catalogue(shell: Shell) -> None:
    catalogue = shell.folder / "catalogue.json"
    scopes = [{"scope": "log:read", "description": "See logs"}, {"scope": "log:write", "implies": ["log:read"]}]
    catalogue.write_text(json.dumps({"resource": "https://logs.example.com/mcp", "scopes": scopes}))
    add = ["resource", "add", "--name", "logs", "--catalogue", str(catalogue)]
    added = shell.json(*add, "https://logs.example.com/mcp")
    assert added["scopes"][1] == {"scope": "log:write", "description": "", "implies": ["log:read"], "declared": True}
    assert "The catalogue belongs to https://logs.example.com/mcp" in shell.refusal(*add, RESOURCE)


def test_a_resource_takes_its_scopes_from_a_policy_file(shell: Shell) -> None:
    policy = shell.folder / "policy.toml"
    policy.write_text('[scopes."log:read"]\ndescription = "See logs"\n[tools.read]\nscopes = ["log:read"]\n')
    added = shell.json("resource", "add", "https://logs.example.com/mcp", "--name", "logs", "--catalogue", str(policy))
    assert added["scopes"] == [{"scope": "log:read", "description": "See logs", "implies": [], "declared": True}]
    policy.write_text("scopes =\n")
    add = ("resource", "add", RESOURCE, "--name", "logs", "--catalogue", str(policy))
    assert "cannot be read as TOML: line 1: Invalid value." in shell.refusal(*add)


@pytest.mark.parametrize(
    ("arguments", "remediation"),
    [
        pytest.param([], "--scope", id="neither"),
        pytest.param(["--scope", "a", "--catalogue", __file__], "--catalogue", id="both"),
        pytest.param(["--catalogue", "/no/such/file"], "does not exist", id="no such catalogue"),
    ],
)
def test_scopes_come_from_options_or_from_a_catalogue(shell: Shell, arguments: list[str], remediation: str) -> None:
    assert remediation in shell.refusal("resource", "add", RESOURCE, "--name", "tools", *arguments, code=2)
