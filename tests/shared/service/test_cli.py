"""What both command lines have in common: lazy groups, refusals, exit codes."""

import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import create_engine, text

from gatehouse.shared.service.cli import LazyGroup, Refusal, ServerGroup, example, output_option, parse_duration
from gatehouse.shared.service.database import create_file, open_engine, parse_database_url
from gatehouse.shared.service.migrations import SchemaMismatch
from gatehouse.shared.service.settings import InvalidSettings


def run(action: Callable[[str], Any], *arguments: str) -> Result:
    """Run a command whose work is `action`, inside a group as the servers have one."""

    @click.group(cls=ServerGroup)
    def group() -> None:
        pass

    @group.command()
    @output_option
    @example("group command --output json")
    def command(output: str) -> None:
        """Do it."""
        action(output)

    # As on a terminal, where click does not strip escape sequences.
    return CliRunner().invoke(group, ["command", *arguments], color=True)


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
def test_a_refusal_prints_its_message_with_exit_code_1(error: Exception) -> None:
    result = run(raising(error))
    assert result.exit_code == 1
    assert result.output == f"Error: {error}\n"


def test_an_unexpected_error_is_not_turned_into_a_refusal() -> None:
    """It is a fault of the program: its traceback is for a bug report."""
    fault = KeyError("unexpected")
    assert run(raising(fault)).exception is fault


def test_a_database_error_is_reported_without_sql() -> None:
    def select_nothing(_: str) -> None:
        with create_engine("sqlite://").begin() as connection:
            connection.execute(text("SELECT * FROM nowhere WHERE secret = :secret"), {"secret": "hunter2"})

    result = run(select_nothing)
    assert result.exit_code == 1
    assert result.output.startswith("Error: The database does not answer (OperationalError). Check the database URL")
    assert "SELECT" not in result.output
    assert "hunter2" not in result.output
    assert "Traceback" not in result.output


def test_a_locked_database_is_reported_as_busy(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/test.db"
    engine = create_engine(url, connect_args={"timeout": 0})

    def create(_: str) -> None:
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE made (id INTEGER PRIMARY KEY)"))

    create_file(parse_database_url(url))
    with open_engine(parse_database_url(url)).begin():
        result = run(create)
    assert result.exit_code == 1
    assert result.output == "Error: Another process is writing to the database. Try again.\n"
    assert run(create).exit_code == 0
    engine.dispose()


def test_a_constraint_violation_is_not_reported_as_an_outage(tmp_path: Path) -> None:
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
def test_an_unreadable_file_is_reported(error: Exception, message: str) -> None:
    result = run(raising(error))
    assert (result.exit_code, result.output) == (1, f"Error: {message}\n")


def test_output_that_is_collected_in_memory_is_not_reconfigured() -> None:
    """Only a file of bytes has an encoding that could lack a character."""

    @click.command()
    def speak() -> None:
        click.echo("na\u00efve")

    with redirect_stdout(StringIO()) as collected:
        ServerGroup("group", commands=[speak]).main(["speak"], standalone_mode=False)
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


def test_every_paragraph_of_the_help_has_the_same_margin() -> None:
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
def test_a_refusal_contains_no_control_characters(message: str) -> None:
    """CWE-150: messages contain file names and values from the database."""

    def refuse(_: str) -> None:
        raise Refusal(f"first\n{message}")

    lines = run(refuse).output.split("\n")
    assert lines[0] == "Error: first"
    assert lines[1].isprintable()
    assert lines[1].startswith("x\\")
    assert lines[2:] == [""]


@pytest.mark.parametrize("write", [click.echo, print], ids=["at once", "at the end"])
def test_failed_output_is_reported_once(monkeypatch: pytest.MonkeyPatch, write: Callable[[str], Any]) -> None:
    @click.group(cls=ServerGroup)
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


@pytest.mark.parametrize("write", [click.echo, print], ids=["at once", "at the end"])
def test_output_that_nobody_reads_ends_the_command_quietly(
    monkeypatch: pytest.MonkeyPatch, write: Callable[[str], Any]
) -> None:
    """As `| head` ends the commands of other programs."""

    @click.group(cls=ServerGroup)
    def group() -> None:
        pass

    @group.command()
    def command() -> None:
        write("text")

    source, sink = os.pipe()
    os.close(source)
    with os.fdopen(sink, "w") as output:
        monkeypatch.setattr("sys.stdout", output)
        with pytest.raises(click.exceptions.Exit) as ended:
            group.invoke(group.make_context("group", ["command"]))
        monkeypatch.undo()
    assert ended.value.exit_code == 1


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("12h", 43_200), ("7d", 604_800), ("0s", 0), ("007d", 604_800)]
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "7w", "-7d", "+7d", "7 d", "7D", "1.5h", "7d7h", "1234567s", "\u0667d"])
def test_any_other_text_is_not_a_duration(text: str) -> None:
    assert parse_duration(text) is None


@click.command()
@click.pass_context
def imported(ctx: click.Context) -> None:
    """Do what the lazy command does."""
    click.echo(f"ran {ctx.info_name}")


def lazy_group(**options: Any) -> LazyGroup:
    lazy = {"known": (f"{__name__}:imported", "Short help."), "absent": ("no.such.module:command", "Not imported.")}
    return LazyGroup("group", lazy=lazy, **options)


def test_a_lazy_group_lists_its_commands_without_importing_them() -> None:
    result = CliRunner().invoke(lazy_group(), ["--help"])
    assert result.exit_code == 0
    assert [line.split(maxsplit=1) for line in result.output.partition("Commands:\n")[2].splitlines()] == [
        ["absent", "Not imported."],
        ["known", "Short help."],
    ]


def test_a_lazy_command_is_imported_when_it_is_invoked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    assert CliRunner().invoke(lazy_group(), ["known"]).output == "ran known\n"
    assert "Do what the lazy command does." in CliRunner().invoke(lazy_group(), ["known", "--help"]).output
    result = CliRunner().invoke(lazy_group(), ["absent"])
    assert isinstance(result.exception, ModuleNotFoundError)


def test_commands_are_discovered_for_unknown_names_and_help() -> None:
    calls = []

    def discover(ctx: click.Context) -> dict[str, click.Command]:
        calls.append(ctx.info_name)
        return {"found": click.Command("found", help="From elsewhere.", callback=lambda: click.echo("found it"))}

    group = lazy_group(discover=discover)
    group.add_command(imported, "known")
    assert CliRunner().invoke(group, ["known"]).output == "ran known\n"
    assert calls == []
    assert CliRunner().invoke(group, ["found"]).output == "found it\n"
    assert "From elsewhere." in CliRunner().invoke(group, ["--help"]).output
    unknown = CliRunner().invoke(group, ["other"])
    assert (unknown.exit_code, "No such command 'other'" in unknown.output) == (2, True)


@pytest.mark.parametrize("error", [Refusal("The catalogue cannot be loaded."), RuntimeError("anything")])
def test_help_is_printed_even_if_no_commands_can_be_discovered(error: Exception) -> None:
    def discover(_: click.Context) -> dict[str, click.Command]:
        raise error

    result = CliRunner().invoke(lazy_group(discover=discover), ["--help"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Short help." in result.output


def test_an_unknown_command_says_why_none_can_be_discovered() -> None:
    def discover(_: click.Context) -> dict[str, click.Command]:
        raise Refusal("The catalogue cannot be loaded.")

    unknown = CliRunner().invoke(lazy_group(discover=discover), ["other"])
    assert (unknown.exit_code, unknown.output) == (1, "Error: The catalogue cannot be loaded.\n")
