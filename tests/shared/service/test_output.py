"""Records and tables that commands print."""

import json
from collections.abc import Callable
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from gatehouse.shared.service import output
from gatehouse.shared.service.cli import output_option
from gatehouse.shared.service.output import print_record, print_records

RECORDS = [
    {"name": "one", "scopes": ["a", "b"], "disabled": False, "ttl": None, "claims": {"x": "1"}, "hidden": 7},
    {"name": "[bold]two[/bold]", "scopes": [], "disabled": True, "ttl": 300, "claims": {}, "hidden": 8},
]
COLUMNS = ("name", "scopes", "disabled", "ttl", "claims", "missing")


def run(action: Callable[[str], Any], *arguments: str) -> Result:
    """Run a command that prints with `action`."""

    @click.command()
    @output_option
    def command(output: str) -> None:
        action(output)

    # As on a terminal, where click does not strip escape sequences.
    return CliRunner().invoke(command, arguments, color=True)


def test_a_list_is_printed_as_a_table_for_people() -> None:
    result = run(lambda output: print_records(RECORDS, COLUMNS, output))
    assert result.exit_code == 0
    rows = [line.split() for line in result.output.splitlines()]
    assert rows == [
        ["name", "scopes", "disabled", "ttl", "claims", "missing"],
        ["one", "a", "b", "no", "-", "x=1", "-"],
        ["[bold]two[/bold]", "-", "yes", "300", "-", "-"],
    ]


def test_a_member_with_spaces_is_printed_in_quotation_marks() -> None:
    record = {"claims": {"ref": "a b", "environment": "", "sub": "agent", "ttl": None, "list": ["a", "b"]}}
    shown = 'claims  ref="a b" environment="" sub=agent ttl=- list=a b\n'
    assert run(lambda output: print_record(record, output)).output == shown


def test_a_list_is_printed_as_json_with_every_member() -> None:
    result = run(lambda output: print_records(RECORDS, COLUMNS, output), "--output", "json")
    assert json.loads(result.output) == RECORDS


def test_an_empty_list_says_so() -> None:
    assert run(lambda output: print_records([], COLUMNS, output)).output == "(none)\n"
    assert json.loads(run(lambda output: print_records([], COLUMNS, output), "--output", "json").output) == []


def test_one_object_is_printed_as_lines_or_json() -> None:
    result = run(lambda output: print_record(RECORDS[0], output))
    assert [line.split() for line in result.output.splitlines()] == [
        ["name", "one"],
        ["scopes", "a", "b"],
        ["disabled", "no"],
        ["ttl", "-"],
        ["claims", "x=1"],
        ["hidden", "7"],
    ]
    assert json.loads(run(lambda output: print_record(RECORDS[0], output), "--output", "json").output) == RECORDS[0]


def test_a_piped_table_has_one_untruncated_line_per_record() -> None:
    """`audit` is read with grep: an object has up to 512 characters."""
    long = [{"name": "n" * 512, "object": "o" * 255, "end": "end"}]
    result = run(lambda output: print_records(long, ("name", "object", "end"), output))
    [_, line] = result.output.splitlines()
    assert line.split() == ["n" * 512, "o" * 255, "end"]


def test_no_line_of_a_table_ends_with_spaces() -> None:
    records = [{"name": "one", "problem": "the keys are 3 h old"}, {"name": "two, longer", "problem": ""}]
    result = run(lambda output: print_records(records, ("name", "problem"), output))
    assert result.output == "name         problem\none          the keys are 3 h old\ntwo, longer\n"


def test_columns_are_as_wide_as_their_characters_on_a_terminal() -> None:
    result = run(lambda output: print_records([{"a": "東京", "b": 1}, {"a": "x", "b": 2}], ("a", "b"), output))
    assert result.output.splitlines() == ["a     b", "東京  1", "x     2"]


@pytest.mark.parametrize(("terminal", "header"), [(True, "\x1b[1mname\x1b[0m"), (False, "name")])
def test_the_header_is_bold_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool, header: str
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    print_records([{"name": "one"}], ("name",), "table")
    assert capsys.readouterr().out == f"{header}\none\n"


@pytest.mark.parametrize(
    "printer",
    [
        lambda value, output: print_records([{"name": value}], ("name",), output),
        lambda value, output: print_record({"name": value}, output),
    ],
    ids=["a-list", "one-object"],
)
@pytest.mark.parametrize("value", ["x\nforged", "x\x1b[2Jforged", "x\rforged"], ids=repr)
def test_a_stored_value_cannot_forge_a_line(printer: Callable[[str, str], None], value: str) -> None:
    """CWE-150."""
    plain = run(lambda output: printer("plain", output)).output.splitlines()
    forged = run(lambda output: printer(value, output)).output.split("\n")[:-1]
    assert len(forged) == len(plain)
    assert all(line.isprintable() for line in forged)


@pytest.mark.parametrize(("terminal", "shown"), [(True, "3 events\n6 events\n"), (False, "")])
def test_progress_is_for_terminals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool, shown: str
) -> None:
    monkeypatch.setattr(output, "PROGRESS_EVERY", 3)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    for done in range(2, 8):
        output.report_progress(done, "events")
    assert capsys.readouterr().err == shown
