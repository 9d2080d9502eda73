"""Token requests with the token that a platform issued to its workload: from a file, or from GitHub Actions."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.fake_servers import ISSUER, RESOURCE, TOKEN_ENDPOINT, FakeServers, oauth_error
from support.platform_files import UNREADABLE, WORKLOAD, from_file, jwt, request_token

from gatehouse.bridge.credentials import InvalidCredentials, read_credentials
from gatehouse.bridge.errors import BridgeError
from gatehouse.bridge.settings import BridgeSettings
from gatehouse.bridge.tokens import TokenSource

JOB_URL = "https://run.actions.example/197//idtoken/1?api-version=2.0"
JOB_TOKEN = "actions-request-token-0123456789"

pytestmark = pytest.mark.anyio


async def test_the_token_in_a_file_authenticates_the_client(token_file: Callable[[Any], Path]) -> None:
    servers, path = FakeServers(), token_file(f"{jwt()}\n")
    await request_token(servers, lambda: from_file(path))
    (request,) = servers.requests_to(TOKEN_ENDPOINT)
    assert request.authorization is None
    assert request.form == {
        "grant_type": "client_credentials",
        "resource": RESOURCE,
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": jwt(),
    }


async def test_a_configured_client_id_is_sent_with_a_platform_token(token_file: Callable[[Any], Path]) -> None:
    servers, path = FakeServers(), token_file(jwt())
    await request_token(servers, lambda: from_file(path, client_id="agent_1"))
    assert servers.requests_to(TOKEN_ENDPOINT)[0].form["client_id"] == "agent_1"


@pytest.mark.threat("T-116")
@pytest.mark.parametrize("audience", [ISSUER, [ISSUER], ["https://mcp.example.com", ISSUER], 1, None])
async def test_a_token_for_another_server_is_not_sent_where_the_resource_says(
    token_file: Callable[[Any], Path], audience: Any
) -> None:
    """A hostile MCP server can name itself as the issuer. With the token, it would get access tokens of another one."""
    hostile = "https://mcp.example.com"
    servers = FakeServers(
        prm={"resource": RESOURCE, "authorization_servers": [hostile]},
        metadata={"issuer": hostile, "token_endpoint": f"{hostile}/token"},
    )
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(servers.serve))

    def source(aud: Any, issuer: str | None = None) -> TokenSource:
        path = token_file(jwt({**WORKLOAD, "aud": aud}))
        return TokenSource(http, RESOURCE, issuer, lambda: from_file(path), servers.clock)

    for own in (hostile, [hostile], f"{hostile}/", f"{hostile}/token"):
        await source(own).current()
    assert len(servers.requests_to(f"{hostile}/token")) == 4
    with pytest.raises(BridgeError, match=f"is not for the authorization server {hostile} alone.* It was not sent"):
        await source(audience).current()
    assert len(servers.requests_to(f"{hostile}/token")) == 4
    # The user can name a server that expects an audience of its own.
    await source(audience, hostile).current()
    assert len(servers.requests_to(f"{hostile}/token")) == 5


async def test_an_unreadable_token_is_not_sent_where_the_resource_says(token_file: Callable[[Any], Path]) -> None:
    servers, path = FakeServers(), token_file(UNREADABLE)
    servers.prm["authorization_servers"] = ["https://mcp.example.com"]
    servers.metadata.update(issuer="https://mcp.example.com")
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(servers.serve))
    with pytest.raises(BridgeError, match="It was not sent"):
        await TokenSource(http, RESOURCE, None, lambda: from_file(path), servers.clock).current()
    assert servers.requests_to(TOKEN_ENDPOINT) == []


async def test_a_file_that_kubelet_rotates_is_read_for_each_request(tmp_path: Path) -> None:
    """`token -> ..data/token`, `..data -> ..2026_11_28`: kubelet replaces the second link."""
    servers = FakeServers()
    for name in ("..first", "..second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "token").write_text(jwt({**WORKLOAD, "jti": name}))
    (tmp_path / "..data").symlink_to("..first")
    (tmp_path / "token").symlink_to("..data/token")
    source = await request_token(servers, lambda: from_file(tmp_path / "token"))
    (tmp_path / "..new").symlink_to("..second")
    (tmp_path / "..new").rename(tmp_path / "..data")
    await source.replace(await source.current())
    sent = [request.form["client_assertion"] for request in servers.requests_to(TOKEN_ENDPOINT)]
    assert sent == [jwt({**WORKLOAD, "jti": name}) for name in ("..first", "..second")]


@pytest.mark.parametrize(
    "content",
    [b"", b"secret", b"a.b", b"a.b.c.d", b"a b.c.d", b"a.b.\xc3\xa9", f"{jwt()} {jwt()}", b"a.b." + b"c" * 16 * 1024],
    ids=["nothing", "text", "two-parts", "four-parts", "space", "not-ascii", "two", "long"],
)
async def test_a_file_without_a_platform_token_is_refused(token_file: Callable[[Any], Path], content: Any) -> None:
    assert from_file(token_file(jwt())).secret == jwt()
    with pytest.raises(InvalidCredentials, match="holds no platform token") as caught:
        from_file(token_file(content))
    assert "secret" not in str(caught.value)
    assert "eyJ" not in str(caught.value)


async def test_a_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidCredentials, match="pipe cannot be read"):
        from_file(tmp_path / "pipe")
    with pytest.raises(InvalidCredentials, match=r"none cannot be read \(No such file or directory\)"):
        from_file(tmp_path / "none")
    with pytest.raises(InvalidCredentials, match="cannot be read"):
        from_file(tmp_path)


class Job:
    """A job of GitHub Actions that requests its tokens, numbered from 1, from a service without sockets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", JOB_URL)
        monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", JOB_TOKEN)
        self.servers = FakeServers()
        self.requests: list[httpx2.Request] = []
        self.response: httpx2.Response | Exception | None = None

    def token(self, number: int) -> str:
        return jwt({**WORKLOAD, "jti": str(number)})

    async def serve(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.host != "run.actions.example":
            return await self.servers.serve(request)
        self.requests.append(request)
        if isinstance(self.response, Exception):
            raise self.response
        return self.response or httpx2.Response(200, json={"count": 1, "value": self.token(len(self.requests))})

    def source(self, client_id: str | None = None) -> TokenSource:
        settings = BridgeSettings(client_id=client_id)
        http = httpx2.AsyncClient(transport=httpx2.MockTransport(self.serve))
        return TokenSource(http, RESOURCE, ISSUER, lambda: read_credentials(settings, None, github=True))


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(monkeypatch)


async def test_a_job_requests_a_new_platform_token_for_each_token_request(job: Job) -> None:
    source = job.source()
    await source.replace(await source.current())
    assert [str(request.url) for request in job.requests] == [f"{JOB_URL}&audience=https%3A%2F%2Fas.example.com"] * 2
    assert {request.headers["Authorization"] for request in job.requests} == {f"Bearer {JOB_TOKEN}"}
    sent = job.servers.requests_to(TOKEN_ENDPOINT)
    assert [request.form["client_assertion"] for request in sent] == [job.token(1), job.token(2)]
    assert JOB_TOKEN not in str(job.servers.seen)


async def test_a_job_can_name_its_client(job: Job) -> None:
    await job.source("agent_1").current()
    assert job.servers.requests_to(TOKEN_ENDPOINT)[0].form["client_id"] == "agent_1"


@pytest.mark.threat("T-120")
@pytest.mark.parametrize(
    ("response", "text", "temporary"),
    [
        (httpx2.Response(403, json={}), "issued no token (status 403). Give the job the permission", False),
        (httpx2.Response(500), "issued no token (status 500)", True),
        (httpx2.Response(302, headers={"Location": "https://evil.example"}), "issued no token (status 302)", False),
        (httpx2.Response(200, json={"value": 1}), "issued no token (status 200)", False),
        (httpx2.Response(200, json={"value": "a.b"}), "issued no token (status 200)", False),
        (httpx2.Response(200, json={"value": f"a.b.{'c' * 16 * 1024}"}), "issued no token (status 200)", False),
        (httpx2.Response(200, json=[]), "issued no token (status 200)", False),
        (httpx2.Response(200, content=b" " * 70_000), "issued no token (status 200)", False),
        (httpx2.Response(429), "asks to retry later (status 429)", True),
        (
            httpx2.ConnectError("refused"),
            "token service of GitHub Actions at https://run.actions.example does not",
            True,
        ),
    ],
)
async def test_a_job_without_a_platform_token_is_explained(
    job: Job, response: httpx2.Response | Exception, text: str, temporary: bool
) -> None:
    job.response = response
    with pytest.raises(BridgeError) as caught:
        await job.source().current()
    assert text in str(caught.value)
    assert caught.value.temporary is temporary
    assert JOB_TOKEN not in str(caught.value)
    assert job.servers.credentials_went_to() == set()
    assert len(job.requests) == 1
    job.response = None
    await job.source().current()


async def test_a_refused_token_of_a_job_is_explained_without_a_file(job: Job) -> None:
    await job.source().current()
    job.servers.respond(TOKEN_ENDPOINT, oauth_error(401, "invalid_client"))
    with pytest.raises(BridgeError) as caught:
        await job.source().current()
    text = str(caught.value)
    assert "refused the platform token from GitHub Actions (iss https://cluster.example" in text
    assert "`authserver token inspect < FILE`" in text
    assert JOB_TOKEN not in text
    assert "eyJ" not in text


@pytest.mark.threat("T-118")
@pytest.mark.parametrize(
    "url", ["http://run.actions.example/1", "https://user@run.actions.example/1", "run.actions.example", "https://x/#f"]
)
async def test_the_bearer_token_of_a_job_is_not_sent_in_plain_text(
    job: Job, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    await job.source().current()
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", url)
    with pytest.raises(BridgeError, match="ACTIONS_ID_TOKEN_REQUEST_URL is not an https URL"):
        await job.source().current()
    assert len(job.requests) == 1


@pytest.mark.parametrize("missing", ["ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"])
async def test_outside_of_a_job_the_permission_is_named(
    job: Job, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.delenv(missing)
    with pytest.raises(BridgeError, match=r"works in a job of GitHub Actions.*permission `id-token: write`"):
        await job.source().current()


@pytest.mark.threat("T-120")
async def test_the_repr_of_a_platform_credential_contains_no_secret(
    job: Job, token_file: Callable[[Any], Path]
) -> None:
    in_job = read_credentials(BridgeSettings(), None, github=True)
    assert JOB_TOKEN not in repr(in_job)
    assert "eyJ" not in repr(from_file(token_file(jwt())))
