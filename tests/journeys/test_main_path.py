"""From a registered client to a tool's result, with the official SDK, over both protocol versions."""

import itertools
import json
import time
import urllib.request
from pathlib import Path

import anyio
import pytest
from local_stack import LocalStack
from mcp_types import TextResourceContents
from support.mcp_client import Mode, connect
from support.prepared_stack import PreparedStack

from gatehouse.directory.catalogue import CATALOGUE
from gatehouse.resourceserver import json_rpc
from gatehouse.resourceserver.catalogue import CATALOGUE_URI
from gatehouse.shared.protocol.jws import SigningKey

pytestmark = pytest.mark.anyio
both_versions = pytest.mark.parametrize("mode", ["2026-07-28", "legacy"])

_names = (f"env-{number}" for number in itertools.count())


@pytest.mark.divergence("D-01", "D-02")
@both_versions
@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
async def test_an_agent_discovers_obtains_a_token_and_calls(
    stack: LocalStack, workspace_id: str, mode: Mode, method: str
) -> None:
    credentials = stack.create_client(
        "reader", "env:read", "--claim", f"workspace_id={workspace_id}", "--auth-method", method
    )
    async with connect(stack, credentials, mode) as agent:
        identity = await agent.call("whoami")
        tools = [tool.name for tool in (await agent.client.list_tools()).tools]
        page = await agent.call("list_environments")
    assert agent.exchanges[:4] == [
        ("POST", "/mcp", 401),
        ("GET", "/.well-known/oauth-protected-resource/mcp", 200),
        ("GET", "/.well-known/oauth-authorization-server", 200),
        ("POST", "/token", 200),
    ]
    assert agent.statuses("/token") == [200]
    assert identity["client_id"] == credentials["client_id"]
    assert identity["scopes"] == ["env:read"]
    assert identity["workspace_id"] == workspace_id
    assert tools == [name for name, tool in CATALOGUE.tools.items() if tool.scopes <= {"env:read"}]
    assert "environments" in page


@both_versions
async def test_an_agent_reads_the_catalogue_of_tools(stack: LocalStack, workspace_id: str, mode: Mode) -> None:
    credentials = stack.create_client("curious", "env:read", "--claim", f"workspace_id={workspace_id}")
    async with connect(stack, credentials, mode) as agent:
        assert [str(resource.uri) for resource in (await agent.client.list_resources()).resources] == [CATALOGUE_URI]
        (content,) = (await agent.client.read_resource(CATALOGUE_URI)).contents
        callable_tools = {tool.name for tool in (await agent.client.list_tools()).tools}
        refused = await agent.refused("create_environment", name="never")
    assert isinstance(content, TextResourceContents)
    assert content.mime_type == "application/json"
    document = json.loads(content.text)
    assert document == stack.run_json("resourceserver", "tools")
    needed = {tool["name"]: tool["scopes"] for tool in document["tools"]}
    assert callable_tools < needed.keys()
    assert refused.error.data["scope"] == " ".join(needed["create_environment"])


@both_versions
async def test_an_agent_with_a_key_needs_no_secret(
    stack: LocalStack, workspace_id: str, mode: Mode, tmp_path: Path
) -> None:
    credentials = stack.create_client(
        *("key-holder", "env:read", "--claim", f"workspace_id={workspace_id}"),
        *("--generate-key", str(tmp_path / "agent.pem")),
    )
    assert "client_secret" not in credentials
    async with connect(stack, credentials, mode) as agent:
        assert (await agent.call("whoami"))["client_id"] == credentials["client_id"]
        assert "environments" in await agent.call("list_environments")


async def test_each_key_of_an_agent_works_without_a_kid(stack: LocalStack, workspace_id: str, tmp_path: Path) -> None:
    """The SDK's assertions have no `kid`: the authorization server tries every key of the client."""
    keys = {alg: SigningKey.generate(alg) for alg in ("ES256", "RS256")}
    registered = tmp_path / "jwks.json"
    registered.write_text(json.dumps({"keys": [key.public_jwk() for key in keys.values()]}), encoding="utf-8")
    credentials = stack.create_client(
        "two-keys", "env:read", "--claim", f"workspace_id={workspace_id}", "--jwks", str(registered)
    )
    for alg, key in keys.items():
        private = tmp_path / f"{alg}.pem"
        private.write_bytes(key.private_pem())
        held = {**credentials, "private_key_file": str(private), "signing_algorithm": alg}
        async with connect(stack, held, "2026-07-28") as agent:
            assert (await agent.call("whoami"))["client_id"] == credentials["client_id"]


@pytest.mark.divergence("D-04")
@both_versions
async def test_a_refused_agent_steps_up_after_the_grant(stack: PreparedStack, workspace_id: str, mode: Mode) -> None:
    credentials = stack.create_client("stepper", "env:read", "--claim", f"workspace_id={workspace_id}")
    name = next(_names)
    async with connect(stack, credentials, mode) as agent:
        await agent.call("list_environments")
        refusal = await agent.refused("create_environment", name=name)
        assert refusal.error.code == json_rpc.INSUFFICIENT_SCOPE
        assert refusal.error.data["scope"] == "env:write"
        await agent.call("whoami")
        stack.run(
            *("authserver", "client", "grant", "add", credentials["client_id"]),
            *("--resource", stack.resource, "--scope", "env:write"),
        )
        created = await agent.call_until_granted("create_environment", name=name)
        assert await agent.call("get_environment_details", environment_id=created["environment_id"]) == created
    assert agent.tokens.history[-1].scope == "env:read env:write"


@pytest.mark.divergence("D-03")
@both_versions
async def test_a_session_survives_a_token_that_expires_before_a_refusal(
    stack: LocalStack, workspace_id: str, mode: Mode
) -> None:
    credentials = stack.create_client(
        "short-lived", "env:read", "--claim", f"workspace_id={workspace_id}", "--ttl", "1"
    )
    async with connect(stack, credentials, mode) as agent:
        await agent.call("list_environments")
        expiry = agent.provider.context.token_expiry_time
        assert expiry is not None
        await anyio.sleep(expiry - time.time() + 0.01)
        exchanges_before = len(agent.exchanges)
        refusal = await agent.refused("create_environment", name=next(_names))
        statuses = [status for _, path, status in agent.exchanges[exchanges_before:] if path == "/mcp"]
        assert statuses == [401, 403]
        assert refusal.error.code == json_rpc.INSUFFICIENT_SCOPE
        assert (await agent.call("whoami"))["scopes"] == ["env:read"]


async def test_a_caller_sees_only_its_own_workspace(stack: LocalStack, workspace_id: str) -> None:
    other = stack.run_json("resourceserver", "workspace", "create", "--name", "other")["workspace_id"]
    owner, stranger = (
        stack.create_client(name, "env:read env:write", "--claim", f"workspace_id={workspace}")
        for name, workspace in (("owner", workspace_id), ("stranger", other))
    )
    async with connect(stack, owner, "2026-07-28") as agent:
        created = await agent.call("create_environment", name=next(_names))
    async with connect(stack, stranger, "2026-07-28") as agent:
        assert (await agent.call("list_environments"))["environments"] == []
        foreign = await agent.client.call_tool("get_environment_details", {"environment_id": created["environment_id"]})
        unknown = await agent.client.call_tool("get_environment_details", {"environment_id": f"env_{'0' * 26}"})
    assert foreign.is_error
    assert foreign == unknown


async def test_the_two_audit_logs_are_joined_by_the_jti(stack: LocalStack, workspace_id: str) -> None:
    credentials = stack.create_client("audited", "env:read", "--claim", f"workspace_id={workspace_id}")
    async with connect(stack, credentials, "2026-07-28") as agent:
        await agent.call("list_environments")
        await agent.refused("create_environment", name="never")
    of_client = ("audit", "--client", credentials["client_id"], "--output", "json")
    called = json.loads(stack.run("resourceserver", *of_client))
    # The servers write events in batches.
    with anyio.fail_after(10):
        issued: set[str] = set()
        while not {event["jti"] for event in called} <= issued:
            events = json.loads(stack.run("authserver", *of_client))
            issued = {event["jti"] for event in events if event["action"] == "token.issue"}
            await anyio.lowlevel.checkpoint()
    assert ("create_environment", "refused", "needs env:write") in {
        (event["object"], event["outcome"], event["reason"]) for event in called
    }


async def test_disabling_and_enabling_a_client_take_effect(stack: PreparedStack) -> None:
    credentials = stack.create_client("switched", "env:read")

    def request_token() -> int:
        request = urllib.request.Request(f"{stack.issuer}/token", data=b"grant_type=client_credentials", method="POST")
        manager = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        manager.add_password(None, stack.issuer, credentials["client_id"], credentials["client_secret"])
        opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(manager))
        try:
            with opener.open(request) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            assert json.load(error)["error"] == "invalid_client"
            return int(error.code)

    async def until(status: int) -> None:
        with anyio.fail_after(10):
            while await anyio.to_thread.run_sync(request_token) != status:
                await anyio.lowlevel.checkpoint()

    await until(200)
    stack.run("authserver", "client", "disable", credentials["client_id"])
    await until(401)
    stack.run("authserver", "client", "enable", credentials["client_id"])
    await until(200)
