"""The accepted policy: what changes it, and what does not."""

import logging
from pathlib import Path

import pytest
from support.scripted_upstream import policy_text

from gatehouse.resourceserver.catalogue.policy_file import MAX_LENGTH, InvalidPolicy, PolicyFile
from gatehouse.resourceserver.upstream.policy_watch import PolicyWatch

READ = {"read": {"scopes": '["notes:read"]'}}
BOTH = {**READ, "write": {"scopes": '["notes:write"]'}}


def accept(_: PolicyFile) -> None:
    """Accept every valid policy."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "policy.toml"
    file.write_text(policy_text(READ))
    return file


def test_a_changed_file_is_accepted_once_it_is_complete(path: Path) -> None:
    watch = PolicyWatch(path, accept)
    watch.supervise()
    assert (watch.newest().version, [*watch.newest().policy.tools]) == (1, ["read"])
    path.write_text(policy_text(BOTH))
    watch.supervise()
    assert watch.newest().version == 1
    watch.supervise()
    assert (watch.newest().version, [*watch.newest().policy.tools]) == (2, ["read", "write"])
    watch.supervise()
    assert watch.newest().version == 2
    watch.stop()


def test_a_file_that_is_still_written_is_not_read(path: Path) -> None:
    watch = PolicyWatch(path, accept)
    for part in ("[upstream]", policy_text(BOTH)):
        path.write_text(part)
        watch.supervise()
    assert watch.newest().version == 1
    path.write_text(policy_text(READ))
    watch.supervise()
    watch.supervise()
    assert watch.newest().version == 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[upstream", "line 1"),
        (b"\xff", "is not UTF-8"),
        (b"#" * (MAX_LENGTH + 1), "is larger than 1024 KiB"),
        (None, "No such file"),
    ],
)
def test_an_unusable_file_changes_nothing_and_is_logged_once(
    path: Path, content: bytes | None, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    watch = PolicyWatch(path, accept)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    for _ in range(4):
        watch.supervise()
    assert watch.newest().version == 1
    assert len(caplog.messages) == 1
    assert problem in caplog.messages[0]
    path.write_text(policy_text(BOTH))
    watch.supervise()
    watch.supervise()
    assert watch.newest().version == 2


def test_a_valid_file_that_the_server_cannot_serve_changes_nothing(path: Path) -> None:
    def only_reads(policy: PolicyFile) -> None:
        if "write" in policy.tools:
            raise InvalidPolicy("no writes here")

    watch = PolicyWatch(path, only_reads)
    path.write_text(policy_text(BOTH))
    watch.supervise()
    watch.supervise()
    assert watch.newest().version == 1
    with pytest.raises(InvalidPolicy, match="no writes here"):
        PolicyWatch(path, only_reads)


def test_a_worker_reads_what_the_master_accepted_and_not_the_file(path: Path) -> None:
    master = PolicyWatch(path, accept)
    # After the fork, a worker has the memory of the master, and an object of its own.
    worker = object.__new__(PolicyWatch)
    worker.__dict__.update(vars(master))
    path.write_text(policy_text(BOTH))
    assert worker.newest().version == 1
    master.supervise()
    master.supervise()
    path.write_text("[upstream")
    assert [*worker.newest().policy.tools] == ["read", "write"]
    assert worker.newest() is worker.newest()


def test_a_worker_ignores_a_text_that_is_partly_written(path: Path) -> None:
    master = PolicyWatch(path, accept)
    worker = object.__new__(PolicyWatch)
    worker.__dict__.update(vars(master))
    path.write_text(policy_text(BOTH))
    master.supervise()
    master.supervise()
    whole = master._memory[:]
    position = whole.index(b"notes:write")
    master._memory[position : position + 5] = b"bytes"
    assert worker.newest().version == 1
    master._memory[:] = whole
    assert worker.newest().version == 2


def test_a_change_while_the_server_starts_is_not_missed(path: Path) -> None:
    contents = [policy_text(BOTH)]

    def change(_: PolicyFile) -> None:
        if contents:
            path.write_text(contents.pop())

    watch = PolicyWatch(path, change)
    assert [*watch.newest().policy.tools] == ["read"]
    watch.supervise()
    watch.supervise()
    assert [*watch.newest().policy.tools] == ["read", "write"]
