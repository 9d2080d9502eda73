"""Commands for a policy file in place of a module."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.scripted_upstream import policy_text, tool

from gatehouse.resourceserver.catalogue.policy_file import InvalidPolicy
from gatehouse.resourceserver.catalogue.policy_reading import read_policy
from gatehouse.resourceserver.cli import main
from gatehouse.resourceserver.cli.catalogue_loading import check_policy
from gatehouse.resourceserver.settings import Settings

POLICY = policy_text(
    {
        "read": {"listed": tool("read"), "scopes": '["notes:read"]'},
        "write": {"scopes": '["notes:write"]'},
        "hello": {"any_valid_token": "true"},
    },
    more="[tools.wipe]\ndeny = true\n",
)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = Path("policy.toml")
    file.write_text(POLICY)
    return file


def test_tools_lists_what_the_policy_allows(path: Path) -> None:
    done = CliRunner().invoke(main, ["tools", "--upstream", str(path), "--output", "json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert [scope["scope"] for scope in document["scopes"]] == ["notes:read", "notes:write"]
    listed = {found["name"]: found["scopes"] for found in document["tools"]}
    assert listed == {"read": ["notes:read"], "write": ["notes:write"], "hello": []}
    assert "(any valid token)" in CliRunner().invoke(main, ["tools", "--upstream", str(path)]).stdout


def test_init_creates_the_key_files_of_a_gateway(path: Path) -> None:
    done = CliRunner().invoke(main, ["init", "--upstream", str(path)])
    assert done.exit_code == 0, done.output
    for name in ("audit", "session", "caller"):
        assert Path("keys", f"resourceserver-{name}.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("command", ["tools", "init", "serve", "check"])
def test_a_module_and_a_policy_file_cannot_both_be_served(path: Path, command: str) -> None:
    done = CliRunner().invoke(main, [command, "--upstream", str(path), "--tools", "mytools"])
    assert done.exit_code == 1
    assert "set either RESOURCESERVER_TOOLS (--tools) or RESOURCESERVER_UPSTREAM (--upstream)" in done.output


@pytest.mark.parametrize("command", ["tools", "init", "serve"])
def test_an_invalid_policy_file_is_refused_with_line_and_remedy(path: Path, command: str) -> None:
    path.write_text(POLICY + "[tools.later]\nscope = 1\n")
    done = CliRunner().invoke(main, [command, "--upstream", str(path)])
    assert done.exit_code == 1
    assert "policy.toml cannot be used as a policy:\nline 18: tools.later.scopes: is missing" in done.output
    assert "line 19: tools.later.scope: there is no such key; did you mean scopes?" in done.output
    assert "Traceback" not in done.output


def test_a_policy_belongs_to_one_resource_and_has_the_baseline_scopes(path: Path) -> None:
    check_policy(Settings(), read_policy(path))
    with pytest.raises(InvalidPolicy, match=r"notes:audit is not a scope"):
        check_policy(Settings(baseline_scopes="notes:audit"), read_policy(path))
    path.write_text(f'resource = "https://other.example.com/mcp"\n{POLICY}')
    with pytest.raises(InvalidPolicy, match=r"for the resource https://other\.example\.com/mcp"):
        check_policy(Settings(), read_policy(path))


@pytest.mark.threat("T-171")
def test_a_policy_with_an_impossible_user_changes_nothing(path: Path) -> None:
    """CWE-636: the programs of the previous policy would go on, as a user that the operator no longer wants."""
    program = POLICY.replace('url = "http://127.0.0.1:1/mcp"', 'command = ["notes"]')
    assert program != POLICY
    path.write_text(program)
    check_policy(Settings(), read_policy(path))
    path.write_text(program.replace("[scopes", 'user = "no-such-user"\n[scopes', 1))
    with pytest.raises(InvalidPolicy, match='this machine has no user "no-such-user"'):
        check_policy(Settings(), read_policy(path))
