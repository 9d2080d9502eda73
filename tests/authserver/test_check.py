"""The command `check`: it reports every problem, and whether the database accepts writes and a server makes them."""

import json
from contextlib import closing
from pathlib import Path
from socket import create_server

import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import OperationalError
from support.authserver import AuthServer
from support.migrations import downgrade
from support.shell import Shell

from gatehouse.authserver.db.database import Database
from gatehouse.shared.service import deadline
from gatehouse.shared.service.check_command import address_steps, database_steps
from gatehouse.shared.service.cli import Refusal
from gatehouse.shared.service.heartbeat import MAX_AGE, SERVER, write_heartbeat


def check(authserver: AuthServer, bind: str = "127.0.0.1:0") -> str:
    settings = authserver.settings.model_copy(update={"bind": bind})
    (_, step), *_ = database_steps(settings, authserver.services.database, authserver.clock)
    return step()


@pytest.mark.both_databases
def test_the_age_of_the_last_heartbeat_of_a_server_is_reported(authserver: AuthServer) -> None:
    assert check(authserver).endswith("; no server has used it yet")
    with authserver.services.database.engine.begin() as connection:
        write_heartbeat(connection, SERVER, authserver.clock())
    authserver.clock.advance(3)
    assert check(authserver).endswith("; the last heartbeat of a server is 3 s old")
    authserver.clock.advance(3600)
    assert check(authserver).endswith("; the last heartbeat of a server is 3603 s old"), "it may be stopped"


@pytest.mark.both_databases
def test_a_running_server_must_have_written_lately(authserver: AuthServer) -> None:
    with authserver.services.database.engine.begin() as connection:
        write_heartbeat(connection, SERVER, authserver.clock())
    with closing(create_server(("127.0.0.1", 0))) as listening:
        bind = f"127.0.0.1:{listening.getsockname()[1]}"
        authserver.clock.advance(MAX_AGE)
        assert check(authserver, bind).endswith("is 15 s old")
        authserver.clock.advance(1)
        with pytest.raises(Refusal, match=f"A process listens on {bind}, and .* is 16 s old"):
            check(authserver, bind)


@pytest.mark.both_databases
@pytest.mark.only_on("sqlite")
def test_a_database_that_accepts_no_writes_fails_the_check(authserver: AuthServer) -> None:
    with (
        authserver.services.database.engine.begin(),
        deadline.renewed(0),
        pytest.raises(OperationalError, match="locked"),
    ):
        check(authserver)


def test_check_reports_every_problem_and_passes_when_there_is_none(shell: Shell) -> None:
    assert {check["outcome"] for check in shell.json("check")} == {"ok"}
    (shell.folder / "keys" / "sealing.key").chmod(0o644)
    Path(shell.environment["AUTHSERVER_DATABASE_URL"].removeprefix("sqlite:///")).chmod(0o666)
    result = shell.run("check", "--output", "json")
    assert result.exit_code == 1
    outcomes = {check["check"]: check for check in json.loads(result.stdout)}
    assert "chmod 600" in outcomes["sealing key"]["detail"]
    assert "chmod go-w" in outcomes["database"]["detail"]
    shell.environment |= {"AUTHSERVER_BIND": "nowhere", "AUTHSERVER_TOKEN_TTL": "9999"}
    result = shell.run("check", "--output", "json")
    assert [check["outcome"] for check in json.loads(result.stdout)] == ["failed", "failed"]


def test_check_reports_an_outdated_database(shell: Shell) -> None:
    assert {check["outcome"] for check in shell.json("check")} == {"ok"}
    downgrade(make_url(shell.environment["AUTHSERVER_DATABASE_URL"]), Database.schema, "base")
    result = shell.run("check", "--output", "json")
    assert result.exit_code == 1
    failed = {check["check"]: check["detail"] for check in json.loads(result.stdout) if check["outcome"] == "failed"}
    assert set(failed) == {"database"}
    assert all("Run: authserver init" in detail for detail in failed.values())


def test_check_explains_every_setting(shell: Shell) -> None:
    explained = shell.json("check", "--explain")
    assert {row["setting"] for row in explained} >= {"AUTHSERVER_ISSUER", "AUTHSERVER_BIND", "AUTHSERVER_SEALING_KEY"}
    assert all(row["description"] for row in explained)


def test_the_address_of_the_metrics_is_checked_if_there_is_one(authserver: AuthServer) -> None:
    assert [name for name, _ in address_steps(authserver.settings)] == ["address"]
    with closing(create_server(("127.0.0.1", 0))) as listening:
        bind = f"127.0.0.1:{listening.getsockname()[1]}"
        (_, _), (name, step) = address_steps(authserver.settings.model_copy(update={"metrics_bind": bind}))
        assert (name, step()) == ("metrics address", f"{bind} is in use: by this server, if it runs")
