"""What both command lines have in common: output for people and programs, refusals, exit codes."""

import json
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import create_engine, text

from gatehouse.shared.service.audit import AuditEvent, AuditRows, audit_table
from gatehouse.shared.service.cli import (
    Commands,
    Refusal,
    example,
    iso_time,
    output_option,
    print_audit,
    print_record,
    print_records,
)
from gatehouse.shared.service.database import new_metadata, open_engine, parse_database_url
from gatehouse.shared.service.migrations import SchemaMismatch
from gatehouse.shared.service.settings import InvalidSettings

RECORDS = [
    {"name": "one", "scopes": ["a", "b"], "disabled": False, "ttl": None, "claims": {"x": "1"}, "hidden": 7},
    {"name": "[bold]two[/bold]", "scopes": [], "disabled": True, "ttl": 300, "claims": {}, "hidden": 8},
]
COLUMNS = ("name", "scopes", "disabled", "ttl", "claims", "missing")


def run(action: Callable[[str], Any], *arguments: str) -> Result:
    """Run a command whose work is `action`, inside a group as the servers have one."""

    @click.group(cls=Commands)
    def group() -> None:
        pass

    @group.command()
    @output_option
    @example("group command --output json")
    def command(output: str) -> None:
        """Do it."""
        action(output)

    # As on a terminal, where click passes escape sequences on.
    return CliRunner().invoke(group, ["command", *arguments], color=True)


def test_a_time_is_utc_to_the_second_or_the_millisecond() -> None:
    """RFC 3339."""
    assert iso_time(0) == "1970-01-01T00:00:00Z"
    assert iso_time(1_800_000_000.9) == "2027-01-15T08:00:00Z"
    assert iso_time(1_800_000_000.123, "milliseconds") == "2027-01-15T08:00:00.123Z"


def test_a_list_is_a_table_of_the_named_columns_for_people() -> None:
    result = run(lambda output: print_records(RECORDS, COLUMNS, output))
    assert result.exit_code == 0
    rows = [line.split() for line in result.output.splitlines()]
    assert rows == [
        ["name", "scopes", "disabled", "ttl", "claims", "missing"],
        ["one", "a", "b", "no", "-", "x=1", "-"],
        ["[bold]two[/bold]", "-", "yes", "300", "-", "-"],
    ]


def test_a_list_is_json_with_every_member_for_programs() -> None:
    result = run(lambda output: print_records(RECORDS, COLUMNS, output), "--output", "json")
    assert json.loads(result.output) == RECORDS


def test_an_empty_list_says_so() -> None:
    assert run(lambda output: print_records([], COLUMNS, output)).output == "(none)\n"
    assert json.loads(run(lambda output: print_records([], COLUMNS, output), "--output", "json").output) == []


def test_one_object_is_a_line_for_each_member_or_json() -> None:
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


def test_a_table_that_is_piped_is_one_line_a_record_and_cuts_nothing() -> None:
    """`audit` is read with grep: an object has up to 512 characters."""
    long = [{"name": "n" * 512, "object": "o" * 255, "end": "end"}]
    result = run(lambda output: print_records(long, ("name", "object", "end"), output))
    [_, line] = result.output.splitlines()
    assert line.split() == ["n" * 512, "o" * 255, "end"]


@pytest.mark.parametrize(
    "printer",
    [
        lambda value, output: print_records([{"name": value}], ("name",), output),
        lambda value, output: print_record({"name": value}, output),
    ],
    ids=["a-list", "one-object"],
)
@pytest.mark.parametrize("value", ["x\nforged", "x\x1b[2Jforged", "x\rforged"], ids=repr)
def test_a_stored_value_cannot_forge_a_line_of_the_terminal(printer: Callable[[str, str], None], value: str) -> None:
    """CWE-150."""
    plain = run(lambda output: printer("plain", output)).output.splitlines()
    forged = run(lambda output: printer(value, output)).output.split("\n")[:-1]
    assert len(forged) == len(plain)
    assert all(line.isprintable() for line in forged)


def raising(error: Exception) -> Callable[[str], None]:
    def action(_: str) -> None:
        raise error

    return action


@pytest.mark.parametrize(
    "error",
    [
        Refusal("No such client. Run: authserver client list"),
        InvalidSettings("AUTHSERVER_BIND: must be HOST:PORT"),
        SchemaMismatch("Run: authserver init"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_refusal_is_its_message_and_exit_code_1(error: Exception) -> None:
    result = run(raising(error))
    assert result.exit_code == 1
    assert result.output == f"Error: {error}\n"


def test_a_database_that_fails_is_a_message_without_sql() -> None:
    def select_nothing(_: str) -> None:
        with create_engine("sqlite://").begin() as connection:
            connection.execute(text("SELECT * FROM nowhere WHERE secret = :secret"), {"secret": "hunter2"})

    result = run(select_nothing)
    assert result.exit_code == 1
    assert result.output.startswith("Error: The database does not answer (OperationalError). Check the database URL")
    assert "SELECT" not in result.output
    assert "hunter2" not in result.output
    assert "Traceback" not in result.output


def test_a_database_that_another_process_writes_to_is_busy_and_not_down(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/test.db"
    engine = create_engine(url, connect_args={"timeout": 0})

    def create(_: str) -> None:
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE made (id INTEGER PRIMARY KEY)"))

    with open_engine(parse_database_url(url)).begin():
        result = run(create)
    assert result.exit_code == 1
    assert result.output == "Error: Another process is writing to the database. Try again.\n"
    assert run(create).exit_code == 0
    engine.dispose()


def test_what_the_database_does_not_take_is_a_refusal_and_no_outage(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/test.db")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE made (name TEXT PRIMARY KEY)"))

    def insert(_: str) -> None:
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO made VALUES (:name)"), {"name": "hunter2"})

    assert run(insert).exit_code == 0
    result = run(insert)
    assert result.exit_code == 1
    assert result.output.startswith("Error: The database refused the command (IntegrityError), and nothing was changed")
    assert "hunter2" not in result.output
    engine.dispose()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), "An argument or a file is not text in UTF-8."),
        (
            FileNotFoundError(2, "No such file or directory", "a.json"),
            "a.json cannot be used: No such file or directory.",
        ),
        (OSError(), "A file cannot be used: input/output."),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_file_that_cannot_be_read_is_a_message(error: Exception, message: str) -> None:
    result = run(raising(error))
    assert (result.exit_code, result.output) == (1, f"Error: {message}\n")


def test_output_that_is_collected_in_memory_is_not_reconfigured() -> None:
    """Only a file of bytes has an encoding that could lack a character."""

    @click.command()
    def speak() -> None:
        click.echo("na\u00efve")

    with redirect_stdout(StringIO()) as collected:
        Commands("group", commands=[speak]).main(["speak"], standalone_mode=False)
    assert collected.getvalue() == "na\u00efve\n"


@pytest.mark.parametrize("arguments", [["--output", "xml"], ["--unknown"], ["surplus"]], ids=" ".join)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    result = run(lambda _: None, *arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.output


def test_help_ends_with_an_example() -> None:
    result = run(lambda _: None, "--help")
    assert result.exit_code == 0
    assert "Example:\n    group command --output json" in result.output


def test_audit_rows_are_printed_with_their_time_and_without_the_writers_bookkeeping(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = new_metadata()
    table = audit_table(metadata)
    engine = open_engine(parse_database_url(f"sqlite:///{tmp_path}/audit.db"))
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(AuditRows(table, lambda: 1_800_000_000.123).insert(AuditEvent("tool.call", "refused")))
        # An action of an earlier version can be asked for as long as there is one.
        print_audit(connection, table, output="json", actions=("now.known",), action="tool.call", limit=5)
    engine.dispose()
    [record] = json.loads(capsys.readouterr().out)
    assert record.pop("time") == "2027-01-15T08:00:00.123Z"
    assert record["action"] == "tool.call"
    assert record.keys().isdisjoint({"id", "writer", "sequence", "previous"})


def test_every_paragraph_of_a_help_stands_at_the_same_margin() -> None:
    @click.command()
    @example("speak")
    def speak() -> None:
        """Say something.

        And something more, at some length, in a second paragraph that goes on to
        another line.
        """

    printed = CliRunner().invoke(speak, ["--help"]).output
    assert "\n  Say something.\n\n  And something more" in printed
    assert "goes on to\n  another line." in printed


@pytest.mark.threat("T-114")
@pytest.mark.parametrize("message", ["x\x1b[2Jforged", "x\rforged", "x\u202eforged", "x\x0bforged"], ids=ascii)
def test_a_refusal_cannot_act_on_the_terminal_and_keeps_its_lines(message: str) -> None:
    """CWE-150: it names files, and what a database holds."""

    def refuse(_: str) -> None:
        raise Refusal(f"first\n{message}")

    lines = run(refuse).output.split("\n")
    assert lines[0] == "Error: first"
    assert lines[1].isprintable()
    assert lines[1].startswith("x\\")
    assert lines[2:] == [""]


@pytest.mark.parametrize("write", [click.echo, print], ids=["at once", "at the end"])
def test_output_that_cannot_be_written_is_a_refusal_and_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, write: Callable[[str], Any]
) -> None:
    @click.group(cls=Commands)
    def group() -> None:
        pass

    @group.command()
    def command() -> None:
        write("text")

    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(Refusal, match="No space left on device"):
            group.main(["command"], standalone_mode=False)
        full.flush()
        monkeypatch.undo()
