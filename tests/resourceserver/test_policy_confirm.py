"""`resourceserver policy confirm`: the digests that it writes, and what it leaves alone."""

import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from support.policies import COMMAND, Policies, notes, tool

from gatehouse.resourceserver.catalogue.tool_digest import tool_digest
from gatehouse.resourceserver.upstream.confirming import with_digests
from gatehouse.resourceserver.upstream.drafting import TO_BE_CONFIRMED


def test_confirm_writes_the_digest_and_removes_the_remark(drafted: Policies) -> None:
    before = drafted.text.splitlines()
    result = drafted.confirm("add_note", "--yes")
    digest = tool_digest(notes()[1])
    assert drafted.policy.tools["add_note"].digest == digest
    assert digest in result.stdout
    after = drafted.text.splitlines()
    removed = [line for line in before if line not in after]
    assert [line for line in after if line not in before] == [
        '[scopes."notes:write"]',
        'scopes = ["notes:write"]',
        f'digest = "{digest}"',
    ]
    assert [re.sub(rf"  {TO_BE_CONFIRMED}.*", "", line) for line in removed] == [
        '[scopes."notes:write"]',
        'scopes = ["notes:write"]',
    ]
    assert {name: row["state"] for name, row in drafted.differences().items()} == {
        "find_notes": "unconfirmed",
        "delete_notes": "unconfirmed",
    }


def test_a_confirmed_policy_has_no_remark_left(confirmed: Policies) -> None:
    assert TO_BE_CONFIRMED in confirmed.run("draft", "--output-file", "-", "--", *COMMAND).stdout
    assert TO_BE_CONFIRMED not in confirmed.text
    assert confirmed.confirm("--all").stdout == "There is nothing to confirm.\n"
    assert json.loads(confirmed.confirm("add_note", "--output", "json").stdout) == []


def test_confirm_shows_the_whole_tool(drafted: Policies) -> None:
    drafted.tools[1]["outputSchema"] = {"description": "a" * 100_000}
    drafted.tools[1] |= {"annotations": {"title": "Add"}, "description": "Add a note.\nHidden\u200b \x1b[2Kline.\ufe01"}
    shown = drafted.confirm("add_note", "--yes").stderr
    assert "add_note (unconfirmed)" in shown
    assert "scopes: notes:write; also allowed by: notes:admin" in shown
    assert 'annotations: {"title": "Add"}' in shown
    assert "a" * 100_000 in shown
    assert '"required": ["text"]' in shown
    assert "description: Add a note.\n    Hidden\\u200b \\x1b[2Kline.\\ufe01\n" in shown


@pytest.mark.parametrize(("answer", "said"), [("n\n", "Nothing was changed"), ("", "Repeat the command with --yes")])
def test_only_a_person_or_an_option_confirms(drafted: Policies, answer: str, said: str) -> None:
    before = drafted.text
    assert said in drafted.confirm("add_note", answer=answer, code=1).stderr
    assert drafted.text == before
    assert "Confirm this tool?" in drafted.confirm("add_note", answer="y\n").stderr
    assert "Confirm these 2 tools?" in drafted.confirm("--all", answer="y\n").stderr
    assert drafted.differences() == {}


def test_confirm_needs_tools_or_all(drafted: Policies) -> None:
    for arguments in ([], ["add_note", "--all"]):
        assert "Name them, or give --all" in drafted.confirm(*arguments, code=2).stderr


def test_an_unmentioned_tool_is_refused_with_the_lines_to_add(confirmed: Policies) -> None:
    confirmed.tools.append(tool("share_notes", "Share notes."))
    before = confirmed.text
    refused = confirmed.confirm("share_notes", "--yes", code=1).stderr
    assert confirmed.text == before
    lines = refused.partition("\n\n")[2]
    assert lines.startswith("[tools.share_notes]\n# Share notes.\nscopes = ")
    confirmed.path.write_text(f"{before}\n{lines}")
    confirmed.confirm("share_notes", "--yes")
    assert confirmed.differences() == {}
    assert confirmed.policy.tools["share_notes"].scopes == {"notes:write"}


def test_the_lines_to_add_declare_a_scope_that_is_missing(policies: Policies) -> None:
    policies.tools = [tool("find_notes", readOnlyHint=True)]
    policies.draft()
    policies.tools.append(tool("delete_notes", destructiveHint=True))
    lines = policies.confirm("delete_notes", code=1).stderr.partition("\n\n")[2]
    policies.path.write_text(f"{policies.text}\n{lines}")
    policies.confirm("--all", "--yes")
    assert policies.policy.tools["delete_notes"].scopes == {"notes:admin"}


def test_a_tool_that_cannot_be_served_is_not_confirmed(confirmed: Policies) -> None:
    before = confirmed.text
    confirmed.tools[1] |= {"limit": 2**60}
    assert "add_note cannot be served: the tool has no canonical" in confirmed.confirm("add_note", code=1).stderr
    confirmed.tools[1] = {**notes()[1], "execution": {"taskSupport": "required"}}
    assert "add_note cannot be served: the tool can only be" in confirmed.confirm("add_note", code=1).stderr
    confirmed.tools.append(tool("a/b"))
    assert "a/b cannot be served: its name has" in confirmed.confirm("a/b", code=1).stderr
    del confirmed.tools[1]
    assert "The upstream has no tool add_note" in confirmed.confirm("add_note", code=1).stderr
    assert confirmed.text == before


def test_a_name_that_begins_with_a_dash_can_be_confirmed(policies: Policies) -> None:
    policies.tools = [tool("-a")]
    policies.draft()
    assert policies.differences()["-a"]["fix"] == "resourceserver policy confirm --upstream policy.toml -- -a"
    policies.run("confirm", "--yes", "--upstream", "policy.toml", "--", "-a")
    assert policies.differences() == {}


def test_a_file_that_changed_meanwhile_is_not_replaced(drafted: Policies, monkeypatch: pytest.MonkeyPatch) -> None:
    def edit(*_: Any, **__: Any) -> None:
        drafted.path.write_text("edited")

    monkeypatch.setattr("gatehouse.resourceserver.cli.policy_confirm.ask", edit)
    assert "policy.toml has changed in the meantime" in drafted.confirm("add_note", code=1).stderr
    assert drafted.text == "edited"


def test_mode_and_link_of_the_policy_file_stay(drafted: Policies, tmp_path: Path) -> None:
    target = tmp_path / "etc" / "notes.toml"
    target.parent.mkdir()
    drafted.path.rename(target)
    target.chmod(0o640)
    drafted.path.symlink_to(target)
    drafted.confirm("--all", "--yes")
    assert drafted.path.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert list(target.parent.iterdir()) == [target]
    assert drafted.differences() == {}


NEW = "sha256:" + "0" * 64

REMARK = f"{TO_BE_CONFIRMED} a reason"


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        pytest.param(
            f'[tools.a]\n# inner\nscopes = ["x"]  {REMARK}\n\n# about b\n[tools.b]\nscopes = ["x"]\n',
            f'[tools.a]\n# inner\nscopes = ["x"]\ndigest = "{NEW}"\n\n# about b\n[tools.b]\nscopes = ["x"]\n',
            id="comment of the next table",
        ),
        pytest.param(
            '[tools.a]\nscopes = ["x"] # why\n\n# text\n[tools.a.arguments.text]\nmax_length = 3\n',
            f'[tools.a]\nscopes = ["x"] # why\ndigest = "{NEW}"\n\n# text\n[tools.a.arguments.text]\nmax_length = 3\n',
            id="table of arguments",
        ),
        pytest.param(
            "[tools.a]\ndigest = 'sha256:old'  # by hand\nlimit = \"3/minute\"\nscopes = [\n  'x',  # why\n]\n",
            f'[tools.a]\ndigest = "{NEW}"  # by hand\nlimit = "3/minute"\nscopes = [\n  \'x\',  # why\n]\n',
            id="old digest",
        ),
        pytest.param(
            f"[tools]\na.any_valid_token = true  {REMARK}\nb.deny = true\n",
            f'[tools]\na.any_valid_token = true\na.digest = "{NEW}"\nb.deny = true\n',
            id="dotted keys",
        ),
        pytest.param(
            'tools = { a = { scopes = ["x"] } }  # short\n',
            f'tools = {{ a = {{ scopes = ["x"], digest = "{NEW}"}} }}  # short\n',
            id="inline table",
        ),
        pytest.param(
            "[tools.a.arguments.text]\nmax_length = 3\n[tools.a]\nany_valid_token = true\n",
            f'[tools.a.arguments.text]\nmax_length = 3\n[tools.a]\nany_valid_token = true\ndigest = "{NEW}"\n',
            id="table in two parts",
        ),
        pytest.param(
            f'[tools.a]\r\n  scopes = ["x"]  {REMARK}\r\n  limit = "3/minute"\r\n',
            f'[tools.a]\r\n  scopes = ["x"]\r\n  digest = "{NEW}"\r\n  limit = "3/minute"\r\n',
            id="CRLF and indentation",
        ),
        pytest.param(
            '[scopes.x]  # mine\ndescription = "X"\n[tools.a]\nscopes = ["x"]',
            f'[scopes.x]  # mine\ndescription = "X"\n[tools.a]\nscopes = ["x"]\ndigest = "{NEW}"\n',
            id="no last newline",
        ),
    ],
)
def test_a_digest_leaves_the_rest_of_the_file_alone(text: str, edited: str) -> None:
    assert with_digests(text, {"a": NEW}, {"x"} if "[scopes.x]" in text else set()) == edited


def test_a_file_that_cannot_be_edited_is_left_alone(drafted: Policies, monkeypatch: pytest.MonkeyPatch) -> None:
    """The edited text is parsed again: exactly the digests may differ."""
    before = drafted.text
    monkeypatch.setattr(
        "gatehouse.resourceserver.cli.policy_confirm.with_digests", lambda text, *_: text.replace("notes:admin", "a")
    )
    refused = drafted.confirm("add_note", "--yes", code=1).stderr
    assert "policy.toml cannot be edited" in refused
    assert tool_digest(notes()[1]) in refused
    assert drafted.text == before
    with pytest.raises(ValueError, match="cannot be edited"):
        with_digests("tools = 3", {"a": NEW}, {"x"})
