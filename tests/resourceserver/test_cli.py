"""The `resourceserver` command: what it prints, its exit codes, its refusals."""

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.commands import cut_summaries, every_command
from support.databases import Template
from support.logs import logging_put_back

from gatehouse.authserver.resources.catalogue import parse_catalogue
from gatehouse.directory.workspaces import create_workspace
from gatehouse.resourceserver.cli import main
from gatehouse.resourceserver.db.database import Database
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.service.database import parse_database_url
from gatehouse.shared.service.fetch import Fetch, Fetched

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """`serve` sends logs to the command's standard error, which is gone after it."""
    with logging_put_back():
        yield


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments, **env: CliRunner().invoke(main, list(arguments), env=env)


@pytest.fixture
def installed(run: Run, tmp_path: Path, resourceserver_template: Template, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in an initialized installation."""
    monkeypatch.setenv("RESOURCESERVER_DATABASE_URL", resourceserver_template.install(tmp_path / "var"))
    monkeypatch.setenv("RESOURCESERVER_AUDIT_KEYS", "var/keys/resourceserver-audit.json")
    return run


@pytest.mark.parametrize("command", list(every_command(main)), ids=" ".join)
def test_every_command_has_help_with_an_example(run: Run, command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Example:" in result.output
    assert f"resourceserver {' '.join(command)}" in result.output.partition("Example:")[2]


def test_no_list_of_commands_cuts_a_summary() -> None:
    assert list(cut_summaries(main)) == []


def test_every_paragraph_of_the_help_has_the_same_margin(run: Run) -> None:
    lines = run("check", "--help").output.splitlines()
    assert [line for line in lines if line.startswith("  Exit code 1 if a check fails.")]


@pytest.mark.both_databases
def test_init_creates_a_database_that_only_its_owner_can_read(run: Run, tmp_path: Path) -> None:
    result = run("init")
    assert result.exit_code == 0, result.output
    assert "http://127.0.0.1:8000/mcp" in result.output
    database = tmp_path / "var" / "resourceserver.db"
    assert stat.S_IMODE(database.stat().st_mode) == 0o600
    assert stat.S_IMODE(database.parent.stat().st_mode) == 0o700


@pytest.mark.both_databases
def test_init_can_be_repeated_and_loses_nothing(run: Run) -> None:
    assert run("init").exit_code == 0
    assert run("workspace", "create", "--name", "acme").exit_code == 0
    assert run("init").exit_code == 0
    assert "acme" in run("workspace", "list").output


@pytest.mark.both_databases
def test_init_never_shows_the_password_of_a_database(run: Run) -> None:
    url = "postgresql://gatehouse:hunter2@127.0.0.1:1/none"
    result = run("init", RESOURCESERVER_DATABASE_URL=url)
    assert result.exit_code == 1
    assert "The database does not answer" in result.output
    assert "hunter2" not in result.output
    assert "Traceback" not in result.output


def test_tools_are_listed_with_their_scopes(run: Run) -> None:
    result = run("tools")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.output.splitlines()}
    assert "env:write" in lines["create_environment"]
    assert "(any valid token)" in lines["whoami"]
    assert lines["import_organizations"].split()[:3] == ["import_organizations", "org:write", "yes"]
    assert lines["create_environment"].split()[:3] == ["create_environment", "env:write", "no"]


def test_the_authorization_server_reads_the_tools_as_json(run: Run) -> None:
    result = run("tools", "--output", "json", RESOURCESERVER_RESOURCE="https://mcp.example.com/mcp")
    assert result.exit_code == 0
    read = parse_catalogue(result.stdout_bytes)
    assert read.resource == "https://mcp.example.com/mcp"
    assert {scope.scope: scope.implies for scope in read.scopes} == {
        "env:read": (),
        "env:write": ("env:read",),
        "org:read": (),
        "org:write": ("org:read",),
        "wks:read": (),
        "wks:write": ("wks:read",),
    }


@pytest.mark.both_databases
def test_a_created_workspace_is_listed_and_audited(installed: Run) -> None:
    created = json.loads(installed("workspace", "create", "--name", "acme", "--output", "json").output)
    assert created["workspace_id"].startswith("wks_")
    listed = json.loads(installed("workspace", "list", "--output", "json").output)
    assert listed == [created]
    (event,) = json.loads(installed("audit", "--output", "json").output)
    assert (event["action"], event["object"], event["outcome"]) == (
        *("workspace.create", created["workspace_id"], "allowed"),
    )
    assert event["actor"].startswith("admin:")


def test_tables_are_for_people(installed: Run) -> None:
    assert installed("workspace", "list").output == "(none)\n"
    assert installed("workspace", "create", "--name", "acme & sons").exit_code == 0
    heading, line = installed("workspace", "list").output.splitlines()
    assert heading.split() == ["workspace_id", "name", "created_at"]
    assert "acme & sons" in line


@pytest.mark.parametrize("name", ["acme", "", "z" * 65, "line\nfeed", "\x1b[31mred"])
def test_an_invalid_workspace_name_changes_nothing(installed: Run, name: str) -> None:
    assert installed("workspace", "create", "--name", "acme").exit_code == 0
    result = installed("workspace", "create", "--name", name)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert len(json.loads(installed("workspace", "list", "--output", "json").output)) == 1
    assert len(json.loads(installed("audit", "--output", "json").output)) == 1


@pytest.mark.both_databases
def test_the_audit_log_can_be_filtered(installed: Run) -> None:
    for name in ("a", "b", "c"):
        installed("workspace", "create", "--name", name)
    everything = json.loads(installed("audit", "--output", "json").output)
    newest = json.loads(installed("audit", "--limit", "2", "--output", "json").output)
    assert newest == everything[1:]
    actor = everything[0]["actor"]
    assert json.loads(installed("audit", "--client", actor, "--output", "json").output) == everything
    for option in ("--client", "--jti"):
        assert json.loads(installed("audit", option, "nobody", "--output", "json").stdout) == []
    assert installed("audit", "--client", "' OR '1'='1").stdout == "(none)\n"


@pytest.mark.both_databases
def test_an_unknown_action_differs_from_one_without_events(installed: Run) -> None:
    installed("workspace", "create", "--name", "a")
    assert len(json.loads(installed("audit", "--action", "workspace.create", "--output", "json").stdout)) == 1
    assert json.loads(installed("audit", "--action", "tool.call", "--output", "json").stdout) == []
    typo = installed("audit", "--action", "tool.cal")
    assert typo.exit_code == 1
    assert typo.output == (
        "Error: There is no action tool.cal. The actions are: audit.prune, audit_key.rotate, http.request, "
        "mcp.request, resource.read, tool.call, workspace.create.\n"
    )
    absent = installed("audit", "--request", "req_none")
    assert absent.exit_code == 1
    assert absent.output == (
        "Error: This audit log has no request req_none. "
        "It may be in the other server's audit log, or only in the log output.\n"
    )
    named = installed("audit", "--client", "ci-agent")
    assert named.exit_code == 0
    assert named.stderr == "Clients are named by their client_id. See: authserver client list\n"


@pytest.mark.parametrize(
    "command", [("workspace", "list"), ("workspace", "create", "--name", "a"), ("audit",), ("serve",)], ids=" ".join
)
def test_an_uninitialized_database_is_refused_with_a_remediation(
    run: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    missing = run(*command)
    assert missing.exit_code == 1
    assert f"There is no database at {tmp_path}/var/resourceserver.db. Run: resourceserver init" in missing.output
    assert not (tmp_path / "var").exists()
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "resourceserver.db").touch()
    empty = run(*command)
    assert empty.exit_code == 1
    assert empty.output.endswith("Run: resourceserver init\n")


@pytest.mark.parametrize(
    ("variable", "value", "remediation"),
    [
        ("RESOURCESERVER_RESOURCE", "http://mcp.example.com/mcp", "must be https"),
        ("RESOURCESERVER_RESOURCE", "https://mcp.example.com/mcp#part", "without query or fragment"),
        ("RESOURCESERVER_ISSUER", "http://as.example.com", "must be https"),
        ("RESOURCESERVER_ISSUER", "https://as.example.com/", "ends with a slash"),
        ("RESOURCESERVER_BIND", "8000", "must be HOST:PORT"),
        ("RESOURCESERVER_WORKERS", "0", "must be 1 to 64"),
        ("RESOURCESERVER_BASELINE_SCOPES", 'env"read', "A scope is 1 to 128"),
        ("RESOURCESERVER_DATABASE_URL", "mysql://root:hunter2@db/x", "RESOURCESERVER_DATABASE_URL"),
    ],
)
def test_an_invalid_setting_stops_the_start_and_is_named(
    installed: Run, variable: str, value: str, remediation: str
) -> None:
    result = installed("serve", **{variable: value})
    assert result.exit_code == 1
    shown = "" if variable == "RESOURCESERVER_DATABASE_URL" else f"={value}"
    assert result.output.startswith(f"Error: {variable}{shown}: ")
    assert remediation in result.output
    assert "hunter2" not in result.output


def test_a_baseline_scope_that_no_tool_has_stops_the_start(installed: Run) -> None:
    result = installed("serve", RESOURCESERVER_BASELINE_SCOPES="env:raed")
    assert result.exit_code == 1
    assert result.output.startswith(
        "Error: RESOURCESERVER_BASELINE_SCOPES: env:raed is not a scope of the catalogue. There are: env:read"
    )


def test_all_problems_of_the_settings_are_reported_at_once(run: Run) -> None:
    result = run("init", RESOURCESERVER_BIND="x", RESOURCESERVER_ISSUER="ftp://x", RESOURCESERVER_LOG_LEVEL="LOUD")
    assert result.exit_code == 1
    for name in ("RESOURCESERVER_BIND=x", "RESOURCESERVER_ISSUER=ftp://x", "RESOURCESERVER_LOG_LEVEL=LOUD"):
        assert f"{name}: " in result.output


def test_settings_come_from_an_env_file_and_variables_win(run: Run, tmp_path: Path) -> None:
    env_file = tmp_path / "gatehouse.env"
    env_file.write_text("RESOURCESERVER_RESOURCE=https://file.example.com/mcp\nAUTHSERVER_ISSUER=https://as.example\n")
    arguments = ("--env-file", str(env_file), "tools", "--output", "json")
    assert json.loads(run(*arguments).output)["resource"] == "https://file.example.com/mcp"
    won = run(*arguments, RESOURCESERVER_RESOURCE="https://variable.example.com/mcp")
    assert json.loads(won.output)["resource"] == "https://variable.example.com/mcp"


@pytest.mark.parametrize(
    "arguments", [("none",), ("workspace", "create"), ("audit", "--limit", "0"), ("tools", "--output", "xml")]
)
def test_wrong_usage_has_its_own_exit_code(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.both_databases
def test_reading_commands_do_not_wait_for_a_writer(installed: Run) -> None:
    database = Database(parse_database_url(os.environ["RESOURCESERVER_DATABASE_URL"]))
    with closing(database), database.write() as session:
        create_workspace(session, "not committed", 0)
        assert installed("audit").exit_code == 0
        assert installed("workspace", "list").exit_code == 0


def test_check_reports_what_would_stop_the_server(run: Run, installed: Run) -> None:
    """The issuer's port is closed: the server would start, and wait for the keys."""
    issuer = {"RESOURCESERVER_ISSUER": "http://127.0.0.1:1"}
    result = installed("check", "--output", "json", RESOURCESERVER_BIND="127.0.0.1:0", **issuer)
    checks = {check["check"]: check for check in json.loads(result.stdout)}
    assert {name: check["outcome"] for name, check in checks.items()} == {
        "settings": "ok",
        "address": "ok",
        "catalogue": "ok",
        "database": "ok",
        "limits": "ok",
        "audit key file": "ok",
        "issuer's keys": "failed",
        "issuer's metadata": "failed",
    }
    assert "http://127.0.0.1:1/.well-known/jwks.json: no connection" in checks["issuer's keys"]["detail"]
    assert result.stderr == ""
    assert result.exit_code == 1
    broken = installed("check", "--output", "json", **issuer, RESOURCESERVER_BASELINE_SCOPES="nope:read")
    assert "nope:read is not a scope of the catalogue" in broken.stdout


@pytest.mark.parametrize(
    ("variables", "detail"),
    [
        ({}, "counted in each process: a worker allows 1/2 of each limit"),
        ({"WORKERS": "1"}, "counted in each process: a worker allows the whole of each limit"),
        (
            {"LIMITS_URL": "redis://user:hunter2@127.0.0.1:1/0", "WORKERS": "4"},
            "redis://127.0.0.1:1/0 does not answer (ConnectionError). Each worker allows 1/4 of the limits.",
        ),
    ],
    ids=["two workers", "one worker", "no Redis"],
)
def test_check_says_where_requests_are_counted(run: Run, variables: dict[str, str], detail: str) -> None:
    named = {f"RESOURCESERVER_{name}": value for name, value in variables.items()}
    checks = {row["check"]: row for row in json.loads(run("check", "--output", "json", **named).stdout)}
    assert checks["limits"]["detail"] == detail
    assert checks["limits"]["outcome"] == ("failed" if "LIMITS_URL" in variables else "ok")


def test_check_says_that_prepared_statements_are_off(run: Run) -> None:
    url = "postgresql://gatehouse:hunter2@127.0.0.1:1/none?pgbouncer=true"
    result = run("check", "--output", "json", RESOURCESERVER_DATABASE_URL=url)
    checks = {row["check"]: row["detail"] for row in json.loads(result.stdout)}
    assert checks["connection pooler"] == "pgbouncer=true: prepared statements are off"
    assert "127.0.0.1:1: Connection refused" in checks["database"]


@pytest.mark.threat("T-140")
@pytest.mark.parametrize(
    ("inner", "detail"),
    [
        ("http://authserver:9000/", "http://authserver:9000, without TLS: who controls that network can forge tokens"),
        ("http://127.0.0.1:9", "http://127.0.0.1:9"),
        ("https://authserver.internal", "https://authserver.internal"),
    ],
)
def test_check_names_an_internal_address_without_tls(installed: Run, inner: str, detail: str) -> None:
    variables = {"RESOURCESERVER_ISSUER": "https://as.example.com", "RESOURCESERVER_ISSUER_INTERNAL_URL": inner}
    checks = {row["check"]: row for row in json.loads(installed("check", "--output", "json", **variables).stdout)}
    assert checks["issuer's internal address"]["detail"] == detail
    assert checks["issuer's keys"]["detail"].startswith(inner.removesuffix("/") + "/.well-known/jwks.json: ")


@pytest.mark.parametrize(
    ("metadata", "outcome", "detail"),
    [
        (b'{"issuer": "https://as.example.com"}', "ok", "names the issuer https://as.example.com"),
        (b'{"issuer": "http://127.0.0.1:9000"}', "failed", "names the issuer http://127.0.0.1:9000, not https://as."),
        (b"[]", "failed", "names the issuer None"),
        (b"{", "failed", "/.well-known/oauth-authorization-server: "),
    ],
)
def test_check_reports_an_issuer_of_another_name(
    installed: Run, monkeypatch: pytest.MonkeyPatch, metadata: bytes, outcome: str, detail: str
) -> None:
    jwk = SigningKey.generate("ES256").public_jwk()
    key_set = json.dumps({"keys": [jwk, {**jwk, "use": "enc"}]}).encode()

    def fake_fetch(_: object, url: str) -> Fetch:
        async def fetch(_: str | None) -> Fetched:
            return Fetched(key_set if url.endswith("/jwks.json") else metadata, None)

        return fetch

    monkeypatch.setattr("gatehouse.resourceserver.cli.check.http_fetch", fake_fetch)
    result = installed("check", "--output", "json", RESOURCESERVER_ISSUER="https://as.example.com")
    checks = {row["check"]: row for row in json.loads(result.stdout)}
    assert checks["issuer's metadata"]["outcome"] == outcome
    assert detail in checks["issuer's metadata"]["detail"]
    assert (checks["issuer's keys"]["outcome"], checks["issuer's keys"]["detail"]) == (
        "ok",
        f"1 key of https://as.example.com; not used: key 2 ({jwk['kid']}): its use is enc, not sig",
    )


@pytest.mark.parametrize(
    "inner", ["", "authserver:9000", "http://u:p@authserver", "http://a/path", "ftp://a", "http://a?q"]
)
def test_an_internal_address_is_scheme_host_and_port(run: Run, inner: str) -> None:
    result = run("check", RESOURCESERVER_ISSUER_INTERNAL_URL=inner)
    assert "must be scheme, host and port, such as http://authserver:9000" in " ".join(result.output.split())


def test_an_address_that_cannot_be_bound_is_named_by_its_setting(installed: Run) -> None:
    https = {"RESOURCESERVER_RESOURCE": "https://mcp.example.com/mcp"}
    bind = {"RESOURCESERVER_BIND": "192.0.2.1:8000"}
    told = "RESOURCESERVER_BIND=192.0.2.1:8000 cannot be used: Cannot assign requested address."
    checks = json.loads(installed("check", "--output", "json", **bind, **https).stdout)
    assert [check["detail"] for check in checks if check["check"] == "address"] == [told]
    served = installed("serve", **bind, **https)
    assert (served.exit_code, served.output) == (1, f"Error: {told}\n")


def test_check_explains_every_setting(run: Run) -> None:
    explained = json.loads(run("check", "--explain", "--output", "json").stdout)
    assert "RESOURCESERVER_RESOURCE" in {row["setting"] for row in explained}
    assert all(row["description"] and row["source"] == "default" for row in explained)
    named = json.loads(run("check", "--explain", "--output", "json", RESOURCESERVER_WORKERS="8").stdout)
    assert {row["setting"]: row["value"] for row in named if row["source"] == "environment"} == {
        "RESOURCESERVER_WORKERS": "8"
    }
