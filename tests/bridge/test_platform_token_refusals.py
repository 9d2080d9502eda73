"""What the bridge says when the authorization server refuses a platform token."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.fake_servers import ISSUER, RESOURCE, TOKEN_ENDPOINT, FakeServers
from support.platform_files import NOW, UNREADABLE, WORKLOAD, from_file, jwt, request_token

from gatehouse.bridge.credentials import Credentials
from gatehouse.bridge.errors import BridgeError

EXPIRY = "2027-01-15T08:10:00Z"

pytestmark = pytest.mark.anyio


async def refusal(read: Callable[[], Credentials], code: str = "invalid_client", **response: Any) -> str:
    """Return the message of a refused token request, after one that succeeds."""
    servers = FakeServers()
    await request_token(servers, read)
    servers.respond(TOKEN_ENDPOINT, httpx2.Response(401, json={"error": code, "request_id": "req_9", **response}))
    with pytest.raises(BridgeError) as caught:
        await request_token(servers, read)
    text = str(caught.value)
    assert "eyJ" not in text
    assert "not-to-be-shown" not in text
    return text


@pytest.mark.threat("T-120")
async def test_a_refused_platform_token_is_described_and_not_repeated(token_file: Callable[[Any], Path]) -> None:
    path = token_file(jwt())
    text = await refusal(lambda: from_file(path))
    described = f"(iss https://cluster.example, sub system:serviceaccount:prod:agent, aud {ISSUER}, exp {EXPIRY})"
    assert f"{ISSUER} refused the platform token from {path} {described}: invalid_client. Its audience is right" in text
    assert "by the clock of this machine it is valid for 600 s more" in text
    for cause in ("no trust rule matches it", "rules of two clients", "its key is unknown", "used before", "disabled"):
        assert cause in text
    assert f"run `authserver audit --request req_9`, or `authserver token inspect < {path}`" in text
    assert "client_id" not in text


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"aud": None}, f"It has no aud. Request a token for the audience {ISSUER}"),
        ({"aud": []}, "It has no aud."),
        ({"aud": [ISSUER, "https://other.example"]}, f"for several audiences, and must be for {ISSUER} alone"),
        ({"aud": f"{ISSUER}/"}, f"differs from the issuer by a slash at the end. Request a token for exactly {ISSUER}"),
        ({"aud": "https://other.example"}, f"Its aud is not {ISSUER}. Unless the admin told you another audience"),
        ({"aud": [[ISSUER]]}, f"Its aud is not {ISSUER}."),
        ({"exp": NOW - 90}, "It expired 90 s ago by the clock of this machine. Request a new one"),
        ({"exp": NOW}, "It expired 0 s ago"),
        ({"exp": NOW + 3631}, "It is valid for 3631 s more, and a server accepts at most 3600 s"),
        ({"iat": NOW + 31}, "Its iat is in the future by the clock of this machine. Compare this clock with"),
        ({"nbf": NOW + 31}, "Its nbf is in the future by the clock of this machine."),
        ({"iss": ISSUER, "aud": RESOURCE}, f"It is a token of {ISSUER} itself. Use the token that the platform"),
        ({"exp": None}, "It does not say in exp when it expires"),
        ({"exp": "tomorrow"}, "It does not say in exp when it expires"),
        ({"exp": 1e300}, "It does not say in exp when it expires"),
    ],
    ids=str,
)
async def test_a_problem_that_the_platform_token_shows_is_named(
    token_file: Callable[[Any], Path], changed: dict[str, Any], problem: str
) -> None:
    faultless = token_file(jwt({**WORKLOAD, "exp": NOW + 3630, "iat": NOW + 30, "nbf": NOW + 30}))
    assert "Its audience is right" in await refusal(lambda: from_file(faultless))
    path = token_file(jwt({**WORKLOAD, **changed}))
    text = await refusal(lambda: from_file(path))
    assert problem in text
    assert "If that is not the reason, ask the admin to run `authserver audit --request req_9`" in text
    assert "Its audience is right" not in text
    assert "no trust rule" not in text


async def test_every_problem_of_a_platform_token_is_named(token_file: Callable[[Any], Path]) -> None:
    path = token_file(jwt({**WORKLOAD, "aud": f"{ISSUER}/", "exp": NOW - 1}))
    text = await refusal(lambda: from_file(path))
    assert "slash at the end" in text
    assert "It expired 1 s ago" in text


async def test_a_client_id_that_was_sent_is_named(token_file: Callable[[Any], Path]) -> None:
    path = token_file(jwt())
    text = await refusal(lambda: from_file(path, client_id="agent_1"))
    assert "It was sent with the client_id agent_1 of BRIDGE_CLIENT_ID, which must be the client of the token." in text


@pytest.mark.threat("T-120")
@pytest.mark.parametrize(
    ("claims", "described"),
    [
        ({"iss": "a\x1b[2J", "sub": "x" * 200, "aud": ["b", "c"]}, r"a\x1b[2J, sub " + "x" * 100 + ", aud b and c, "),
        (
            {"iss": "", "sub": "my agent", "aud": {"not-to-be-shown": 1}, "exp": -1},
            '(iss "", sub "my agent", aud invalid, exp ',
        ),
        ({"sub": [[1]]}, "(iss missing, sub invalid, aud missing, exp missing)"),
        ({}, "(iss missing, sub missing, aud missing, exp missing)"),
        ([], "token: invalid_client. Its claims cannot be read"),
        (UNREADABLE, "token: invalid_client. Its claims cannot be read"),
    ],
    ids=["hostile", "odd", "nested", "empty", "not-an-object", "unreadable"],
)
async def test_a_described_platform_token_is_printable(
    token_file: Callable[[Any], Path], claims: Any, described: str
) -> None:
    """CWE-150."""
    path = token_file(jwt(claims) if claims != UNREADABLE else UNREADABLE)
    text = await refusal(lambda: from_file(path))
    assert described in text
    assert text.isprintable()


@pytest.mark.parametrize(
    ("request_id", "command"),
    [
        ("req_9", "`authserver audit --request req_9`"),
        ("x; rm -rf", "`authserver audit --action token.issue`"),
        (None, "`authserver audit --action token.issue`"),
    ],
)
@pytest.mark.parametrize("code", ["invalid_client", "invalid_scope", "invalid_request"])
async def test_the_admin_gets_the_command_that_shows_the_reason(
    token_file: Callable[[Any], Path], code: str, request_id: str | None, command: str
) -> None:
    path = token_file(jwt())
    text = await refusal(lambda: from_file(path), code, request_id=request_id)
    assert command in text
    assert "rm -rf" not in text


async def test_an_unknown_client_id_is_not_named(token_file: Callable[[Any], Path]) -> None:
    path = token_file(jwt())
    text = await refusal(lambda: from_file(path), "invalid_scope")
    assert (
        f"client grant add CLIENT_ID --resource {RESOURCE} --scope SCOPE`. `authserver audit --request req_9`" in text
    )


async def test_a_file_name_is_quoted_in_the_admins_command(tmp_path: Path) -> None:
    """CWE-78."""
    path = tmp_path / "$(id)"
    path.write_text(jwt())
    assert f"`authserver token inspect < '{path}'`" in await refusal(lambda: from_file(path))
