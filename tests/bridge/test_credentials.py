"""The bridge's credentials, and the arguments of `resourceserver bridge`."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from gatehouse.bridge.credentials import Credentials, InvalidCredentials, read_credentials
from gatehouse.bridge.settings import BridgeSettings
from gatehouse.resourceserver.cli import main
from gatehouse.shared.protocol.jws import SigningKey, read_header, verify
from gatehouse.shared.protocol.key_sets import verification_keys

SECRET = "gths_0123456789abcdefghij"
REGISTERED = {
    "client_id": "agent_1",
    "client_secret": SECRET,
    "token_endpoint_auth_method": "client_secret_basic",
    "grants": [],
}

NO_HTTP = httpx2.AsyncClient()
"""These credentials need no request."""

pytestmark = pytest.mark.anyio


def settings(**members: Any) -> BridgeSettings:
    return BridgeSettings(**members)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[Any], Path]:
    """Write a file with mode 0600."""

    def write(content: Any) -> Path:
        path = tmp_path / "client"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        path.chmod(0o600)
        return path

    return write


def pem(key: Any, passphrase: bytes | None = None) -> bytes:
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    document: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    return document


async def test_the_secret_is_read_from_the_environment() -> None:
    credentials = read_credentials(settings(client_id="agent 1", client_secret="a:b"), None)
    parameters, headers = await credentials.authenticate("https://as.example.com", NO_HTTP)
    assert parameters == {}
    # RFC 6749 2.3.1: agent%201:a%3Ab
    assert headers == {"Authorization": "Basic YWdlbnQlMjAxOmElM0Fi"}


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
async def test_the_secret_is_read_from_the_registration_output(file: Callable[[Any], Path], method: str) -> None:
    credentials = read_credentials(settings(), file({**REGISTERED, "token_endpoint_auth_method": method}))
    parameters, headers = await credentials.authenticate("https://as.example.com", NO_HTTP)
    assert bool(headers) == (method == "client_secret_basic")
    assert parameters == ({} if headers else {"client_id": "agent_1", "client_secret": SECRET})


@pytest.mark.threat("T-121")
@pytest.mark.parametrize("alg", ["ES256", "RS256", "EdDSA"])
@pytest.mark.parametrize("place", ["file", "environment"])
async def test_assertions_are_addressed_only_to_the_issuer(file: Callable[[Any], Path], alg: str, place: str) -> None:
    key = SigningKey.generate(alg)
    in_environment = {"private_key": key.private_pem().decode()} if place == "environment" else {}
    in_file = file(key.private_pem()) if place == "file" else None
    credentials = read_credentials(settings(client_id="agent_1", **in_environment), in_file)
    parameters, headers = await credentials.authenticate("https://as.example.com", NO_HTTP)
    assert headers == {}
    assert set(parameters) == {"client_assertion", "client_assertion_type"}
    [verifier] = verification_keys({**key.public_jwk(), "alg": alg})
    assertion = parameters["client_assertion"]
    claims = verify(assertion, read_header(assertion), verifier)
    assert (claims["iss"], claims["sub"], claims["aud"]) == ("agent_1", "agent_1", "https://as.example.com")
    # The authorization server may know the key by any name.
    assert read_header(assertion).kid is None
    again, _ = await credentials.authenticate("https://as.example.com", NO_HTTP)
    assert again["client_assertion"] != assertion
    assert 0 < claims["exp"] - claims["iat"] <= 60


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\r\n"])
async def test_marks_that_editors_add_do_not_matter(file: Callable[[Any], Path], mark: bytes) -> None:
    path = file(REGISTERED)
    path.write_bytes(mark + path.read_bytes() + b"\r\n")
    assert read_credentials(settings(), path).secret == SECRET


async def test_a_private_key_on_one_line_is_read() -> None:
    """A variable often holds the two characters backslash and n for the end of a line."""
    key = pem(ec.generate_private_key(ec.SECP256R1())).decode()
    found = read_credentials(settings(client_id="agent_1", private_key=key.replace("\n", "\\n")), None)
    assert (found.algorithm, found.private_key.strip()) == ("ES256", key.strip())


async def test_a_line_break_after_the_secret_does_not_matter() -> None:
    assert read_credentials(settings(client_id="agent_1", client_secret=f"{SECRET}\n"), None).secret == SECRET


@pytest.mark.threat("T-119")
@pytest.mark.parametrize("mode", [0o604, 0o660, 0o602, 0o610, 0o666])
async def test_a_credentials_file_accessible_to_others_is_rejected(file: Callable[[Any], Path], mode: int) -> None:
    path = file(REGISTERED)
    assert read_credentials(settings(), path).client_id == "agent_1"
    path.chmod(mode)
    with pytest.raises(InvalidCredentials, match=f"Run: chmod 600 {path}"):
        read_credentials(settings(), path)


@pytest.mark.threat("T-119")
async def test_a_symlink_to_a_credentials_file_is_rejected(file: Callable[[Any], Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    link = tmp_path / "other" / "link"
    link.symlink_to(file(REGISTERED))
    with pytest.raises(InvalidCredentials, match="is a link out of its folder"):
        read_credentials(settings(), link)


async def test_a_missing_or_special_credentials_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InvalidCredentials, match="There is no credentials file"):
        read_credentials(settings(), tmp_path / "none")
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InvalidCredentials, match="not a regular file that you own"):
            read_credentials(settings(), path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "neither a private key in PEM nor JSON"),
        (b"gths_0123456789abcdefghij", "neither a private key in PEM nor JSON"),
        (b"a.b.c", "A platform token is given with --token-file "),
        ([], "neither a private key in PEM nor JSON"),
        ({"client_secret": SECRET}, "neither a private key in PEM nor JSON"),
        (b'{"client_id":"a","client_id":"b","client_secret":"c"}', "neither a private key in PEM nor JSON"),
        ({"client_id": "agent_1", "private_key_file": "a.pem"}, "the file that private_key_file names"),
        ({"client_id": "agent_1", "token_endpoint_auth_method": "workload_identity"}, "Set --token-file to the token"),
        ({**REGISTERED, "token_endpoint_auth_method": "none"}, "must be client_secret_basic or client_secret_post"),
        (b"x" * (16 * 1024 + 1), "larger than 16 KiB"),
    ],
)
async def test_invalid_credentials_file_contents_are_rejected(
    file: Callable[[Any], Path], content: Any, problem: str
) -> None:
    with pytest.raises(InvalidCredentials, match=problem) as caught:
        read_credentials(settings(), file(content))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (pem(ec.generate_private_key(ec.SECP384R1())), "not a P-256, RSA or Ed25519 key"),
        (pem(ed25519.Ed25519PrivateKey.generate(), b"passphrase"), "not a private key in PEM, or has a passphrase"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "not a private key in PEM"),
    ],
)
async def test_an_unsupported_private_key_is_rejected(
    file: Callable[[Any], Path], document: bytes, problem: str
) -> None:
    usable = pem(rsa.generate_private_key(65537, 2048))
    assert read_credentials(settings(client_id="agent_1"), file(usable)).algorithm == "RS256"
    with pytest.raises(InvalidCredentials, match=problem):
        read_credentials(settings(client_id="agent_1"), file(document))


async def test_incomplete_or_conflicting_credentials_are_rejected(file: Callable[[Any], Path]) -> None:
    with pytest.raises(InvalidCredentials, match="set BRIDGE_CLIENT_ID"):
        read_credentials(settings(), file(SigningKey.generate("ES256").private_pem()))
    with pytest.raises(InvalidCredentials, match=r"BRIDGE_CLIENT_ID is agent_2, but .* is of the client agent_1"):
        read_credentials(settings(client_id="agent_2"), file(REGISTERED))
    with pytest.raises(InvalidCredentials, match="BRIDGE_PRIVATE_KEY is a private key: set BRIDGE_CLIENT_ID"):
        read_credentials(settings(private_key=SigningKey.generate("ES256").private_pem().decode()), None)


FROM_ENVIRONMENT = "(from the environment)"


@pytest.mark.parametrize(
    ("in_environment", "options", "conflict", "remedy"),
    [
        (
            {"client_secret": SECRET},
            ("file",),
            f"--credentials and BRIDGE_CLIENT_SECRET {FROM_ENVIRONMENT}",
            "To use --credentials, run: unset BRIDGE_CLIENT_SECRET BRIDGE_CLIENT_SECRET_FILE",
        ),
        (
            {"token_file": Path("/none/a")},
            ("file",),
            f"--credentials and BRIDGE_TOKEN_FILE {FROM_ENVIRONMENT}",
            "To use --credentials, run: unset BRIDGE_TOKEN_FILE",
        ),
        (
            {"private_key": "k"},
            ("github",),
            f"--github-oidc and BRIDGE_PRIVATE_KEY {FROM_ENVIRONMENT}",
            "To use --github-oidc, run: unset BRIDGE_PRIVATE_KEY BRIDGE_PRIVATE_KEY_FILE",
        ),
        (
            {"client_secret": SECRET, "private_key": "k"},
            (),
            f"BRIDGE_CLIENT_SECRET {FROM_ENVIRONMENT} and BRIDGE_PRIVATE_KEY {FROM_ENVIRONMENT}",
            "Use one of them.",
        ),
        ({}, ("file", "token_file"), "--credentials and --token-file", "Use one of them."),
        ({}, ("token_file", "github"), "--token-file and --github-oidc", "Use one of them."),
        (
            {"client_secret": SECRET},
            ("token_file", "github"),
            f"--token-file and --github-oidc and BRIDGE_CLIENT_SECRET {FROM_ENVIRONMENT}",
            "Use one of them.",
        ),
    ],
    ids=str,
)
async def test_conflicting_credentials_are_named_with_where_they_come_from(
    file: Callable[[Any], Path], in_environment: dict[str, Any], options: tuple[str, ...], conflict: str, remedy: str
) -> None:
    given = {"file": file(REGISTERED), "token_file": Path("/none/b"), "github": True}
    chosen: dict[str, Any] = {name: given[name] for name in options}
    with pytest.raises(InvalidCredentials) as caught:
        read_credentials(settings(client_id="agent_1", **in_environment), chosen.pop("file", None), **chosen)
    assert str(caught.value) == f"Several credentials are given: {conflict}. {remedy}"


def test_the_digest_differs_for_every_client_and_credential() -> None:
    credentials = [
        Credentials("agent_1", "a", "client_secret_basic", secret=SECRET),
        Credentials("agent_2", "a", "client_secret_basic", secret=SECRET),
        Credentials("agent_1", "a", "client_secret_post", secret=SECRET),
        Credentials("agent_1", "a", "client_secret_basic", secret=f"{SECRET}x"),
        Credentials("agent_1", "a", "private_key_jwt", private_key=SECRET),
    ]
    assert len({each.digest() for each in credentials}) == len(credentials)
    assert credentials[0].digest() == replace(credentials[0], source="b").digest()


@pytest.mark.threat("T-120")
async def test_the_repr_of_credentials_contains_no_secret(file: Callable[[Any], Path]) -> None:
    key = SigningKey.generate("ES256").private_pem()
    with_key = repr(read_credentials(settings(client_id="agent_1"), file(key)))
    assert "BEGIN" not in with_key + repr(settings(private_key=key.decode()))
    assert SECRET not in repr(read_credentials(settings(), file(REGISTERED))) + repr(settings(client_secret=SECRET))


def run(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(main, ["bridge", *arguments], env=env)


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"BRIDGE_CLIENT_ID": "agent_1"},
        {"BRIDGE_CLIENT_ID": "a", "BRIDGE_CLIENT_SECRET": ""},
    ],
    ids=str,
)
async def test_without_credentials_the_bridge_refuses_to_start(env: dict[str, str]) -> None:
    result = run("http://127.0.0.1:1/mcp", **env)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "Set BRIDGE_CLIENT_ID and either BRIDGE_CLIENT_SECRET or BRIDGE_PRIVATE_KEY" in result.stderr
    assert SECRET not in result.stderr


async def test_a_secret_without_a_client_id_is_refused() -> None:
    result = run("http://127.0.0.1:1/mcp", BRIDGE_CLIENT_SECRET=SECRET)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "BRIDGE_CLIENT_SECRET is set: set BRIDGE_CLIENT_ID to the client that it belongs to." in result.stderr
    assert SECRET not in result.stderr


async def test_an_unknown_bridge_variable_prevents_the_start() -> None:
    result = run("http://127.0.0.1:1/mcp", BRIDGE_CLIENT_ID="agent_1", BRIDGE_SECRET=SECRET)
    assert result.exit_code == 1
    assert "BRIDGE_SECRET: there is no such setting" in result.stderr


@pytest.mark.threat("T-118")
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("http://mcp.example.com/mcp",), "plain http is for loopback addresses only"),
        (("https://user:pw@mcp.example.com/mcp",), "no user information"),
        (("https://mcp.example.com/mcp?token=x",), "without query or fragment"),
        (("mcp.example.com",), "absolute https URI"),
        (("https://mcp.example.com/mcp", "--issuer", "http://as.example.com"), "plain http is for loopback"),
        (("https://mcp.example.com/mcp", "--issuer", "as.example.com"), "must be https"),
        ((), "Missing argument"),
    ],
)
async def test_an_insecure_or_invalid_url_is_a_usage_error(arguments: tuple[str, ...], problem: str) -> None:
    result = run(*arguments, BRIDGE_CLIENT_ID="agent_1", BRIDGE_CLIENT_SECRET=SECRET)
    assert result.exit_code == 2
    assert problem in " ".join(result.stderr.split())


@pytest.mark.threat("T-119")
async def test_a_secret_is_not_accepted_as_an_argument() -> None:
    """Other users of the machine can read a process's arguments."""
    assert run("http://127.0.0.1:1/mcp", "--client-secret", SECRET).exit_code == 2
    env_file = CliRunner().invoke(main, ["--env-file", __file__, "bridge", "http://127.0.0.1:1/mcp"])
    assert env_file.exit_code == 2
    assert "does not read --env-file" in env_file.stderr
