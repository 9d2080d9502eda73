"""Attacks on the policy file by an MCP server that chooses the names, descriptions and annotations of its tools.

By TOML 1.0 (toml.abnf), a comment ends at a line feed or at CR LF, and contains no control character but a tab; a basic
string ends at a quotation mark; a bare key has only A-Z a-z 0-9 - and _. Editors end a line at more characters.
"""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from support.policies import Policies, notes, tool

INJECTED = '[tools.evil]\nany_valid_token = true\ndigest = "sha256:' + "0" * 64 + '"\n'

ENDS = [
    "\n",
    "\r\n",
    "\r",
    "\v",
    "\f",
    "\x1c",
    "\x1d",
    "\x1e",
    "\x85",
    "\u2028",
    "\u2029",
    "\0",
    "\x1b[2K\x1b[1G",
    "\x7f",
]
"""What ends a line for some parser, editor or terminal."""


@pytest.fixture
def policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Policies:
    """The commands, with a server whose draft is faultless."""
    policies = Policies(tmp_path, monkeypatch)
    assert set(tomllib.loads(policies.draft())["tools"]) == {listed["name"] for listed in notes()}
    policies.path.unlink()
    return policies


def assert_harmless(policies: Policies, drafted: set[str]) -> None:
    """Check that a draft has exactly these tools, for every reader, and that no text of the server acts on one."""
    text = policies.draft()
    parsed = tomllib.loads(text)
    assert tomlkit.parse(text).unwrap() == parsed
    assert set(parsed) == {"upstream", "scopes", "tools"}
    assert set(parsed["tools"]) == drafted
    for declared in parsed["tools"].values():
        assert set(declared) in ({"scopes"}, {"deny"})
        assert set(declared.get("scopes", [])) <= set(parsed["scopes"])
    # Also for a reader that ends lines at other characters, no line begins with a text of the server.
    assert text.splitlines() == text.split("\n")[:-1]
    assert text.replace("\n", "").isprintable()


NAMES = {listed["name"] for listed in notes()}


@pytest.mark.threat("T-180")
@pytest.mark.parametrize("before", ["Add a note.", "", '"', '"""', "'''", "\\"], ids=ascii)
def test_a_description_stays_in_its_comment(policies: Policies, before: str) -> None:
    evil = {f"evil{number}": f"{before}{end}{INJECTED}{end}{INJECTED}" for number, end in enumerate(ENDS)}
    policies.tools += [tool(name, description) for name, description in evil.items()]
    assert_harmless(policies, NAMES | evil.keys())


@pytest.mark.threat("T-180")
@pytest.mark.parametrize("description", [None, 1, ["\n[tools.evil]"], {"\n": "[tools.evil]"}], ids=repr)
def test_a_description_that_is_no_text_is_not_shown(policies: Policies, description: Any) -> None:
    policies.tools.append(tool("share") | {"description": description})
    assert_harmless(policies, NAMES | {"share"})
    assert "evil" not in policies.text


@pytest.mark.threat("T-180")
@pytest.mark.parametrize("end", ENDS, ids=ascii)
def test_other_members_do_not_reach_the_draft(policies: Policies, end: str) -> None:
    evil = f"{end}{INJECTED}"
    policies.tools.append(tool("share", title=evil, x=evil) | {"title": evil, "_meta": {evil: evil}, evil: 1})
    policies.tools.append(tool("shout", readOnlyHint=evil, destructiveHint=[evil]))
    assert_harmless(policies, NAMES | {"share", "shout"})
    assert "evil" not in policies.text


@pytest.mark.threat("T-180")
def test_a_tool_with_another_name_than_mcp_allows_is_only_a_comment(policies: Policies) -> None:
    names = [f"a{end}{INJECTED}" for end in ENDS]
    names += [f'a"]\n{INJECTED}#', f"a']\n{INJECTED}#", f"a]\n{INJECTED}#", "a\\", 'a"', "a b", "a#", "*", ""]
    names += ["\u0430dd_note", "add_note\u200b", "add_note\ufe01", "a" * 129, "a\ud800"]
    policies.tools += map(tool, names)
    assert_harmless(policies, NAMES)
    comments = policies.text.partition("# Denied, because MCP does not allow such names:\n")[2].splitlines()
    assert len(comments) == len(names)


@pytest.mark.threat("T-180")
def test_a_name_that_means_something_in_toml_is_one_key(policies: Policies) -> None:
    names = {"a.b", "tools.evil", ".", "..", "-", "--yes", "1", "1.5", "true", "inf", "nan", "a_-", "deny", "scopes"}
    policies.tools += map(tool, sorted(names))
    assert_harmless(policies, NAMES | names)
    policies.confirm("--all", "--yes")
    confirmed = tomllib.loads(policies.text)["tools"]
    assert {frozenset(confirmed[name]) for name in names} == {frozenset({"scopes", "digest"})}


@pytest.mark.threat("T-180")
@pytest.mark.parametrize("end", ENDS, ids=ascii)
def test_a_text_of_the_server_does_not_act_on_the_terminal(policies: Policies, end: str) -> None:
    policies.draft()
    evil = f"Share.{end}\u202e\u200b\U000e0041\ufe01{INJECTED}"
    policies.tools.append(tool("share", evil, title=evil) | {evil: evil})
    check = policies.run("check", "--upstream", "policy.toml", code=1).output
    refusal = policies.confirm("share", code=1).output
    policies.path.write_text(policies.text + '\n[tools.share]\nscopes = ["notes:write"]\n')
    shown = policies.confirm("share", "--yes").output
    for output in (check, refusal, shown):
        assert "Share." in output
        assert output.replace("\n", "").isprintable()
        assert not {"\ufe01", "\U000e0041", "\u202e", "\u200b"} & set(output)
        assert not any(line.startswith(("[tools.evil]", "any_valid_token")) for line in output.splitlines())


@pytest.mark.threat("T-180")
def test_no_command_to_paste_contains_a_name_that_a_shell_reads(policies: Policies) -> None:
    policies.draft()
    names = [*(f"a{end}reboot" for end in ENDS), "a; reboot", "$(reboot)", "`reboot`", "'", "*"]
    policies.tools += [*map(tool, names), tool("share")]
    rows = policies.differences()
    assert rows.keys() & {*names, "share"} == {"share"}
    assert rows["share"]["fix"].endswith(": resourceserver policy confirm --upstream policy.toml share")
