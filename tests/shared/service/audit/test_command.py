"""The `audit` command of both servers: the search, and `--follow`."""

import json
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from sqlalchemy import URL
from support.audit import TABLES
from support.audit_commands import Log, audit_log
from support.clock import FakeClock
from support.waiting import wait_until

from gatehouse.shared.service.audit.command import print_audit
from gatehouse.shared.service.audit.events import AuditEvent
from gatehouse.shared.service.audit.following import BATCH
from gatehouse.shared.service.audit.log import AuditLog


@pytest.fixture
def log(empty_database: URL, clock: FakeClock, tmp_path: Path) -> Iterator[Log]:
    with audit_log(empty_database, clock, tmp_path) as log:
        yield log


def test_audit_rows_are_printed_without_internal_columns(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    log.clock.now = 1_800_000_000.123
    log.add("tool.call", "refused")
    # An action of an earlier version can be filtered as long as the log has such an event.
    of_one_action: Any = AuditLog("authserver", TABLES, ("now.known",), open)
    with log.engine.connect() as connection:
        print_audit(connection, of_one_action, output="json", action="tool.call", limit=5)
    [record] = json.loads(capsys.readouterr().out)
    assert record.pop("time") == "2027-01-15T08:00:00.123Z"
    assert record["action"] == "tool.call"
    assert record.keys().isdisjoint({"id", "writer", "sequence", "kid", "link"})


Script = Callable[[TextIO], None]


def follow(log: Log, monkeypatch: pytest.MonkeyPatch, *arguments: str, script: Script) -> None:
    """Run `audit --follow`. The script reads what it prints, in another thread, and ends it."""
    failures: list[BaseException] = []

    def run_script() -> None:
        try:
            script(reader)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread of the test
            failures.append(error)
            stop()

    ends = os.pipe()
    with os.fdopen(ends[0], "r") as reader, os.fdopen(ends[1], "w") as writer:
        thread = threading.Thread(target=run_script)
        thread.start()
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdout", writer)
            log.commands.main(["--follow", *arguments], standalone_mode=False)
        thread.join(30)
    assert not thread.is_alive()
    assert failures == []


def next_line(reader: TextIO) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(reader.readline())
    return line


def stop(number: signal.Signals = signal.SIGTERM) -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, number)


@pytest.mark.both_databases
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_events_are_followed_until_a_signal(log: Log, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    log.add("old", actor="agent_1")

    def script(reader: TextIO) -> None:
        first = next_line(reader)
        assert (first["action"], first["id"], first["cursor"]) == ("old", 1, "1")
        log.add("new")
        assert next_line(reader)["action"] == "new"
        stop(number)

    follow(log, monkeypatch, "--after", "0", script=script)


def test_a_cursor_resumes_after_its_line(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    for action in "abc":
        log.add(action)

    def script(reader: TextIO) -> None:
        assert [next_line(reader)["action"] for _ in range(2)] == ["b", "c"]
        stop()

    follow(log, monkeypatch, "--after", "1", script=script)


def test_the_cursor_file_resumes_without_a_gap_or_a_repetition(
    log: Log, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "audit.cursor"
    seen: list[str] = []

    def script(reader: TextIO) -> None:
        seen.extend(next_line(reader)["action"] for _ in range(2))
        stop()

    log.add("a")
    log.clock.advance(60)
    log.add("b")
    log.add("c")
    follow(log, monkeypatch, "--cursor-file", str(file), "--since", "2027-01-15T08:01:00Z", script=script)
    assert file.read_text() == "3\n"
    log.add("d")
    log.add("e")
    follow(log, monkeypatch, "--cursor-file", str(file), script=script)
    assert seen == ["b", "c", "d", "e"]
    assert file.read_text() == "5\n"


def test_a_new_cursor_file_has_the_cursor_of_now(log: Log, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Otherwise a restart before the first event would begin later, and skip it."""
    file = tmp_path / "audit.cursor"
    log.add("old")

    def script(reader: TextIO) -> None:
        wait_until(file.exists)
        log.add("new")
        assert next_line(reader)["action"] == "new"
        stop()

    follow(log, monkeypatch, "--cursor-file", str(file), script=script)


def test_the_events_from_now_on_are_followed(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.add("old")

    def script(reader: TextIO) -> None:
        # It is not known when the command has begun.
        while not select.select([reader], [], [], 0.05)[0]:
            log.add("new")
        assert next_line(reader)["action"] == "new"
        stop()

    follow(log, monkeypatch, script=script)


def test_events_of_several_batches_are_followed(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    with log.engine.begin() as connection:
        log.insert(connection, *[AuditEvent("many", "allowed")] * (BATCH + 1))

    def script(reader: TextIO) -> None:
        assert [next_line(reader)["id"] for _ in range(BATCH + 1)] == list(range(1, BATCH + 2))
        stop()

    follow(log, monkeypatch, "--after", "0", script=script)


def test_only_matching_events_are_followed(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    for actor in ("agent_1", "agent_2"):
        log.add("token.issue", actor=actor)

    def script(reader: TextIO) -> None:
        assert next_line(reader)["actor"] == "agent_2"
        stop()

    follow(log, monkeypatch, "--after", "0", "--client", "agent_2", script=script)


def test_a_closed_pipe_ends_the_command_quietly(
    log: Log, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log.add("old")

    def script(reader: TextIO) -> None:
        next_line(reader)
        reader.close()

    follow(log, monkeypatch, "--after", "0", script=script)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "text", "code"),
    [
        (["--follow", "--limit", "5"], "--follow prints JSON lines without end. Omit --limit.", 2),
        (["--follow", "--output", "table", "--request", "r"], "Omit --request, --output table.", 2),
        (["--follow", "--after", "1", "--cursor-file", "f"], "Give --after or --cursor-file, not both.", 2),
        (["--follow", "--after", "x"], "not a cursor: x", 2),
        (["--after", "1"], "--after and --cursor-file belong to --follow.", 2),
        (["--limit", "5", "--client", "c", "export"], "Write --client, --limit after export", 2),
        (["--follow", "--after", "2"], "beyond the newest event", 1),
        (["--follow", "--action", "token.issued"], "There is no action token.issued.", 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_options_that_do_not_fit_are_refused(log: Log, arguments: list[str], text: str, code: int) -> None:
    assert text in log.refusal(*arguments, code=code)
