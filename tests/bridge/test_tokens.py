"""Where a bridge gets its tokens, when it gets new ones, and where its credentials never go."""

import ssl
from typing import Any

import anyio
import httpx2
import pytest
from support.token_world import ISSUER, RESOURCE, SECRET, World, oauth_error

from gatehouse.bridge.credentials import InvalidCredentials
from gatehouse.bridge.failures import Failure
from gatehouse.bridge.serving import create_http
from gatehouse.bridge.tokens import TokenSource

pytestmark = pytest.mark.anyio

TOKEN_ENDPOINT = f"{ISSUER}/token"
PRM = "https://mcp.example.com/.well-known/oauth-protected-resource/mcp"
METADATA = f"{ISSUER}/.well-known/oauth-authorization-server"


async def call(world: World, issuer: str | None = ISSUER) -> httpx2.Response:
    async with world.client(issuer) as http:
        return await http.post(RESOURCE, json={})


async def failure_of(world: World, issuer: str | None = ISSUER) -> Failure:
    with pytest.raises(Failure) as caught:
        await call(world, issuer)
    assert SECRET not in str(caught.value)
    return caught.value


async def test_a_token_is_asked_for_one_resource_and_for_all_that_was_granted() -> None:
    world = World()
    assert (await call(world)).status_code == 200
    (request,) = world.requests_to(TOKEN_ENDPOINT)
    assert request.form == {"grant_type": "client_credentials", "resource": RESOURCE}
    assert request.authorization is not None
    assert request.authorization.startswith("Basic ")
    assert [seen.authorization for seen in world.requests_to(RESOURCE)] == ["Bearer token-1"]


@pytest.mark.threat("T-116")
async def test_a_named_issuer_is_not_looked_up_at_the_resource() -> None:
    world = World(prm={"resource": RESOURCE, "authorization_servers": ["https://evil.example"]})
    assert (await call(world)).status_code == 200
    assert world.requests_to(PRM) == []
    assert world.credentials_went_to() == {TOKEN_ENDPOINT}


@pytest.mark.threat("T-116")
@pytest.mark.parametrize(
    "named",
    [
        "https://evil.example",
        "https://mcp.example.com.evil.example",
        "https://mcp.example.com:8443",
        "http://mcp.example.com",
        "https://mcp.example.com@evil.example",
        "http://127.0.0.1:9000",
        "",
    ],
)
async def test_a_resource_does_not_choose_where_credentials_go(named: str) -> None:
    """MCP 2026-07-28, authorization server binding; the mix-up of RFC 9207 1 and RFC 9728 7.6."""
    own = "https://mcp.example.com"
    world = World(metadata={"issuer": own, "token_endpoint": f"{own}/token"})
    world.prm["authorization_servers"] = [own]
    assert (await call(world, issuer=None)).status_code == 200
    hostile = World(metadata={"issuer": named, "token_endpoint": f"{named}/token"})
    hostile.prm["authorization_servers"] = [named]
    failure = await failure_of(hostile, issuer=None)
    assert "No credential was sent" in str(failure)
    assert hostile.credentials_went_to() == set()
    assert [seen.url for seen in hostile.seen] == [PRM]


async def test_on_one_machine_a_resource_may_name_the_issuer() -> None:
    """Both are chosen by whoever runs the machine."""
    world = World(
        prm={"resource": "http://127.0.0.1:8000/mcp", "authorization_servers": ["http://localhost:9000"]},
        metadata={"issuer": "http://localhost:9000", "token_endpoint": "http://localhost:9000/token"},
    )
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(world.serve))
    tokens = TokenSource(http, "http://127.0.0.1:8000/mcp", None, world.tokens()._credentials)
    assert (await tokens.current()).issuer == "http://localhost:9000"


@pytest.mark.threat("T-117")
@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "https://other.example.com", "token_endpoint": TOKEN_ENDPOINT},
        {"issuer": f"{ISSUER}/", "token_endpoint": TOKEN_ENDPOINT},
        {"token_endpoint": TOKEN_ENDPOINT},
        {"issuer": ISSUER, "token_endpoint": "http://as.example.com/token"},
        {"issuer": ISSUER, "token_endpoint": ["https://as.example.com/token"]},
        {"issuer": ISSUER},
    ],
)
async def test_metadata_of_another_issuer_or_without_https_gets_no_credential(metadata: dict[str, Any]) -> None:
    """RFC 8414 3.3 and 6.2."""
    assert (await call(World())).status_code == 200
    world = World(metadata=metadata)
    assert "No credential was sent" in str(await failure_of(world))
    assert world.credentials_went_to() == set()


@pytest.mark.threat("T-117")
async def test_a_redirect_is_not_followed_with_credentials() -> None:
    world = World()
    world.refuse(TOKEN_ENDPOINT, httpx2.Response(307, headers={"Location": "https://evil.example/token"}))
    await failure_of(world)
    assert world.credentials_went_to() == {TOKEN_ENDPOINT}


async def test_a_resource_that_is_registered_under_another_url_is_named() -> None:
    world = World(prm={"resource": "https://mcp.example.com/other", "authorization_servers": [ISSUER]})
    assert "registered under another URL" in str(await failure_of(world, issuer=None))
    assert world.credentials_went_to() == set()


async def test_metadata_of_an_issuer_with_a_path_stands_behind_the_well_known_one() -> None:
    """RFC 8414 3.1."""
    issuer = f"{ISSUER}/tenant"
    world = World(metadata={"issuer": issuer, "token_endpoint": f"{issuer}/token"})
    assert (await call(world, issuer)).status_code == 200
    assert world.seen[0].url == f"{METADATA}/tenant"


async def test_one_token_serves_many_requests_and_is_renewed_before_it_expires() -> None:
    world = World(lifetime=300)
    async with world.client() as http:
        for _ in range(3):
            await http.post(RESOURCE)
        world.clock.advance(269)
        await http.post(RESOURCE)
        assert world.issued == 1
        world.clock.advance(1)
        await http.post(RESOURCE)
    assert world.issued == 2
    assert all(seen.authorization for seen in world.requests_to(RESOURCE))
    assert len(world.requests_to(METADATA)) == 1


async def test_requests_at_once_share_one_new_token() -> None:
    world = World()
    async with world.client() as http:
        await http.post(RESOURCE)
        world.issued += 1  # The resource accepts only another token now.
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(http.post, RESOURCE)
    assert len(world.requests_to(TOKEN_ENDPOINT)) == 2


async def test_a_refused_token_is_replaced_once() -> None:
    world = World()
    async with world.client() as http:
        await http.post(RESOURCE)
        world.refuse(RESOURCE, httpx2.Response(401))
        assert (await http.post(RESOURCE)).status_code == 200
        world.refuse(RESOURCE, httpx2.Response(401), httpx2.Response(401))
        with pytest.raises(Failure, match=r"refuses the token that https://as\.example\.com has just issued"):
            await http.post(RESOURCE)
    assert world.issued == 3


@pytest.mark.threat("T-129")
async def test_an_old_token_does_as_long_as_it_lives_while_the_issuer_is_away() -> None:
    world = World(lifetime=300)
    async with world.client() as http:
        await http.post(RESOURCE)
        world.clock.advance(280)
        away = httpx2.ConnectError("refused")
        world.refuse(TOKEN_ENDPOINT, away, away)
        assert (await http.post(RESOURCE)).status_code == 200
        world.clock.advance(20)
        with pytest.raises(Failure, match="does not answer"):
            await http.post(RESOURCE)
        assert (await http.post(RESOURCE)).status_code == 200
    assert world.issued == 2


async def test_a_token_without_a_stated_life_is_kept_until_it_is_refused() -> None:
    world = World(lifetime=None)
    async with world.client() as http:
        await http.post(RESOURCE)
        world.clock.advance(10**6)
        assert (await http.post(RESOURCE)).status_code == 200
    assert world.issued == 1


async def test_a_grant_that_was_added_meanwhile_is_found_and_the_request_repeated() -> None:
    world = World(granted="env:read", needed="env:write")
    async with world.client() as http:
        with pytest.raises(Failure, match="lacks the scope env:write"):
            await http.post(RESOURCE)
        world.granted = "env:read env:write"
        assert (await http.post(RESOURCE)).status_code == 200


async def test_a_refusal_names_the_scope_the_command_and_the_request() -> None:
    world = World(needed="env:write")
    text = str(await failure_of(world))
    command = f"authserver client grant add agent_1 --resource {RESOURCE} --scope env:write"
    assert text == (
        f"This client lacks the scope env:write. Ask the admin to run `{command}`, then repeat the call."
        " (Request req_1.)"
    )
    assert len(world.requests_to(RESOURCE)) == 1


@pytest.mark.threat("T-123")
async def test_a_resource_does_not_choose_what_an_admin_pastes() -> None:
    """CWE-78: the scope in a challenge is the server's own text."""
    quoted = str(await failure_of(World(needed="$(id)")))
    assert "--scope '$(id)'" in quoted
    assert "authserver" not in str(await failure_of(World(needed="a  b")))
    forged = World(needed="env:write")
    challenge = 'Bearer error="insufficient_scope", scope="env:write"'
    forged.refuse(RESOURCE, httpx2.Response(403, headers={"WWW-Authenticate": challenge, "X-Request-Id": "x; rm -rf"}))
    assert "rm -rf" not in str(await failure_of(forged))


@pytest.mark.parametrize(
    ("answer", "words", "temporary"),
    [
        (oauth_error(401, "invalid_client"), "does not accept the client agent_1 with the credential from", False),
        (oauth_error(401, "invalid_client"), "run `authserver audit --client agent_1`. (Request req_9.)", False),
        (oauth_error(400, "invalid_scope"), "may have nothing at https://mcp.example.com/mcp", False),
        (oauth_error(400, "invalid_target"), "The URL must be the one that the server is registered with", False),
        (oauth_error(400, "unsupported_grant_type"), "refuses a token (unsupported_grant_type)", False),
        (httpx2.Response(404, text="<html>"), "answers status 404 to a token request", False),
        (httpx2.Response(500, text="<html>"), "answers status 500", True),
        (httpx2.Response(503), "asks to come back later", True),
        (httpx2.Response(429), "asks to come back later", True),
        (httpx2.Response(200, json={"access_token": "x", "token_type": "DPoP"}), "without a bearer token", False),
        (httpx2.Response(200, json=[]), "without a bearer token", False),
        (httpx2.Response(200, content=b"{" * 70_000), "without a bearer token", False),
        (httpx2.ConnectError("refused"), "does not answer (ConnectError)", True),
        (httpx2.ReadTimeout("slow"), "does not answer (ReadTimeout)", True),
    ],
)
async def test_a_refused_token_request_is_told_in_words(
    answer: httpx2.Response | Exception, words: str, temporary: bool
) -> None:
    world = World()
    world.refuse(TOKEN_ENDPOINT, answer)
    failure = await failure_of(world)
    assert words in str(failure)
    assert failure.temporary is temporary
    assert not failure.outcome_unknown
    assert world.requests_to(RESOURCE) == []
    assert (await call(world)).status_code == 200


@pytest.mark.parametrize(
    ("answer", "words", "temporary", "unknown"),
    [
        (httpx2.Response(404, text="<html>"), "There is no MCP server at https://mcp.example.com/mcp", False, False),
        (httpx2.Response(403, text="<html>"), "There is no MCP server at https://mcp.example.com/mcp", False, False),
        (httpx2.Response(503), "asks to come back later (status 503). Nothing was carried out", True, False),
        (httpx2.Response(429), "asks to come back later (status 429)", True, False),
        (httpx2.Response(502), "Whether the request was carried out is not known", False, True),
        (httpx2.Response(500, json={}), "Whether the request was carried out is not known", False, True),
    ],
)
async def test_a_refusal_by_http_is_told_in_words(
    answer: httpx2.Response, words: str, temporary: bool, unknown: bool
) -> None:
    world = World()
    world.refuse(RESOURCE, answer)
    failure = await failure_of(world)
    assert words in str(failure)
    assert (failure.temporary, failure.outcome_unknown) == (temporary, unknown)


async def test_a_certificate_that_is_not_trusted_is_named_with_its_remediation() -> None:
    world = World()
    error = httpx2.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED]")
    error.__cause__ = ssl.SSLCertVerificationError(1, "x")
    error.__cause__.verify_message = "self-signed certificate"
    world.refuse(METADATA, error)
    failure = await failure_of(world)
    assert "cannot prove who it is: self-signed certificate. Nothing was sent." in str(failure)
    assert "SSL_CERT_FILE" in str(failure)
    assert not failure.temporary


async def test_credentials_are_read_anew_for_each_token() -> None:
    world, read = World(), 0

    def credentials() -> Any:
        nonlocal read
        read += 1
        if read == 2:
            raise InvalidCredentials("The credentials file x is open to others. Run: chmod 600 x")
        return world.tokens()._credentials()

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(world.serve))
    tokens = TokenSource(http, RESOURCE, ISSUER, credentials, world.clock)
    first = await tokens.current()
    with pytest.raises(Failure, match="Run: chmod 600 x"):
        await tokens.replace(first)
    assert (await tokens.replace(first)).value == "token-2"


@pytest.mark.threat("T-118")
async def test_a_token_never_leaves_the_machine_by_a_proxy_in_plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://proxy.example.com:3128")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    async with create_http() as http:
        plain, over_tls = (
            http._transport_for_url(httpx2.URL(f"{scheme}://127.0.0.1/")) for scheme in ("http", "https")
        )
        assert "Proxy" not in type(plain._pool).__name__
        assert "Proxy" in type(over_tls._pool).__name__


@pytest.mark.threat("T-120")
async def test_neither_a_token_nor_a_secret_is_shown_by_what_may_be_logged() -> None:
    world = World()
    token = await world.tokens().current()
    assert token.value not in repr(token)
    assert SECRET not in repr(world.tokens()._credentials())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"authorization_servers": []}, "names no authorization server. Name it: --issuer URL"),
        ({"authorization_servers": [7]}, "names no authorization server"),
        ({"authorization_servers": ISSUER}, "names no authorization server"),
        ({"resource": None}, "registered under another URL"),
        ({"resource": "note://one"}, "registered under another URL"),
    ],
)
async def test_a_resource_without_usable_metadata_is_named(changes: dict[str, Any], words: str) -> None:
    world = World()
    world.prm.update(changes)
    assert words in str(await failure_of(world, issuer=None))
    assert world.credentials_went_to() == set()


async def test_metadata_of_a_resource_may_stand_at_the_root() -> None:
    """RFC 9728 3.1, and MCP 2026-07-28, "Protected Resource Metadata Discovery Requirements"."""
    own = "https://mcp.example.com"
    world = World(metadata={"issuer": own, "token_endpoint": f"{own}/token"})
    world.prm["authorization_servers"] = [own]
    world.refuse(PRM, httpx2.Response(404))
    assert (await call(world, issuer=None)).status_code == 200
    assert world.seen[1].url == PRM.removesuffix("/mcp")


@pytest.mark.parametrize(
    ("answer", "temporary"),
    [
        (httpx2.Response(404), False),
        (httpx2.Response(500), True),
        (httpx2.Response(200, text="<html>"), False),
        (httpx2.Response(200, headers={"Content-Encoding": "gzip"}, content=b""), False),
    ],
)
async def test_an_issuer_without_metadata_is_told_in_words(answer: httpx2.Response, temporary: bool) -> None:
    world = World()
    world.refuse(METADATA, answer)
    failure = await failure_of(world)
    assert f"The authorization server has no metadata at {METADATA}" in str(failure)
    assert failure.temporary is temporary


async def test_a_missing_scope_is_named_though_the_issuer_is_away() -> None:
    world = World(needed="env:write")
    async with world.client() as http:
        with pytest.raises(Failure, match="lacks the scope env:write"):
            await http.post(RESOURCE)
        world.refuse(TOKEN_ENDPOINT, httpx2.ConnectError("refused"))
        with pytest.raises(Failure, match="lacks the scope env:write"):
            await http.post(RESOURCE)
