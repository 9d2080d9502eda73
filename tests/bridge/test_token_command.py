"""The command `resourceserver token`, without a network. tests/journeys/test_token_command.py has one with servers."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.fake_servers import SECRET

from gatehouse.bridge.credentials import Credentials
from gatehouse.bridge.settings import BridgeSettings
from gatehouse.bridge.token_cache import StoredToken, TokenCache, cache_key
from gatehouse.resourceserver.cli import main

RESOURCE = "http://127.0.0.1:1/mcp"
"""Nothing listens there."""
ISSUER = "http://127.0.0.1:1"
IN_ENVIRONMENT = {"BRIDGE_CLIENT_ID": "agent_1", "BRIDGE_CLIENT_SECRET": SECRET}
CLIENT = Credentials("agent_1", "", "client_secret_basic", secret=SECRET)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    """Run the command with a cache of its own."""

    def invoke(*arguments: str, **env: str) -> Result:
        result = CliRunner().invoke(
            main, ["token", *arguments], env={"XDG_CACHE_HOME": str(tmp_path), **IN_ENVIRONMENT, **env}
        )
        assert "Traceback" not in result.output
        assert SECRET not in result.output
        return result

    return invoke


def keep(folder: Path, *, lifetime: float = 300, scope: str = "", issuer: str | None = ISSUER) -> None:
    """Keep a token, as the command does."""
    cache = TokenCache(folder / "gatehouse" / "tokens", pytest.fail)
    key = cache_key(issuer, RESOURCE, "agent_1", scope, CLIENT.digest())
    cache.put(key, StoredToken("a.b.c", "env:read", time.time() + lifetime))


@pytest.mark.parametrize(
    ("output", "printed"),
    [
        ((), "a.b.c\n"),
        (("--output", "token"), "a.b.c\n"),
        (("--output", "header"), "Authorization: Bearer a.b.c\n"),
        (("--output", "headers-json"), '{"Authorization": "Bearer a.b.c"}\n'),
    ],
    ids=str,
)
def test_standard_output_has_the_token_and_nothing_else(
    run: Callable[..., Result], tmp_path: Path, output: tuple[str, ...], printed: str
) -> None:
    keep(tmp_path)
    result = run(RESOURCE, "--issuer", ISSUER, *output)
    assert (result.exit_code, result.stdout, result.stderr) == (0, printed, "")


def test_the_json_is_that_of_a_token_response(run: Callable[..., Result], tmp_path: Path) -> None:
    keep(tmp_path)
    members = json.loads(run(RESOURCE, "--issuer", ISSUER, "--output", "json").stdout)
    assert 60 < members.pop("expires_in") <= 300
    assert members == {"access_token": "a.b.c", "token_type": "Bearer", "scope": "env:read"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--issuer", ISSUER, "--no-cache"),
        ("--issuer", ISSUER, "--scope", "env:write"),
        ("--issuer", "http://127.0.0.1:2"),
        (),
    ],
    ids=str,
)
def test_a_kept_token_is_printed_only_for_the_same_request(
    run: Callable[..., Result], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    keep(tmp_path)
    assert run(RESOURCE, "--issuer", ISSUER).stdout == "a.b.c\n"
    result = run(RESOURCE, *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "does not respond" in result.stderr


def test_a_kept_token_is_not_printed_for_another_secret(run: Callable[..., Result], tmp_path: Path) -> None:
    keep(tmp_path)
    assert run(RESOURCE, "--issuer", ISSUER, BRIDGE_CLIENT_SECRET=f"{SECRET}x").exit_code == 1


def test_the_order_of_scopes_does_not_matter(run: Callable[..., Result], tmp_path: Path) -> None:
    keep(tmp_path, scope="env:read org:read")
    both = run(RESOURCE, "--issuer", ISSUER, "--scope", "org:read", "--scope", "env:read")
    assert both.stdout == "a.b.c\n"
    assert run(RESOURCE, "--issuer", ISSUER, "--scope", "org:read env:read").stdout == "a.b.c\n"


@pytest.mark.threat("T-119")
def test_a_folder_that_others_can_access_is_reported_and_not_used(run: Callable[..., Result], tmp_path: Path) -> None:
    keep(tmp_path)
    (tmp_path / "gatehouse" / "tokens").chmod(0o755)
    result = run(RESOURCE, "--issuer", ISSUER)
    assert result.stdout == ""
    assert "Run: chmod 700" in result.stderr
    assert "does not respond" in result.stderr


def test_a_home_that_cannot_be_written_is_reported(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run(RESOURCE, "--issuer", ISSUER, XDG_CACHE_HOME=str(tmp_path / "file"))
    assert "Warning: The token is not kept." in result.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("http://mcp.example.com/mcp",), "plain http is for loopback addresses only"),
        ((RESOURCE, "--issuer", "as.example.com"), "must be https"),
        ((RESOURCE, "--scope", 'a"b'), "A scope is 1 to 128 printable ASCII characters"),
        ((RESOURCE, "--output", "table"), "is not one of"),
        ((RESOURCE, "--client-secret", SECRET[:8]), "No such option"),
        ((), "Missing argument"),
    ],
    ids=str,
)
def test_an_invalid_argument_is_a_usage_error(
    run: Callable[..., Result], arguments: tuple[str, ...], problem: str
) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert problem in " ".join(result.stderr.split())


def test_missing_credentials_are_explained(run: Callable[..., Result]) -> None:
    result = run(RESOURCE, BRIDGE_CLIENT_SECRET="")
    assert (result.exit_code, result.stdout) == (1, "")
    for name in (
        "BRIDGE_CLIENT_SECRET",
        "--credentials FILE",
        "--token-file FILE",
        "BRIDGE_TOKEN_FILE",
        "--github-oidc",
    ):
        assert name in result.stderr


def test_the_option_takes_precedence_over_the_variable(run: Callable[..., Result], tmp_path: Path) -> None:
    in_variable = run(RESOURCE, BRIDGE_CLIENT_SECRET="", BRIDGE_TOKEN_FILE="/none/a")
    assert "BRIDGE_TOKEN_FILE: the token file /none/a cannot be read" in in_variable.stderr
    both = run(RESOURCE, "--token-file", "/none/b", BRIDGE_CLIENT_SECRET="", BRIDGE_TOKEN_FILE="/none/a")
    assert "--token-file: the token file /none/b cannot be read" in both.stderr


@pytest.mark.parametrize("command", ["token", "bridge"])
def test_the_help_names_every_source_of_credentials(command: str) -> None:
    text = " ".join(CliRunner().invoke(main, [command, "--help"]).stdout.split())
    for field in BridgeSettings.model_fields:
        assert f" BRIDGE_{field.upper()} " in text
    for option in ("--credentials FILE", "--token-file FILE", "--github-oidc"):
        assert option in text


def test_an_env_file_is_refused(run: Callable[..., Result]) -> None:
    result = CliRunner().invoke(main, ["--env-file", __file__, "token", RESOURCE])
    assert result.exit_code == 2
    assert "`token` does not read --env-file" in result.stderr
