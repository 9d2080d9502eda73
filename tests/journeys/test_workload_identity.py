"""An agent in a cluster works with the token that its platform renews, and with no secret."""

import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import httpx2
import pytest
from agent import MemoryStorage
from local_stack import LocalStack
from mcp import Client
from mcp.client.auth import OAuthFlowError
from mcp.client.auth.extensions.client_credentials import PrivateKeyJWTOAuthProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from support.certificates import Authority
from support.platform_server import Asked, ProjectedToken, SystemClock, serving
from support.platforms import Platform, kubernetes
from support.revocation_window import ping
from support.waiting import until

from gatehouse.authserver.grants.jwt_bearer import GRANT_TYPE as JWT_BEARER
from gatehouse.authserver.workloads.issuer_keys import REFRESH_INTERVAL

pytestmark = pytest.mark.anyio

CALLS = 1000
SESSIONS = 4
"""Of the agent at once, each with an access token of its own."""

TTL = 1
"""Seconds that an access token of the agent is valid, so that it requests many."""

LIMIT = 300.0
"""Seconds for all calls. They take some seconds on an idle machine."""

REVOKED_WITHIN = 30.0
"""Seconds in which calls must end after `client disable`, on a busy machine; the resource server polls every second."""

NAME = "journey"
"""Of the trusted issuer."""

POD_TOKEN = "eyJhbGciOiJSUzI1NiJ9.e30.c2lnbmF0dXJl"
"""What the API server wants from those who fetch its keys."""


@dataclass
class Agent:
    """Calls a tool again and again, in several sessions. It reads its platform token for each token request."""

    stack: LocalStack
    client_id: str
    token_file: Path
    presented: list[str] = field(default_factory=list)
    """The platform token of each token request."""
    calls: int = 0
    target: int = 0
    """The number of calls to make."""

    async def read_token(self, audience: str) -> str:
        assert audience == self.stack.issuer
        self.presented.append(self.token_file.read_text(encoding="ascii"))
        return self.presented[-1]

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Client]:
        """Open a session with an access token of its own."""
        provider = PrivateKeyJWTOAuthProvider(
            self.stack.resource,
            MemoryStorage(),
            client_id=self.client_id,
            assertion_provider=self.read_token,
            issuer=self.stack.issuer,
        )
        async with (
            httpx2.AsyncClient(auth=provider, timeout=30, trust_env=False) as http,
            Client(streamable_http_client(self.stack.resource, http_client=http)) as client,
        ):
            yield client

    async def call(self, client: Client) -> None:
        """Call a tool, which must succeed."""
        result = await client.call_tool("whoami", {})
        assert result.structured_content is not None, result
        assert result.structured_content["client_id"] == self.client_id
        self.calls += 1

    async def work(self, number: int) -> None:
        """Make this number of calls in all sessions, and more until the present platform token was presented."""
        self.target = self.calls + number
        current = self.token_file.read_text(encoding="ascii")
        async with anyio.create_task_group() as sessions:
            for _ in range(SESSIONS):
                sessions.start_soon(self._work, current)

    async def _work(self, current: str) -> None:
        async with self.session() as client:
            while self.calls < self.target or self.presented[-1] != current:
                await self.call(client)


@dataclass
class Cluster:
    """A cluster with an agent's pod, and an API server that publishes its keys to service accounts."""

    platform: Platform
    pod: ProjectedToken

    def answer(self, asked: Asked) -> bytes | None:
        wanted = (asked.path, asked.authorization) == ("/openid/v1/jwks", f"Bearer {POD_TOKEN}")
        return self.platform.jwks() if wanted else None

    def renew_token(self) -> None:
        """Replace the token in the pod. The old one is valid for some time yet."""
        self.pod.replace(self.platform.token())


def database(stack: LocalStack, statement: str) -> list[tuple[str]]:
    """Execute a statement in the database of the authorization server, and return its rows."""
    with closing(sqlite3.connect(stack.folder / "var" / "authserver.db", timeout=30)) as connection, connection:
        return list(connection.execute(statement))


async def publish_next_key(stack: LocalStack, cluster: Cluster) -> None:
    """Publish a new key of the cluster, and wait until the server has fetched it as if ten minutes had passed."""
    old = cluster.platform.keys[:]
    new = cluster.platform.rotate()
    # A platform publishes a key before it signs with it.
    cluster.platform.keys[:] = [*old, new]
    database(stack, f"UPDATE trusted_issuer SET attempted_at = attempted_at - {REFRESH_INTERVAL} WHERE name = '{NAME}'")
    await until(lambda: new.kid in database(stack, f"SELECT jwks FROM trusted_issuer WHERE name = '{NAME}'")[0][0])
    cluster.platform.keys[:] = [new, *old]


async def test_an_agent_works_while_its_token_and_the_keys_of_its_platform_are_replaced(
    stack: LocalStack, workspace_id: str, tmp_path: Path
) -> None:
    authority, credential = Authority(tmp_path), tmp_path / "service-account-token"
    credential.write_text(POD_TOKEN, encoding="ascii")
    platform = kubernetes(SystemClock(), "https://journey.clusters.example", name=NAME)
    platform.audience, platform.lifetime = stack.issuer, 600
    cluster = Cluster(platform, ProjectedToken(tmp_path / "pod"))
    cluster.renew_token()
    options = ("--auth-method", "workload_identity", "--ttl", str(TTL), "--claim", f"workspace_id={workspace_id}")
    client_id = stack.create_client("pod", "env:read", *options)["client_id"]
    with serving(cluster.answer, authority.server_context()) as api_server:
        location = (
            *("--jwks-uri", f"{api_server}/openid/v1/jwks", "--ca-file", str(authority.file)),
            *("--bearer-token-file", str(credential)),
        )
        kind = ("--kind", "kubernetes", "--issuer", platform.issuer)
        stack.run("authserver", "issuer", "add", NAME, *kind, *location)
        claims = [option for name, value in platform.conditions.items() for option in ("--claim", f"{name}={value}")]
        stack.run("authserver", "client", "trust", "add", client_id, "--issuer", NAME, *claims)
        agent = Agent(stack, client_id, cluster.pod.file)
        with anyio.fail_after(LIMIT):
            await agent.work(CALLS // 3)
            cluster.renew_token()
            await agent.work(CALLS // 3)
            await publish_next_key(stack, cluster)
            cluster.renew_token()
            await agent.work(CALLS - agent.calls)
        assert agent.calls >= CALLS
        # Each token was presented by more than one request: it is not for single use.
        assert [agent.presented.count(token) > 1 for token in dict.fromkeys(agent.presented)] == [True] * 3
        await disable_at_work(stack, agent)
        stack.run("authserver", "issuer", "remove", NAME, "--yes")
    print(f"{agent.calls} calls, {len(agent.presented)} token requests")
    events = stack.run_json("authserver", "audit", "--action", "token.issue", "--limit", "1000")
    recorded = [event for event in events if event["detail"].get("external_issuer") == platform.issuer]
    assert {event["detail"]["external_subject"] for event in recorded} == {platform.workload["sub"]}
    allowed = [event for event in recorded if event["outcome"] == "allowed"]
    assert {event["actor"] for event in allowed} == {client_id}
    # Only requests after `client disable` were refused: that of the test, and at most one of each session.
    refused = [event["reason"] for event in recorded if event["outcome"] == "refused"]
    assert 1 <= len(refused) <= SESSIONS + 1
    assert set(refused) <= {"client is disabled", "client was disabled since it authenticated"}


async def disable_at_work(stack: LocalStack, agent: Agent) -> None:
    """Disable the client while the agent works. Its calls must end, also those with a token that is not expired."""
    stack.run("authserver", "client", "update", agent.client_id, "--default-ttl")
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as http:
        with anyio.fail_after(REVOKED_WITHIN):
            while (token := await request_token(http, stack, agent)).json()["expires_in"] == TTL:
                pass
        access_token = token.json()["access_token"]
        assert await ping(http, stack, access_token) == 200
        calls = agent.calls
        with pytest.raises(ExceptionGroup) as ended, anyio.fail_after(REVOKED_WITHIN):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(agent.work, sys.maxsize)
                await until(lambda: agent.calls > calls + SESSIONS)
                await anyio.to_thread.run_sync(stack.run, "authserver", "client", "disable", agent.client_id)
        # Within a second, the authorization server may still issue a token. It is revoked from the beginning, and the
        # resource server refuses it.
        assert ended.value.split((OAuthFlowError, MCPError))[1] is None
        with anyio.fail_after(REVOKED_WITHIN):
            while await ping(http, stack, access_token) == 200:
                pass
            while (refused := await request_token(http, stack, agent)).status_code == 200:
                pass
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")


async def request_token(http: httpx2.AsyncClient, stack: LocalStack, agent: Agent) -> httpx2.Response:
    """Request a token with the platform token as the grant."""
    form = {
        "grant_type": JWT_BEARER,
        "resource": stack.resource,
        "assertion": agent.token_file.read_text(encoding="ascii"),
    }
    return await http.post(f"{stack.issuer}/token", data=form)
