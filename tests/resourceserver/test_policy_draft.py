"""`resourceserver policy draft`: a policy with guesses, which allows nothing."""

from pathlib import Path

import pytest
from support.policies import COMMAND, Policies, tool

from gatehouse.resourceserver.catalogue.policy_file import (
    HeaderCredential,
    HttpTransport,
    StdioTransport,
    parse_policy,
)
from gatehouse.resourceserver.upstream.drafting import TO_BE_CONFIRMED, guess, scope_prefix


def test_a_draft_is_a_policy_that_allows_nothing(drafted: Policies) -> None:
    policy = drafted.policy
    assert policy.upstream.transport == StdioTransport(COMMAND, (), None, None, shared=False)
    assert {name: allowed.scopes for name, allowed in policy.tools.items()} == {
        "find_notes": {"notes:read"},
        "add_note": {"notes:write"},
        "delete_notes": {"notes:admin"},
    }
    assert {allowed.digest for allowed in policy.tools.values()} == {None}
    assert {name: scope.implies for name, scope in policy.scopes.items()} == {
        "notes:read": (),
        "notes:write": ("notes:read",),
        "notes:admin": ("notes:write",),
    }
    assert {row["state"] for row in drafted.differences().values()} == {"unconfirmed"}


def test_every_guess_of_a_draft_is_marked(drafted: Policies) -> None:
    guesses = [line for line in drafted.text.splitlines() if line.startswith(("scopes = ", "[scopes."))]
    assert len(guesses) == 6
    for line in guesses:
        assert f"  {TO_BE_CONFIRMED} " in line


def test_a_draft_shows_the_first_line_of_each_description(drafted: Policies) -> None:
    assert "[tools.add_note]\n# Add a note.\nscopes = " in drafted.text
    assert "a year" not in drafted.text


@pytest.mark.parametrize(
    ("annotations", "level", "reason"),
    [
        ({"readOnlyHint": True}, "read", "readOnlyHint is true"),
        ({"readOnlyHint": True, "destructiveHint": False}, "read", "readOnlyHint is true"),
        ({"destructiveHint": True}, "admin", "destructiveHint is true"),
        ({"readOnlyHint": False, "destructiveHint": True}, "admin", "destructiveHint is true"),
        ({"readOnlyHint": True, "destructiveHint": True}, "admin", "contradict"),
        ({"destructiveHint": False}, "write", "destructiveHint is false"),
        ({"readOnlyHint": False}, "write", "no annotation"),
        ({"readOnlyHint": "true"}, "write", "no annotation"),
        ({"readOnlyHint": 1}, "write", "no annotation"),
        ({}, "write", "no annotation"),
        (None, "write", "no annotation"),
        (["readOnlyHint"], "write", "no annotation"),
    ],
)
def test_only_an_explicit_hint_changes_the_guess(annotations: object, level: str, reason: str) -> None:
    """By MCP, destructiveHint is true by default. A draft that followed it would guess admin for most tools."""
    guessed, because = guess({"name": "a", "annotations": annotations})
    assert (guessed, reason in because) == (level, True)
    assert guess({"name": "a"}) == ("write", "no annotation says what the tool does")


def test_a_draft_declares_only_the_scopes_that_it_uses(policies: Policies) -> None:
    policies.tools = [tool("a", readOnlyHint=True), tool("b", destructiveHint=True)]
    policies.draft()
    assert {name: scope.implies for name, scope in policies.policy.scopes.items()} == {
        "notes:read": (),
        "notes:admin": ("notes:read",),
    }


@pytest.mark.parametrize(
    ("command", "prefix"),
    [
        ("npx -y @modelcontextprotocol/server-everything", "everything"),
        ("npx -y @acme/Notes_MCP-server@1.2.3", "notes"),
        ("uvx mcp-server-git --repository /srv/git", "git"),
        ("uvx mcp-server-time==2025.9.25", "time"),
        ("docker run -i --rm mcp/fetch", "fetch"),
        ("/usr/bin/python3 -m mcp_server_notes", "notes"),
        ("node build/notes.js", "notes"),
        ("./server.py", "upstream"),
        ("python", "upstream"),
        (f"./{'a' * 40}", "a" * 32),
    ],
)
def test_scopes_are_named_after_the_program(command: str, prefix: str) -> None:
    assert scope_prefix(StdioTransport(tuple(command.split()), (), None, None, shared=False)) == prefix


@pytest.mark.parametrize(
    ("url", "prefix"),
    [
        ("https://notes.example.com/mcp", "notes"),
        ("https://mcp.example.com/mcp", "example"),
        ("https://www.example.com", "example"),
        ("http://127.0.0.1:3001/mcp", "upstream"),
        ("http://[::1]:3001/notes/mcp", "notes"),
        ("http://localhost:3001/mcp", "upstream"),
    ],
)
def test_scopes_are_named_after_the_host(url: str, prefix: str) -> None:
    assert scope_prefix(HttpTransport(url, None, None)) == prefix


def test_the_start_of_the_scopes_can_be_chosen(policies: Policies) -> None:
    policies.draft("--scope-prefix", "paper")
    assert set(policies.policy.scopes) == {"paper:read", "paper:write", "paper:admin"}
    policies.run("draft", "--scope-prefix", "two words", "--output-file", "-", "--", *COMMAND, code=2)


def test_a_draft_lists_what_it_guessed(policies: Policies) -> None:
    policies.tools.append(tool("a/b"))
    result = policies.run("draft", "--", *COMMAND)
    rows = [line.rstrip().split(None, 2) for line in result.stdout.splitlines()]
    assert rows[0] == ["tool", "scope", "reason"]
    assert rows[1] == ["find_notes", "notes:read", "readOnlyHint is true"]
    assert rows[4][:2] == ["a/b", "(denied)"]
    assert "resourceserver policy confirm --all --upstream policy.toml" in result.stderr
    assert set(policies.policy.tools) == {"find_notes", "add_note", "delete_notes"}


def test_a_draft_can_be_printed(policies: Policies) -> None:
    result = policies.run("draft", "--url", "http://127.0.0.1:3001/mcp", "--output-file", "-")
    assert parse_policy(result.stdout, Path()).upstream.transport == HttpTransport(
        "http://127.0.0.1:3001/mcp", None, None
    )
    assert not policies.path.exists()


def test_a_draft_names_the_credential_and_the_variables(policies: Policies, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    (tmp_path / "key").chmod(0o600)
    header = ("--header", "X-Api-Key", "--header-file", "key")
    policies.run("draft", "--url", "https://notes.example.com/mcp", *header, "--output-file", "policy.toml")
    expected = HttpTransport("https://notes.example.com/mcp", None, HeaderCredential("X-Api-Key", Path("key")))
    assert parse_policy(policies.text, Path()).upstream.transport == expected
    assert "secret" not in policies.text
    (tmp_path / "etc").mkdir()
    policies.run("draft", "--url", "https://notes.example.com/mcp", *header, "--output-file", "etc/policy.toml")
    elsewhere = parse_policy((tmp_path / "etc/policy.toml").read_text(), Path("etc")).upstream.transport
    assert isinstance(elsewhere, HttpTransport)
    assert isinstance(elsewhere.credential, HeaderCredential)
    assert elsewhere.credential.file == tmp_path / "key"
    policies.run("draft", "--output-file", "etc/program.toml", "--", "./notes.py")
    program = parse_policy((tmp_path / "etc/program.toml").read_text(), Path("etc")).upstream.transport
    assert isinstance(program, StdioTransport)
    assert program.command == (str(tmp_path / "notes.py"),)
    variables = ("--environment", "HOME", "--environment", "LANG")
    printed = policies.run("draft", *variables, "--output-file", "-", "--", *COMMAND).stdout
    assert parse_policy(printed, Path()).upstream.transport == StdioTransport(
        COMMAND, ("HOME", "LANG"), None, None, shared=False
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--url", "http://127.0.0.1:3001/mcp", "--", "notes"],
        ["--url", "http://127.0.0.1:3001/mcp", "--header", "X-Api-Key"],
        ["--url", "http://127.0.0.1:3001/mcp", "--environment", "HOME"],
        ["--header", "X-Api-Key", "--header-file", "key", "--", "notes"],
        ["--url", "http://notes.example.com/mcp"],
        ["npx", "-y", "notes"],
    ],
    ids=["none", "two", "half a header", "variable for a URL", "header for a program", "plain http", "no --"],
)
def test_a_draft_needs_one_usable_server(policies: Policies, arguments: list[str]) -> None:
    policies.run("draft", *arguments, code=2)
    assert policies.opened == []


def test_a_server_without_tools_has_a_policy(policies: Policies) -> None:
    policies.tools = []
    policies.draft()
    assert policies.policy.tools == {}
    assert policies.differences() == {}


def test_a_draft_replaces_no_file(policies: Policies) -> None:
    policies.path.write_text("mine")
    result = policies.run("draft", "--", *COMMAND, code=1)
    assert "policy.toml exists already" in result.stderr
    assert policies.text == "mine"
    assert policies.opened == []


def test_a_draft_denies_a_tool_that_cannot_be_served(policies: Policies) -> None:
    others = {
        "large": {"limit": 2**60},
        "slow": {"execution": {"taskSupport": "required"}},
        "ugly": {"icons": "none"},
    }
    policies.tools += [tool("a/b"), *(tool(name) | members for name, members in others.items())]
    text = policies.draft()
    assert set(policies.policy.tools) == {"find_notes", "add_note", "delete_notes"}
    assert policies.policy.denied == others.keys()
    for reason in ("the tool has no canonical JSON", "the tool can only be called as", "its description is not what"):
        assert f"\ndeny = true  # {reason}" in text
    assert text.endswith("\n# Denied, because MCP does not allow such names:\n#   a/b\n")
    policies.confirm("--all", "--yes")
    assert policies.differences() == {}
