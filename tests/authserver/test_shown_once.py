"""Secrets that are shown once: nothing is changed unless the secret was printed."""

from collections.abc import Callable

import pytest
from support.authserver import RESOURCE
from support.kill_points import Ended, Job, run
from support.shell import CREATE, Shell

FullDisk = Callable[..., Ended]


@pytest.fixture
def full_disk(shell: Shell) -> FullDisk:
    """Run the command as a separate process whose output goes to a full disk."""

    def run_on_full_disk(*arguments: str) -> Ended:
        return run(Job(arguments, shell.environment, str(shell.folder), "/dev/full"))

    return run_on_full_disk


def assert_not_printed(result: Ended) -> None:
    problem = "The secret cannot be printed (No space left on device), so nothing was changed."
    assert (result.code, result.errors) == (1, f"Error: {problem}\n")


@pytest.mark.both_databases
@pytest.mark.parametrize("output", ["table", "json"])
def test_a_client_is_not_created_if_its_secret_cannot_be_printed(
    shell: Shell, full_disk: FullDisk, output: str
) -> None:
    made = shell.json(*CREATE)
    assert_not_printed(full_disk(*CREATE, "--output", output))
    assert [client["client_id"] for client in shell.json("client", "list")] == [made["client_id"]]
    assert len(shell.json("audit", "--action", "client.create")) == 1


@pytest.mark.threat("T-105")
@pytest.mark.parametrize("output", ["table", "json"])
def test_a_secret_is_not_rotated_if_the_new_one_cannot_be_printed(
    shell: Shell, full_disk: FullDisk, output: str
) -> None:
    client_id = shell.json(*CREATE)["client_id"]
    shell.json("client", "secret", "rotate", client_id, "--yes")
    before = shell.json("client", "secret", "list", client_id)
    assert_not_printed(full_disk("client", "secret", "rotate", client_id, "--yes", "--output", output))
    assert shell.json("client", "secret", "list", client_id) == before
    assert len(shell.json("audit", "--action", "client.secret.rotate")) == 1


@pytest.mark.threat("T-105")
def test_a_credential_is_not_created_if_it_cannot_be_printed(shell: Shell, full_disk: FullDisk) -> None:
    credential = ("resource", "credential")
    made = shell.json(*credential, "create", RESOURCE)["credential_id"]
    assert_not_printed(full_disk(*credential, "create", RESOURCE))
    assert_not_printed(full_disk(*credential, "rotate", made))
    [known] = shell.json(*credential, "list")
    assert (known["credential_id"], known["expires_at"]) == (made, None)


@pytest.mark.parametrize("command", [["client", "list"], ["client", "list", "--output", "json"], ["check"]])
def test_lost_output_is_one_error_message(shell: Shell, full_disk: FullDisk, command: list[str]) -> None:
    shell.text(*command)
    result = full_disk(*command)
    assert result.code == 1
    assert result.errors == "Error: A file cannot be used: No space left on device.\n"


@pytest.mark.threat("T-105")
@pytest.mark.only_on("postgresql")
def test_a_failed_key_file_leaves_neither_file_nor_client(shell: Shell) -> None:
    """On SQLite, the file size limit would stop the database first."""
    shell.json(*CREATE, "--generate-key", str(shell.folder / "good.pem"))
    path = shell.folder / "agent.pem"
    output = shell.folder / "output"
    create = [*CREATE, "--generate-key", str(path)]
    result = run(Job(create, shell.environment, str(shell.folder), str(output), largest_file=0))
    assert (result.code, output.read_text()) == (1, "")
    assert "File too large" in result.errors
    assert not path.exists()
    assert len(shell.json("client", "list")) == 1


def test_a_refused_client_leaves_no_key_file(shell: Shell) -> None:
    path = shell.folder / "agent.pem"
    create = ["client", "create", "--name", "agent", "--resource", RESOURCE, "--generate-key", str(path)]
    assert "has no scope no:such" in shell.refusal(*create, "--scope", "no:such")
    assert not path.exists()
    shell.json(*create, "--scope", "env:read")
    assert path.exists()
