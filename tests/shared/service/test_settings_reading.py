"""Reading settings: all problems at once, each with its value and how to fix it, and no secret repeated."""

from pathlib import Path

import pytest
from support.settings import problems_of

from gatehouse.authserver.keys.encryption import load_sealing_key
from gatehouse.authserver.settings import Settings as AuthServerSettings
from gatehouse.bridge.settings import BridgeSettings
from gatehouse.resourceserver.settings import Settings as ResourceServerSettings
from gatehouse.shared.service.settings import InvalidSettings
from gatehouse.shared.service.settings_reading import explain_settings, load_settings


def expected_names(wrong: dict[str, tuple[str, str]], confidential: set[str]) -> set[str]:
    return {name if name in confidential else f"{name}={value}" for name, (value, _) in wrong.items()}


def test_all_problems_of_the_authorization_server_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "AUTHSERVER_ISSUER": ("http://as.example.com", "must be https"),
        "AUTHSERVER_BIND": ("9000", "must be HOST:PORT"),
        "AUTHSERVER_WORKERS": ("many", "must be 1 to 64"),
        "AUTHSERVER_THREADS": ("0", "must be 1 to 64"),
        "AUTHSERVER_DATABASE_URL": ("mysql://root:hunter2@host/name", "only sqlite:// and postgresql://"),
        "AUTHSERVER_SIGNING_ALGORITHM": ("HS256", "must be ES256, RS256 or EdDSA"),
        "AUTHSERVER_TOKEN_TTL": ("3601", "must be 1 to 3600"),
        "AUTHSERVER_ALLOWED_ORIGINS": ("https://a.example.com/", "without a path"),
        "AUTHSERVER_LIMITS_URL": ("http://user:hunter2@host", "must be redis://HOST:PORT/NUMBER"),
        "AUTHSERVER_LIMIT_TOKEN_REQUESTS": ("60", "must be NUMBER/second, NUMBER/minute or NUMBER/hour"),
        "AUTHSERVER_LIMIT_AUTHENTICATION_FAILURES": ("10/day", "must be NUMBER/second"),
        "AUTHSERVER_TRUSTED_PROXIES": ("10.0.0.7, 10.0.0.8", "'10.0.0.7,' is not an IP address or a network"),
        "AUTHSERVER_LOG_FORMAT": ("xml", "must be console or json"),
        "AUTHSERVER_LOG_LEVEL": ("LOUD", "must be DEBUG, INFO or WARNING"),
    }
    for name, (value, _) in wrong.items():
        monkeypatch.setenv(name, value)
    problems = problems_of(AuthServerSettings)
    assert problems.keys() == expected_names(wrong, {"AUTHSERVER_DATABASE_URL", "AUTHSERVER_LIMITS_URL"})
    for name, (_, remediation) in wrong.items():
        [problem] = [text for shown, text in problems.items() if shown.partition("=")[0] == name]
        assert remediation in problem
    assert "hunter2" not in str(problems)


def test_all_problems_of_the_resource_server_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "RESOURCESERVER_RESOURCE": ("https://mcp.example.com/mcp#part", "without query or fragment"),
        "RESOURCESERVER_ISSUER": ("https://as.example.com/", "ends with a slash"),
        "RESOURCESERVER_BIND": (":9000", "must be HOST:PORT"),
        "RESOURCESERVER_WORKERS": ("65", "must be 1 to 64"),
        "RESOURCESERVER_DATABASE_URL": ("hunter2", "not a database URL"),
        "RESOURCESERVER_LIMITS_URL": ("redis://:hunter2@host/name", "must be redis://HOST:PORT/NUMBER"),
        "RESOURCESERVER_LIMIT_CALLS": ("many", "must be NUMBER/second"),
        "RESOURCESERVER_LIMIT_TOOL_CALLS": ("-1/minute", "must be NUMBER/second"),
        "RESOURCESERVER_LIMIT_CONCURRENT_CALLS": ("5000", "must be 0 to 4096"),
        "RESOURCESERVER_TRUSTED_PROXIES": ("0.0.0.0/0", "would trust every address"),
        "RESOURCESERVER_BASELINE_SCOPES": ("env:read  env:write", "Separate scopes by one space"),
        "RESOURCESERVER_ALLOWED_ORIGINS": ("* null", "* has a wildcard; name each origin; null is the origin of"),
    }
    for name, (value, _) in wrong.items():
        monkeypatch.setenv(name, value)
    problems = problems_of(ResourceServerSettings)
    assert problems.keys() == expected_names(wrong, {"RESOURCESERVER_DATABASE_URL", "RESOURCESERVER_LIMITS_URL"})
    for name, (_, remediation) in wrong.items():
        [problem] = [text for shown, text in problems.items() if shown.partition("=")[0] == name]
        assert remediation in problem
    assert "hunter2" not in str(problems)


def test_unknown_names_and_invalid_values_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message suggests the name that was probably meant."""
    assert load_settings(AuthServerSettings)
    for name, value in {
        "AUTHSERVER_TOKEN_TLL": "60",
        "AUTHSERVER_VERBOSE": "1",
        "AUTHSERVER_WORKERS": "0",
        "FLASK_DEBUG": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert problems_of(AuthServerSettings) == {
        "FLASK_DEBUG=1": "switches on Flask's debugger, which runs code for anyone who reaches it; unset it",
        "AUTHSERVER_TOKEN_TLL": "there is no such setting; did you mean AUTHSERVER_TOKEN_TTL?",
        "AUTHSERVER_VERBOSE": "there is no such setting; remove it or correct its name",
        "AUTHSERVER_WORKERS=0": "must be 1 to 64",
    }


def test_settings_are_explained_with_values_and_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env_file = tmp_path / "servers.env"
    env_file.write_text(
        "AUTHSERVER_TOKEN_TTL=60\nAUTHSERVER_THREADS=8\nAUTHSERVER_DATABASE_URL=sqlite:///hunter2.db\n"
        "AUTHSERVER_ISSUER=https://admin:hunter2@as.example.com\n"
    )
    monkeypatch.setenv("AUTHSERVER_THREADS", "2")
    monkeypatch.setenv("AUTHSERVER_SEALING_KEY", "hunter2")
    monkeypatch.setenv("AUTHSERVER_LIMITS_URL", "redis://:hunter2@cache")
    explained = explain_settings(AuthServerSettings, env_file)
    assert explained[0]["setting"] == "AUTHSERVER_ISSUER"
    rows = {row["setting"].removeprefix("AUTHSERVER_"): row for row in explained}
    assert {name: (rows[name]["value"], rows[name]["source"], rows[name]["default"]) for name in rows} == {
        "ISSUER": ("(not shown)", "file", "http://127.0.0.1:9000"),
        "BIND": ("127.0.0.1:9000", "default", "127.0.0.1:9000"),
        "WORKERS": ("2", "default", "2"),
        "THREADS": ("2", "environment", "4"),
        "DATABASE_URL": ("set", "file", "sqlite:///var/authserver.db"),
        "TLS_CERTIFICATE": ("", "default", ""),
        "TLS_KEY": ("", "default", ""),
        "KEYS_DIR": ("keys", "default", "keys"),
        "SEALING_KEY": ("set", "environment", ""),
        "RESTORE_MARK": ("", "default", ""),
        "AUDIT_KEYS": ("", "default", ""),
        "AUDIT_RETENTION": ("0", "default", "0"),
        "SIGNING_ALGORITHM": ("ES256", "default", "ES256"),
        "KEY_ROTATION_DAYS": ("30", "default", "30"),
        "TOKEN_TTL": ("60", "file", "300"),
        "LIMITS_URL": ("set", "environment", ""),
        "LIMIT_AUTHENTICATION_FAILURES": ("10/minute", "default", "10/minute"),
        "LIMIT_TOKEN_REQUESTS": ("60/minute", "default", "60/minute"),
        "LIMIT_REVOCATIONS": ("300/minute", "default", "300/minute"),
        "LIMIT_INTROSPECTIONS": ("6000/minute", "default", "6000/minute"),
        "TRUSTED_PROXIES": ("", "default", ""),
        "ALLOWED_ORIGINS": ("", "default", ""),
        "LOG_FORMAT": ("console", "default", "console"),
        "LOG_LEVEL": ("INFO", "default", "INFO"),
        "METRICS_BIND": ("", "default", ""),
        "METRICS_CLIENTS": ("", "default", ""),
    }
    assert all(row["description"] for row in explained)
    assert "hunter2" not in str(explained)
    assert [row["setting"] for row in explain_settings(ResourceServerSettings)][:2] == [
        *("RESOURCESERVER_RESOURCE", "RESOURCESERVER_ISSUER"),
    ]


@pytest.mark.parametrize("settings_class", [AuthServerSettings, ResourceServerSettings])
@pytest.mark.parametrize("url", ["hunter2", "mysql://root:hunter2@host/name", "mysql:///hunter2", "sqlite://?hunter2"])
def test_a_database_url_is_never_repeated(
    settings_class: type[AuthServerSettings | ResourceServerSettings], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = settings_class.variable("database_url")
    monkeypatch.setenv(name, url)
    problems = problems_of(settings_class)
    assert problems.keys() == {name}
    assert "hunter2" not in str(problems)


def test_the_sealing_key_is_never_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the environment beside other errors: alone, with the wrong length, and with conflicting settings."""
    monkeypatch.setenv("AUTHSERVER_SEALING_KEY", "hunter2")
    monkeypatch.setenv("AUTHSERVER_BIND", "0.0.0.0:9000")
    assert list(problems_of(AuthServerSettings)) == ["AUTHSERVER_BIND=0.0.0.0:9000"]
    monkeypatch.setenv("AUTHSERVER_TOKEN_TTL", "0")
    assert list(problems_of(AuthServerSettings)) == ["AUTHSERVER_TOKEN_TTL=0"]
    assert "hunter2" not in str(problems_of(AuthServerSettings))
    monkeypatch.delenv("AUTHSERVER_TOKEN_TTL")
    monkeypatch.delenv("AUTHSERVER_BIND")
    with pytest.raises(InvalidSettings, match=r"^AUTHSERVER_SEALING_KEY: (?!.*hunter2)"):
        load_sealing_key(load_settings(AuthServerSettings))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param("ftp://admin:hunter2@as.example.com", "(not shown)", id="a password before a host"),
        pytest.param("gths_hunter2", "[masked]", id="a client secret"),
        pytest.param("a\x1b[31m", "a\\x1b[31m", id="control characters"),
        pytest.param("a" * 101 + "hunter2", "a" * 100, id="a long value"),
    ],
)
def test_a_value_is_repeated_without_secrets_and_control_characters(
    value: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTHSERVER_ISSUER", value)
    problems = problems_of(AuthServerSettings)
    assert problems.keys() == {f"AUTHSERVER_ISSUER={shown}"}
    assert "hunter2" not in str(problems)


def test_a_variable_overrides_the_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env_file = tmp_path / "servers.env"
    env_file.write_text("AUTHSERVER_TOKEN_TTL=60\nAUTHSERVER_THREADS=8\nRESOURCESERVER_WORKERS=9\nOTHER=x\n")
    monkeypatch.setenv("AUTHSERVER_THREADS", "2")
    settings = load_settings(AuthServerSettings, env_file)
    assert (settings.token_ttl, settings.threads) == (60, 2)
    assert load_settings(ResourceServerSettings, env_file).workers == 9


def test_an_unreadable_issuer_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message of the standard library quotes the password and the host."""
    monkeypatch.setenv("AUTHSERVER_ISSUER", "https://admin:hunter2@as\u2100.example.com")
    problems = problems_of(AuthServerSettings)
    assert problems.keys() == {"AUTHSERVER_ISSUER=(not shown)"}
    assert "hunter2" not in str(problems)


def test_a_secret_is_masked_before_a_value_is_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the value were truncated first, the rest of the secret would not be recognised."""
    monkeypatch.setenv("AUTHSERVER_ISSUER", "x" * 90 + "Bearer abcdefghijklmnopqrstuvwxyz")
    with pytest.raises(InvalidSettings) as refused:
        load_settings(AuthServerSettings)
    assert "AUTHSERVER_ISSUER=xxx" in str(refused.value)
    assert "abc" not in str(refused.value)


def private_file(folder: Path, text: str) -> Path:
    """Write a file as a secret is mounted."""
    path = folder / "secret"
    path.touch(mode=0o600)
    path.write_text(text)
    return path


@pytest.mark.parametrize("place", ["environment", "env file"])
def test_a_secret_can_be_in_a_file_of_its_own(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variable, env_file = f"AUTHSERVER_DATABASE_URL_FILE={private_file(tmp_path, 'sqlite:///hunter2.db')}", None
    if place == "env file":
        env_file = tmp_path / "servers.env"
        env_file.write_text(f"{variable}\n")
    else:
        monkeypatch.setenv(*variable.split("=", 1))
    assert load_settings(AuthServerSettings, env_file).database_url == "sqlite:///hunter2.db"
    [row] = [
        row for row in explain_settings(AuthServerSettings, env_file) if row["setting"] == "AUTHSERVER_DATABASE_URL"
    ]
    assert (row["value"], row["source"]) == ("set", "AUTHSERVER_DATABASE_URL_FILE")


def test_an_empty_name_of_a_file_counts_only_where_empty_variables_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRIDGE_CLIENT_SECRET_FILE", "")
    assert load_settings(BridgeSettings).client_secret is None
    monkeypatch.setenv("BRIDGE_CLIENT_SECRET_FILE", str(private_file(tmp_path, "hunter2\n")))
    secret = load_settings(BridgeSettings).client_secret
    assert secret is not None
    assert secret.get_secret_value() == "hunter2"
    monkeypatch.setenv("AUTHSERVER_SEALING_KEY_FILE", "")
    assert problems_of(AuthServerSettings)["AUTHSERVER_SEALING_KEY_FILE="].startswith(
        "The file . is not a regular file"
    )


def test_a_secret_and_its_file_are_not_set_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTHSERVER_SEALING_KEY_FILE", str(private_file(tmp_path, "hunter2")))
    assert load_settings(AuthServerSettings).sealing_key is not None
    monkeypatch.setenv("AUTHSERVER_SEALING_KEY", "hunter2")
    monkeypatch.setenv("AUTHSERVER_WORKERS", "0")
    assert problems_of(AuthServerSettings) == {
        "AUTHSERVER_SEALING_KEY, AUTHSERVER_SEALING_KEY_FILE": "both are set; unset one",
        "AUTHSERVER_WORKERS=0": "must be 1 to 64",
    }


@pytest.mark.parametrize(
    ("text", "mode", "problem"),
    [
        (None, 0o600, "there is no such file"),
        ("", 0o600, "the file is empty"),
        ("sqlite:///hunter2.db", 0o644, "is accessible to others. Run: chmod 600"),
        ("hunter2" * 3000, 0o600, "the file is larger than 16 KiB"),
    ],
)
def test_an_unusable_file_of_a_secret_is_named(
    text: str | None, mode: int, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret"
    if text is not None:
        private_file(tmp_path, text).chmod(mode)
    monkeypatch.setenv("RESOURCESERVER_DATABASE_URL_FILE", str(path))
    problems = problems_of(ResourceServerSettings)
    assert problem in problems[f"RESOURCESERVER_DATABASE_URL_FILE={path}"]
    assert "hunter2" not in str(problems)


def test_an_invalid_secret_is_reported_under_the_name_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTHSERVER_DATABASE_URL_FILE", str(private_file(tmp_path, "mysql://root:hunter2@host/name")))
    assert problems_of(AuthServerSettings) == {
        "AUTHSERVER_DATABASE_URL_FILE": "only sqlite:// and postgresql:// databases are supported"
    }


def test_only_a_secret_can_be_in_a_file_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTHSERVER_ISSUER_FILE", "/etc/issuer")
    assert problems_of(AuthServerSettings)["AUTHSERVER_ISSUER_FILE"].startswith("there is no such setting")
