"""The application of a gateway, as `serve --upstream` creates it."""

from pathlib import Path

import httpx2
import pytest
from support.databases import Template
from support.resourceserver import PING, RESOURCE, lifespan, settings_in
from support.scripted_upstream import policy_text, tool
from support.sdk_upstream import sdk_upstream

from gatehouse.resourceserver.app import create_gateway
from gatehouse.resourceserver.catalogue.policy_file import parse_policy
from gatehouse.resourceserver.metadata import CALLER_KEYS_PATH
from gatehouse.resourceserver.settings import Settings
from gatehouse.resourceserver.upstream.caller_identity import create_caller_keys
from gatehouse.resourceserver.upstream.http.http_upstream import HttpUpstream
from gatehouse.resourceserver.upstream.opening import open_upstream
from gatehouse.resourceserver.upstream.policy_watch import PolicyWatch
from gatehouse.resourceserver.upstream.stdio.owner_client import OwnerUpstream
from gatehouse.resourceserver.upstream.stdio.stdio_upstream import StdioUpstream
from gatehouse.shared.protocol.resource_metadata import metadata_url
from gatehouse.shared.service.settings import InvalidSettings

ORIGIN = RESOURCE.removesuffix("/mcp")


@pytest.fixture
def settings(tmp_path: Path, resourceserver_template: Template) -> Settings:
    keys = tmp_path / "keys"
    return settings_in(
        tmp_path,
        database_url=resourceserver_template.install(tmp_path),
        session_key=keys / "session.json",
        caller_keys=keys / "caller.json",
    )


def policies(folder: Path, url: str) -> PolicyWatch:
    """Return the accepted policy of an upstream."""
    file = folder / "policy.toml"
    file.write_text(policy_text({"echo": {"listed": tool("echo"), "scopes": '["notes:read"]'}}, url=url))
    return PolicyWatch(file, lambda _: None)


@pytest.mark.anyio
async def test_a_gateway_publishes_its_scopes_and_the_keys_that_sign_who_calls(
    tmp_path: Path, settings: Settings
) -> None:
    create_caller_keys(settings.caller_keys)
    async with sdk_upstream("modern") as upstream:
        app = create_gateway(settings, policies(tmp_path, upstream.url))
        async with lifespan(app), httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as http:
            assert (await http.get(metadata_url(RESOURCE))).json()["scopes_supported"] == ["notes:read", "notes:write"]
            keys = await http.get(f"{ORIGIN}{CALLER_KEYS_PATH}")
            assert keys.headers["content-type"] == "application/jwk-set+json"
            (key,) = keys.json()["keys"]
            assert (key["kty"], "d" in key) == ("EC", False)
            assert (await http.post(RESOURCE, json=PING)).status_code == 401


def test_a_gateway_without_its_key_file_does_not_start(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(InvalidSettings, match="resourceserver init"):
        create_gateway(settings, policies(tmp_path, "http://127.0.0.1:1/mcp"))


def test_each_transport_has_its_own_client() -> None:
    program = parse_policy(policy_text({}).replace('url = "http://127.0.0.1:1/mcp"', 'command = ["notes"]'), Path())
    assert isinstance(open_upstream(parse_policy(policy_text({}), Path()).upstream), HttpUpstream)
    assert isinstance(open_upstream(program.upstream), StdioUpstream)
    assert isinstance(open_upstream(program.upstream, owner=Path("socket")), OwnerUpstream)
