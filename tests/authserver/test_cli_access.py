"""`client explain` and `access-matrix`: which client can call which tool."""

import csv
import io
import json
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
from support.authserver import OTHER_RESOURCE, RESOURCE
from support.clock import FakeClock
from support.platforms import Platform, github, kubernetes
from support.shell import CREATE, Shell

from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import ClientKeyRow, ClientSecretRow
from gatehouse.shared.service.database import parse_database_url

CATALOGUE: dict[str, Any] = {
    "resource": RESOURCE,
    "scopes": [{"scope": "env:read"}, {"scope": "env:write"}, {"scope": "org:read"}],
    "tools": [
        {"name": "get", "scopes": ["env:read"]},
        {"name": "set", "scopes": ["env:write", "env:read"]},
        {"name": "[bold]", "scopes": ["org:read"], "streaming": True},
        {"name": "client_id", "scopes": []},
    ],
}


@pytest.fixture
def file(shell: Shell) -> str:
    """A catalogue file whose name needs quotes in a shell."""
    return write(shell.folder / "the catalogue.json")


def write(path: Path, **changes: Any) -> str:
    path.write_text(json.dumps({**CATALOGUE, **changes}))
    return str(path)


def created(shell: Shell, *options: str) -> str:
    client_id: str = shell.json(*CREATE, *options)["client_id"]
    return client_id


def tools_of(shell: Shell, client_id: str, file: str) -> dict[str, Any]:
    explained = shell.json("client", "explain", client_id, "--catalogue", file)
    return {tool["tool"]: tool for tool in explained["tools"]}


def run_all(shell: Shell, commands: str) -> None:
    """Run a line of commands as a shell would."""
    for command in commands.split(" && "):
        program, *arguments = shlex.split(command)
        assert program == "authserver"
        shell.text(*arguments)


def delete_credentials(shell: Shell) -> None:
    """Delete every secret and key, which no command does."""
    database = Database(parse_database_url(shell.environment["AUTHSERVER_DATABASE_URL"]))
    with database.write() as session:
        session.query(ClientSecretRow).delete()
        session.query(ClientKeyRow).delete()
    database.close()


def test_a_client_is_explained_without_a_catalogue(shell: Shell) -> None:
    client_id = created(shell, "--claim", "workspace_id=wks_1")
    assert shell.json("client", "explain", client_id) == {
        "client_id": client_id,
        "client_name": "agent",
        "obstacles": [],
        "warnings": [],
        "claims": {"workspace_id": "wks_1"},
        "scopes": [{"resource": RESOURCE, "scope": "env:read", "granted": True, "by": []}],
        "tools": [],
    }
    assert "There is no client nobody" in shell.refusal("client", "explain", "nobody")


def test_each_tool_is_explained_with_a_command_to_paste(shell: Shell, file: str) -> None:
    client_id = created(shell)
    tools = tools_of(shell, client_id, file)
    assert [name for name, tool in tools.items() if tool["allowed"]] == ["get", "client_id"]
    assert tools["set"] == {
        "tool": "set",
        "allowed": False,
        "needs": ["env:read", "env:write"],
        "through": ["env:read"],
        "missing": ["env:write"],
        "reason": "needs env:write",
        "remediation": f"authserver client grant add {client_id} --resource {RESOURCE} --scope env:write",
    }
    run_all(shell, tools["set"]["remediation"])
    assert tools_of(shell, client_id, file)["set"]["allowed"]


def test_the_listed_commands_remove_every_obstacle(shell: Shell, file: str) -> None:
    client_id = created(shell)
    assert tools_of(shell, client_id, file)["get"]["allowed"]
    shell.text("client", "disable", client_id)
    delete_credentials(shell)
    # The resource server has changed: it has a new scope and a new implication.
    scopes = [*CATALOGUE["scopes"], {"scope": "env:admin", "implies": ["org:read"]}]
    newer = write(
        shell.folder / "newer.json", scopes=scopes, tools=[{"name": "drop", "scopes": ["org:read", "env:admin"]}]
    )
    drop = tools_of(shell, client_id, newer)["drop"]
    assert drop["reason"] == "the client is disabled; the client has no secret; needs env:admin"
    assert [command.split()[1:3] for command in drop["remediation"].split(" && ")] == [
        ["client", "enable"],
        ["client", "secret"],
        ["resource", "add"],
        ["client", "grant"],
    ]
    run_all(shell, drop["remediation"])
    assert tools_of(shell, client_id, newer)["drop"]["allowed"]


def test_obstacles_to_every_call_are_listed_first(shell: Shell, file: str) -> None:
    client_id = created(shell)
    assert shell.text("client", "explain", client_id, "--catalogue", file).startswith("client_id ")
    shell.text("client", "disable", client_id)
    delete_credentials(shell)
    other = write(shell.folder / "other.json", resource=OTHER_RESOURCE)
    lines = shell.text("client", "explain", client_id, "--catalogue", other).splitlines()
    add = f"authserver resource add {OTHER_RESOURCE} --name other.example.com --catalogue {other}"
    assert lines[:3] == [
        f"no token: the client is disabled. Run: authserver client enable {client_id}",
        f"no token: the client has no secret. Run: authserver client secret rotate --yes {client_id}",
        f"warning: {OTHER_RESOURCE} is not registered here. Run: {add}",
    ]


def test_for_a_client_without_a_key_no_command_is_listed(shell: Shell, file: str) -> None:
    client_id = created(shell, "--generate-key", str(shell.folder / "agent.pem"))
    assert tools_of(shell, client_id, file)["get"]["allowed"]
    delete_credentials(shell)
    assert tools_of(shell, client_id, file)["get"]["remediation"] is None
    shown = shell.text("client", "explain", client_id, "--catalogue", file)
    assert shown.startswith("no token: the client has no usable key; add one with client key rotate.\n")
    assert "to allow" not in shown


def test_one_tool_is_explained_with_an_exit_code(shell: Shell, file: str) -> None:
    client_id = created(shell)
    explain = ("client", "explain", client_id, "--catalogue", file, "--tool")
    assert "to allow" not in shell.text(*explain, "get")
    refused = shell.run(*explain, "[bold]")
    assert refused.exit_code == 1
    command = f"authserver client grant add {client_id} --resource {RESOURCE} --scope org:read"
    assert refused.stdout.endswith(f"\nto allow [bold]:\n  {command}\n")
    assert "set" not in refused.stdout
    assert "no tool delete. Its tools are: get, set" in shell.refusal(*explain, "delete")
    assert "need --catalogue" in shell.refusal("client", "explain", client_id, "--tool", "get", code=2)


def test_a_policy_file_is_explained_for_the_resource_that_is_named(shell: Shell) -> None:
    client_id = created(shell)
    policy = shell.folder / "policy.toml"
    policy.write_text(
        '[scopes]\n"env:read" = {}\n"env:write" = {}\n"org:read" = {}\n'
        '[tools]\nget = { scopes = ["env:read"] }\nset = { scopes = ["env:write"] }\ndelete = { deny = true }\n'
    )
    matrix = ("access-matrix", "--catalogue", str(policy))
    assert "name it in the command" in shell.refusal(*matrix)
    [row] = shell.json(*matrix, "--resource", RESOURCE)["clients"]
    assert row["tools"] == {"get": True, "set": False}
    explain = ("client", "explain", client_id, "--catalogue", str(policy), "--resource", RESOURCE)
    explained = shell.json(*explain)
    assert [(tool["tool"], tool["allowed"]) for tool in explained["tools"]] == [("get", True), ("set", False)]
    assert explained["warnings"] == []


def test_a_client_without_grants_is_explained(shell: Shell, file: str) -> None:
    client_id = created(shell)
    shell.text("client", "grant", "remove", client_id, "--resource", RESOURCE, "--scope", "env:read")
    assert "No grants" in shell.text("client", "explain", client_id)
    tool = tools_of(shell, client_id, file)["client_id"]
    assert tool["reason"] == "no scope is granted there"
    run_all(shell, tool["remediation"])
    assert tools_of(shell, client_id, file)["client_id"]["allowed"]


def test_the_matrix_shows_every_client_against_every_tool(shell: Shell, file: str) -> None:
    reader, disabled = created(shell), created(shell, "--name", "zebra")
    shell.text("client", "disable", disabled)
    matrix = shell.json("access-matrix", "--catalogue", file)
    assert matrix == {
        "resource": RESOURCE,
        "warnings": [],
        "clients": [
            {
                "client_id": reader,
                "client_name": "agent",
                "obstacles": [],
                "tools": {"get": True, "set": False, "[bold]": False, "client_id": True},
            },
            {
                "client_id": disabled,
                "client_name": "zebra",
                "obstacles": [
                    {
                        "reason": "the client is disabled",
                        "remediation": f"authserver client enable {disabled}",
                        "next_step": None,
                    },
                ],
                "tools": {"get": False, "set": False, "[bold]": False, "client_id": False},
            },
        ],
    }
    header, *rows = shell.text("access-matrix", "--catalogue", file).splitlines()
    assert header.split() == ["client_name", "client_id", "obstacle", "get", "set", "[bold]", "client_id"]
    assert rows[0].split() == ["agent", reader, "-", "yes", "no", "no", "yes"]
    assert rows[1].split() == ["zebra", disabled, *["the", "client", "is", "disabled", "no", "no", "no", "no"]]


def test_the_matrix_answers_who_can_call_one_tool(shell: Shell, file: str) -> None:
    writer = created(shell, "--scope", "env:write")
    created(shell)
    options = ("--catalogue", file, "--tool", "set", "--tool", "set")
    clients = shell.json("access-matrix", *options)["clients"]
    assert [client["client_id"] for client in clients if client["tools"] == {"set": True}] == [writer]
    assert shell.text("access-matrix", *options).splitlines()[0].split()[-1] == "set"
    assert "no tool delete" in shell.refusal("access-matrix", "--catalogue", file, "--tool", "delete")


@pytest.mark.threat("T-113")
def test_the_csv_matrix_contains_no_formula_or_warning(shell: Shell, file: str) -> None:
    client_id = created(shell, "--name", '=HYPERLINK("http://evil.example")')
    shell.text("client", "disable", client_id)
    result = shell.run("access-matrix", "--catalogue", file, "--output", "csv")
    assert result.stderr == ""
    assert list(csv.reader(io.StringIO(result.stdout))) == [
        ["client_name", "client_id", "obstacle", "get", "set", "[bold]", "client_id"],
        ['\'=HYPERLINK("http://evil.example")', client_id, "the client is disabled", "no", "no", "no", "no"],
    ]
    scopes = [*CATALOGUE["scopes"], {"scope": "env:admin", "implies": ["env:read"]}]
    newer = write(shell.folder / "newer.json", scopes=scopes)
    result = shell.run("access-matrix", "--catalogue", newer, "--output", "csv")
    assert result.stderr.startswith("warning: the scopes registered for ")
    assert "warning" not in result.stdout


@pytest.mark.threat("T-113")
@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("a;=1+1", "a;'=1+1"),
        ("a; =1+1", "a; '=1+1"),
        ('a;"=1+1', "a;\"'=1+1"),
        ("a|@SUM(1)", "a|'@SUM(1)"),
        (" -1", " '-1"),
        ("\uff1d1", "'\uff1d1"),
        ("ci-agent + 1", "ci-agent + 1"),
        ("a;b=c", "a;b=c"),
        ('the "blue" one, a', 'the "blue" one, a'),
    ],
)
def test_a_cell_of_the_csv_matrix_starts_no_formula(shell: Shell, file: str, name: str, cell: str) -> None:
    """CWE-1236: with another separator, a spreadsheet splits a cell at a semicolon, unless the cell is quoted."""
    created(shell, "--name", name)
    lines = shell.run("access-matrix", "--catalogue", file, "--output", "csv").stdout.splitlines()
    assert next(csv.reader(lines[1:]))[0] == cell
    quoted = cell.replace('"', '""')
    assert lines[1].startswith(f'"{quoted}","')


def test_an_outdated_registration_causes_a_warning(shell: Shell, file: str) -> None:
    client_id = created(shell)
    for command in (["client", "explain", client_id], ["access-matrix"]):
        assert shell.json(*command, "--catalogue", file)["warnings"] == []
    newer = write(Path(file), scopes=[{"scope": "env:write", "implies": ["env:read"]}, *CATALOGUE["scopes"][::2]])
    [warning] = shell.json("access-matrix", "--catalogue", newer)["warnings"]
    assert warning["reason"] == f"the scopes registered for {RESOURCE} differ from the catalogue: env:write"
    assert warning["remediation"] == f"authserver resource add {RESOURCE} --name tools --catalogue '{newer}'"
    assert shell.text("access-matrix", "--catalogue", newer).startswith(f"warning: {warning['reason']}. Run: ")
    run_all(shell, warning["remediation"])
    assert shell.json("client", "explain", client_id, "--catalogue", newer)["warnings"] == []


def test_a_catalogue_without_tools_explains_nothing(shell: Shell) -> None:
    client_id = created(shell)
    empty = write(shell.folder / "empty.json", tools=[])
    for command in (["client", "explain", client_id], ["access-matrix"]):
        assert "has no tools. Write it with" in shell.refusal(*command, "--catalogue", empty)


def test_a_client_of_a_workload_gets_no_token_without_a_trust_rule(shell: Shell, file: str) -> None:
    client_id = created(shell, "--auth-method", "workload_identity")
    reason = "no platform token is accepted yet, because the client has no trust rule"
    then = f"Add one: authserver client trust add {client_id} --issuer NAME --claim NAME=VALUE"
    explained = shell.json("client", "explain", client_id, "--catalogue", file)
    assert explained["obstacles"] == [{"reason": reason, "remediation": None, "next_step": then}]
    assert explained["trust_rules"] == []
    assert shell.text("client", "explain", client_id).startswith(f"no token: {reason}. {then}\n")
    assert reason in shell.text("access-matrix", "--catalogue", file, "--output", "csv")
    trusted(shell, client_id, kubernetes(FakeClock(time.time())))
    assert tools_of(shell, client_id, file)["get"]["allowed"]
    assert reason not in shell.text("access-matrix", "--catalogue", file, "--output", "csv")


def trusted(shell: Shell, client_id: str, platform: Platform) -> str:
    """Trust a platform, and add a rule for its workload. Return the id of the rule."""
    keys = shell.folder / "jwks.json"
    keys.write_bytes(platform.jwks())
    options = ("--kind", platform.kind, "--issuer", platform.issuer, "--jwks-file", str(keys))
    shell.text("issuer", "add", platform.name, *options)
    conditions = [option for item in platform.conditions.items() for option in ("--claim", "=".join(item))]
    rule: dict[str, Any] = shell.json("client", "trust", "add", client_id, "--issuer", platform.name, *conditions)
    return str(rule["rule_id"])


def test_the_trust_rules_of_a_client_of_a_workload_are_listed(shell: Shell) -> None:
    client_id = created(shell, "--auth-method", "workload_identity")
    platforms = [make(FakeClock(time.time())) for make in (kubernetes, github)]
    rules = {trusted(shell, client_id, platform): platform.name for platform in platforms}
    listed = shell.json("client", "explain", client_id)["trust_rules"]
    assert {rule["rule_id"]: rule["issuer"] for rule in listed} == rules
    assert listed == shell.json("client", "trust", "list", client_id)
    lines = shell.text("client", "explain", client_id).splitlines()
    assert lines[-3].split() == ["rule_id", "issuer", "claims", "created_at"]
    assert [line.split()[:2] for line in lines[-2:]] == [[rule["rule_id"], rule["issuer"]] for rule in listed]
    assert listed[1]["created_at"] in lines[-1]


def test_a_client_whose_trusted_issuers_are_disabled_gets_no_token(shell: Shell, file: str) -> None:
    client_id = created(shell, "--auth-method", "workload_identity")
    for make in (kubernetes, github):
        trusted(shell, client_id, make(FakeClock(time.time())))
    assert tools_of(shell, client_id, file)["get"]["allowed"]
    disabled = {
        "reason": "the trusted issuer cluster is disabled",
        "remediation": "authserver issuer enable cluster",
        "next_step": None,
    }
    shell.text("issuer", "disable", "cluster")
    explained = shell.json("client", "explain", client_id, "--catalogue", file)
    assert (explained["obstacles"], explained["warnings"]) == ([], [disabled])
    assert explained["tools"][0]["allowed"]
    shell.text("issuer", "disable", "github")
    explained = shell.json("client", "explain", client_id, "--catalogue", file)
    assert (explained["obstacles"][0], explained["warnings"]) == (disabled, [])
    assert len(explained["obstacles"]) == 2
    assert disabled["reason"] in shell.text("access-matrix", "--catalogue", file, "--output", "csv")
    get = tools_of(shell, client_id, file)["get"]
    assert not get["allowed"]
    run_all(shell, get["remediation"])
    assert tools_of(shell, client_id, file)["get"]["allowed"]
