"""The `authserver` command: `init`, settings, help and error messages."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, update
from support.authserver import RESOURCE
from support.commands import cut_summaries, every_command
from support.shell import CREATE, Shell

from gatehouse.authserver.cli import main
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import ResourceRow
from gatehouse.shared.service.administrator import operating_system_user
from gatehouse.shared.service.database import parse_database_url


@pytest.mark.both_databases
def test_init_prepares_everything_and_can_be_repeated(empty: Shell) -> None:
    first = empty.json("init")
    assert first["issuer"] == "https://as.example.com"
    assert (first["sealing_key"], first["audit_keys"]) == ("created", "created")
    assert first["signing_key"].startswith("created ")
    assert empty.database.stat().st_mode & 0o777 == 0o600
    assert empty.database.parent.stat().st_mode & 0o777 == 0o700
    key = (empty.folder / "keys" / "sealing.key").read_bytes()
    again = empty.json("init")
    assert (again["sealing_key"], again["audit_keys"], again["signing_key"]) == ("present", "present", "present")
    assert (empty.folder / "keys" / "sealing.key").read_bytes() == key
    assert key.decode().strip() not in "".join(empty.outputs)
    [event] = empty.json("audit")
    assert (event["action"], event["object"]) == ("key.create", first["signing_key"].removeprefix("created "))


@pytest.mark.both_databases
def test_init_never_shows_the_database_password(empty: Shell) -> None:
    """The port of the database is closed, so the command prints an error."""
    empty.environment["AUTHSERVER_DATABASE_URL"] = "postgresql://gatehouse:hunter2@127.0.0.1:1/gatehouse"
    assert "The database does not answer" in empty.refusal("init")
    assert "hunter2" not in "".join(empty.outputs)


@pytest.mark.parametrize(
    ("arguments", "remediation"),
    [
        pytest.param(["client", "show", "agent_no"], "authserver client list", id="show an unknown client"),
        pytest.param(["client", "disable", "agent_no"], "authserver client list", id="disable an unknown client"),
        pytest.param(["client", "enable", "agent_no"], "authserver client list", id="enable an unknown client"),
        pytest.param([*CREATE[:-1], "no:such"], "Its scopes are", id="unknown scope"),
        pytest.param([*CREATE[:5], "https://no.example/mcp", *CREATE[6:]], "authserver resource add", id="no resource"),
        pytest.param([*CREATE, "--claim", "scope=org:read"], "reserved claim", id="reserved claim"),
        pytest.param(
            ["resource", "add", "http://mcp.example.com", "--name", "a", "--scope", "b"], "https", id="plain http"
        ),
        pytest.param(["resource", "add", RESOURCE, "--name", "a", "--scope", "b c"], "A scope", id="scope syntax"),
    ],
)
def test_a_refusal_exits_1_and_names_the_remediation(shell: Shell, arguments: list[str], remediation: str) -> None:
    shell.text(*CREATE)
    before = shell.json("audit")
    assert remediation in shell.refusal(*arguments)
    assert shell.json("audit") == before


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["client", "create"], id="missing options"),
        pytest.param(["client", "destroy"], id="unknown command"),
        pytest.param([*CREATE, "--ttl", "3601"], id="TTL over an hour"),
        pytest.param([*CREATE, "--ttl", "0"], id="TTL of zero"),
        pytest.param([*CREATE, "--claim", "workspace_id"], id="claim without a value"),
        pytest.param([*CREATE, "--claim", "a=1", "--claim", "a=2"], id="claim twice"),
        pytest.param([*CREATE, "--auth-method", "none"], id="unknown method"),
        pytest.param(["audit", "--limit", "0"], id="no events"),
        pytest.param(["client", "list", "--output", "xml"], id="unknown output"),
        pytest.param(["--env-file", "/no/such/file", "client", "list"], id="no such env file"),
    ],
)
def test_wrong_usage_exits_2(shell: Shell, arguments: list[str]) -> None:
    for right in (
        CREATE,
        [*CREATE, "--ttl", "3600", "--claim", "a=1", "--auth-method", "client_secret_post"],
        ["audit"],
    ):
        shell.text(*right)
    shell.refusal(*arguments, code=2)


@pytest.mark.parametrize("command", list(every_command(main)), ids=" ".join)
def test_every_command_has_help_with_an_example(empty: Shell, command: tuple[str, ...]) -> None:
    text = empty.text(*command, "--help")
    assert "Example:" in text
    assert f"authserver {' '.join(command)}" in text.partition("Example:")[2]


def test_no_list_of_commands_cuts_a_summary() -> None:
    assert list(cut_summaries(main)) == []


COMMANDS_ON_A_DATABASE = [["client", "list"], ["resource", "list"], ["audit"], ["serve"], CREATE]


@pytest.mark.parametrize("command", COMMANDS_ON_A_DATABASE, ids=lambda command: " ".join(command[:2]))
def test_without_a_database_the_remediation_is_init(empty: Shell, command: list[str]) -> None:
    assert "Run: authserver init" in empty.refusal(*command)
    assert not empty.database.exists()


def make_empty(path: Path) -> None:
    path.touch()


def make_newer(path: Path) -> None:
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('9999')")
        connection.exec_driver_sql("CREATE TABLE client (client_id VARCHAR(64) NOT NULL)")
    engine.dispose()


def make_garbage(path: Path) -> None:
    path.write_bytes(b"this is no database" * 100)


@pytest.mark.parametrize(
    ("make", "remediation"),
    [
        pytest.param(make_empty, "Run: authserver init", id="not migrated"),
        pytest.param(make_newer, "Install that version", id="newer"),
        pytest.param(make_garbage, "Check the database URL", id="no database"),
        pytest.param(Path.mkdir, "Check the database URL", id="a folder"),
    ],
)
def test_an_unusable_database_is_reported_without_a_traceback(
    empty: Shell, make: Callable[[Path], None], remediation: str
) -> None:
    empty.database.parent.mkdir()
    make(empty.database)
    for command in COMMANDS_ON_A_DATABASE:
        assert remediation in empty.refusal(*command)
    checks = json.loads(empty.run("check", "--output", "json").stdout)
    assert any(check["check"] == "database" and remediation in check["detail"] for check in checks)


@pytest.mark.parametrize("variable", ["AUTHSERVER_DATABASE_URL", "AUTHSERVER_KEYS_DIR"])
def test_init_in_an_unwritable_folder_shows_no_traceback(empty: Shell, variable: str) -> None:
    (empty.folder / "file").touch()
    place = f"{empty.folder}/file/here"
    empty.environment[variable] = f"sqlite:///{place}" if variable.endswith("URL") else place
    assert f"{empty.folder}/file" in empty.refusal("init")


@pytest.mark.parametrize("command", [CREATE, ["serve"]], ids=["client create", "serve"])
def test_without_the_sealing_key_nothing_is_created_or_served(shell: Shell, command: list[str]) -> None:
    (shell.folder / "keys" / "sealing.key").unlink()
    assert "that can only be decrypted with their sealing key, and there is none at" in shell.refusal(*command)
    assert shell.json("client", "list") == []


def test_all_invalid_settings_are_listed_and_no_secret_is_repeated(shell: Shell) -> None:
    shell.environment |= {
        "AUTHSERVER_ISSUER": "http://as.example.com",
        "AUTHSERVER_DATABASE_URL": "mysql://root:hunter2@db/x",
        "AUTHSERVER_TOKEN_TTL": "3601",
        "AUTHSERVER_WORKERS": "none",
        "AUTHSERVER_SIGNING_ALGORITHM": "HS256",
    }
    message = shell.refusal("client", "list")
    for name in (
        *("ISSUER=http://as.example.com", "DATABASE_URL", "TOKEN_TTL=3601", "WORKERS=none"),
        "SIGNING_ALGORITHM=HS256",
    ):
        assert f"AUTHSERVER_{name}: " in message
    assert "https" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    "issuer",
    [
        pytest.param("http://as.example.com", id="plain http"),
        pytest.param("https://as.example.com/", id="trailing slash"),
        pytest.param("https://as.example.com?a=b", id="query"),
        pytest.param("https://as.example.com#", id="fragment"),
        pytest.param("http://127.0.0.1.evil.example", id="host with a loopback prefix"),
    ],
)
def test_an_invalid_issuer_is_refused(shell: Shell, issuer: str) -> None:
    shell.environment["AUTHSERVER_ISSUER"] = "http://127.0.0.1:9000"
    shell.text("client", "list")
    shell.environment["AUTHSERVER_ISSUER"] = issuer
    assert "AUTHSERVER_ISSUER" in shell.refusal("client", "list")


@pytest.mark.divergence("D-57")
@pytest.mark.threat("T-107")
def test_no_variable_of_authlib_allows_plain_http(shell: Shell) -> None:
    """AUTHLIB_INSECURE_TRANSPORT disables Authlib's own check for the whole process."""
    shell.text("client", "list")
    shell.environment["AUTHLIB_INSECURE_TRANSPORT"] = "1"
    for command in (["client", "list"], ["serve"]):
        assert "AUTHLIB_INSECURE_TRANSPORT=1: switches off Authlib's check for https" in shell.refusal(*command)
    del shell.environment["AUTHLIB_INSECURE_TRANSPORT"]
    shell.environment["AUTHSERVER_ISSUER"] = "http://as.example.com"
    assert "AUTHSERVER_ISSUER=http://as.example.com: must be https" in shell.refusal("client", "list")


@pytest.mark.threat("T-107")
def test_the_flask_debugger_prevents_the_start(shell: Shell) -> None:
    shell.text("client", "list")
    shell.environment["FLASK_DEBUG"] = "1"
    assert "FLASK_DEBUG=1: switches on Flask's debugger" in shell.refusal("serve")


def test_the_environment_overrides_the_env_file(shell: Shell) -> None:
    file = shell.folder / "settings.env"
    url = shell.environment.pop("AUTHSERVER_DATABASE_URL")
    file.write_text(f"AUTHSERVER_DATABASE_URL={url}\nRESOURCESERVER_ISSUER=https://elsewhere.example.com\n")
    assert RESOURCE in shell.text("--env-file", str(file), "resource", "list")
    shell.environment["AUTHSERVER_DATABASE_URL"] = f"sqlite:///{shell.folder}/absent.db"
    assert "Run: authserver init" in shell.refusal("--env-file", str(file), "resource", "list")


@pytest.mark.parametrize("loss", ["sealing key", "issuer"])
def test_init_reports_keys_that_cannot_be_decrypted(shell: Shell, loss: str) -> None:
    assert shell.text("init")
    if loss == "issuer":
        shell.environment["AUTHSERVER_ISSUER"] = "https://renamed.example.com"
    else:
        (shell.folder / "keys" / "sealing.key").unlink()
    file = shell.folder / "keys" / "sealing.key"
    remediation = "Restore that one" if loss == "issuer" else f"Restore {file} from its backup"
    for command in (["init"], ["serve"], ["check"]):
        told = shell.run(*command)
        assert told.exit_code == 1
        assert remediation in told.output
        assert "Run: authserver init" not in told.output
    assert loss == "issuer" or not file.exists()


def test_a_misspelt_setting_is_refused_by_name(shell: Shell) -> None:
    assert shell.text("client", "list")
    shell.environment["AUTHSERVER_TOKEN_TLL"] = "60"
    assert "AUTHSERVER_TOKEN_TLL: there is no such setting" in shell.refusal("client", "list")


def test_a_change_is_recorded_with_the_real_user(shell: Shell) -> None:
    shell.environment["LOGNAME"] = shell.environment["USER"] = "somebody_else"
    shell.text("resource", "add", "https://other.example.com/mcp", "--name", "other", "--scope", "a")
    assert shell.json("audit")[-1]["actor"] == f"admin:{operating_system_user()}"


@pytest.mark.both_databases
def test_reading_commands_do_not_wait_for_a_writer(shell: Shell) -> None:
    database = Database(parse_database_url(shell.environment["AUTHSERVER_DATABASE_URL"]))
    with closing(database), database.write() as session:
        session.execute(update(ResourceRow).values(resource_name="not committed"))
        assert shell.text("audit")
        assert shell.text("client", "list")
