"""MCP servers of an environment."""

import pytest
from support.directory import Caller
from support.resourceserver import ISSUER

pytestmark = pytest.mark.anyio


async def test_registration_returns_the_metadata_to_publish(acme: Caller) -> None:
    """RFC 9728 sections 2 and 3.1."""
    for scope in ("invoices:read", "invoices:write"):
        await acme("create_environment_scope", environment_id=acme.here, name=scope)
    registered = await acme(
        "register_mcp_server",
        environment_id=acme.here,
        name="Invoices",
        url="https://Invoices.example.com/v1/mcp",
        scopes=["invoices:write", "invoices:read", "invoices:read"],
    )
    assert registered["scopes"] == ["invoices:read", "invoices:write"]
    assert registered["protected_resource_metadata"] == {
        "resource": "https://invoices.example.com/v1/mcp",
        "authorization_servers": [ISSUER],
        "bearer_methods_supported": ["header"],
        "scopes_supported": ["invoices:read", "invoices:write"],
        "resource_name": "Invoices",
    }
    address = "https://invoices.example.com/.well-known/oauth-protected-resource/v1/mcp"
    assert registered["protected_resource_metadata_url"] == address
    server = {"environment_id": acme.here, "mcp_server_id": registered["mcp_server_id"]}
    renamed = await acme("update_mcp_server", **server, name="Bills")
    assert (renamed["name"], renamed["url"], renamed["scopes"]) == ("Bills", registered["url"], registered["scopes"])
    assert renamed["protected_resource_metadata"]["resource_name"] == "Bills"
    narrowed = await acme("update_mcp_server", **server, scopes=[])
    assert narrowed["protected_resource_metadata"]["scopes_supported"] == []
    assert "Set at least one of name, scopes" in await acme.failure("update_mcp_server", **server)


@pytest.mark.threat("T-027")
async def test_a_server_offers_only_scopes_of_its_environment(acme: Caller) -> None:
    await acme("create_environment_scope", environment_id=acme.there, name="invoices:read")
    server = {"name": "Invoices", "url": "https://invoices.example.com/mcp"}
    answer = await acme.failure("register_mcp_server", environment_id=acme.here, **server, scopes=["invoices:read"])
    assert answer == "There is no such scope in this workspace. Call list_environment_scopes for those that exist."
    registered = await acme("register_mcp_server", environment_id=acme.there, **server, scopes=["invoices:read"])
    sent = {"environment_id": acme.there, "mcp_server_id": registered["mcp_server_id"]}
    assert "no such scope" in await acme.failure("update_mcp_server", **sent, scopes=["invoices:read", "other"])
    assert (await acme("list_mcp_servers", environment_id=acme.there))["mcp_servers"][0]["scopes"] == ["invoices:read"]


@pytest.mark.threat("T-039")
async def test_two_spellings_of_one_url_are_one_server(acme: Caller) -> None:
    await acme("register_mcp_server", environment_id=acme.here, name="A", url="https://mcp.example.com")
    again = {"name": "B", "url": "https://MCP.example.com:443/"}
    assert "An MCP server with that URL exists" in await acme.failure(
        "register_mcp_server", environment_id=acme.here, **again
    )
    assert await acme("register_mcp_server", environment_id=acme.there, **again)
