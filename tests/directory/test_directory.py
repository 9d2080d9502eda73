"""The rules of the directory, entity by entity."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import insert
from support.clock import FakeClock
from support.resourceserver import ISSUER, ResourceServer

from gatehouse.directory.models import (
    Base,
    ConnectionRow,
    EnvironmentRoleRow,
    EnvironmentScopeRow,
    McpServerRow,
    WorkspaceMemberRow,
)

pytestmark = pytest.mark.anyio


class Caller:
    """An agent in a workspace with two environments, `here` and `there`."""

    def __init__(self, server: ResourceServer, workspace_id: str) -> None:
        self.server = server
        self.workspace_id = workspace_id
        self.token = server.issuer.token(workspace_id=workspace_id)
        self.here = self.there = ""

    async def __call__(self, tool: str, **arguments: Any) -> dict[str, Any]:
        return await self.server.result(tool, self.token, **arguments)

    async def failure(self, tool: str, **arguments: Any) -> str:
        return await self.server.failure(tool, self.token, **arguments)

    async def organization(self, **arguments: Any) -> str:
        created = await self("create_organization", environment_id=self.here, name="A", **arguments)
        return str(created["organization_id"])


@pytest.fixture
async def acme(resourceserver: ResourceServer) -> Caller:
    caller = Caller(resourceserver, resourceserver.create_workspace("acme"))
    caller.here = (await caller("create_environment", name="here"))["environment_id"]
    caller.there = (await caller("create_environment", name="there"))["environment_id"]
    return caller


@pytest.fixture
async def globex(resourceserver: ResourceServer) -> Caller:
    return Caller(resourceserver, resourceserver.create_workspace("globex"))


# Members


async def test_an_invitation_is_recorded_and_can_be_revoked(acme: Caller, clock: FakeClock) -> None:
    invited = await acme("invite_workspace_member", email="Ada.O'Hara+1@Example.COM")
    assert invited.pop("user_id").startswith("usr_")
    assert invited == {
        "email": "ada.o'hara+1@example.com",
        "role": "member",
        "status": "invited",
        "created_at": int(clock()),
    }
    (listed,) = (await acme("list_workspace_members"))["members"]
    assert await acme("remove_workspace_member", user_id=listed["user_id"]) == listed
    assert (await acme("list_workspace_members"))["members"] == []
    assert "There is no such member" in await acme.failure("remove_workspace_member", user_id=listed["user_id"])


@pytest.mark.both_databases
async def test_an_email_is_invited_once_however_it_is_cased_and_in_each_workspace(acme: Caller, globex: Caller) -> None:
    await acme("invite_workspace_member", email="ada@example.com")
    assert "There is a member of that email" in await acme.failure("invite_workspace_member", email="ADA@example.com")
    assert await globex("invite_workspace_member", email="ada@example.com")


@pytest.mark.parametrize(
    "email",
    [
        *("", "ada", "@example.com", "ada@", "ada@localhost", "ada@example.com\n", "ada@example.com,bob@example.com"),
        *("Ada <ada@example.com>", "a b@example.com", "ada@-example.com", "ada@example..com", ".ada@example.com"),
        *("ada..l@example.com", "\u00e4da@example.com", "ada@ex\u0430mple.com", "ada@[127.0.0.1]", '"a"@example.com'),
        "a" * 243 + "@example.com",
    ],
)
async def test_what_is_no_email_is_refused(acme: Caller, email: str) -> None:
    assert "email" in await acme.failure("invite_workspace_member", email=email)
    organization = await acme.organization()
    assert "email" in await acme.failure("create_organization_user", organization_id=organization, email=email)
    assert await acme("invite_workspace_member", email="ada@example.com")


# Roles, scopes, MCP servers


@pytest.mark.both_databases
@pytest.mark.parametrize("entity", ["role", "scope"])
async def test_a_name_is_taken_in_its_environment_only(acme: Caller, entity: str) -> None:
    create = f"create_environment_{entity}"
    await acme(create, environment_id=acme.here, name="billing", description="Caf\u00e9")
    answer = await acme.failure(create, environment_id=acme.here, name="billing")
    assert answer == f"There is a {entity} of that name. Choose another, or use that one."
    assert await acme(create, environment_id=acme.there, name="billing")
    (listed,) = (await acme(f"list_environment_{entity}s", environment_id=acme.here))[f"{entity}s"]
    assert (listed["name"], listed["description"]) == ("billing", "Caf\u00e9")


async def test_a_registered_server_is_told_the_metadata_that_it_should_publish(acme: Caller) -> None:
    """RFC 9728 2 and 3.1."""
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
    assert "Give at least one of name, scopes" in await acme.failure("update_mcp_server", **server)


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
    assert "an MCP server of that URL" in await acme.failure("register_mcp_server", environment_id=acme.here, **again)
    assert await acme("register_mcp_server", environment_id=acme.there, **again)


@pytest.mark.threat("T-027")
async def test_an_object_of_another_environment_is_not_changed_through_this_one(acme: Caller) -> None:
    server = await acme("register_mcp_server", environment_id=acme.there, name="A", url="https://mcp.example.com")
    provider = {"display_name": "A", "issuer": "https://idp.example.com", "client_id": "a"}
    connection = await acme("create_environment_oidc_connection", environment_id=acme.there, **provider)
    for tool, arguments in (
        ("update_mcp_server", {"mcp_server_id": server["mcp_server_id"], "name": "B"}),
        ("update_environment_oidc_connection", {"connection_id": connection["connection_id"], "display_name": "B"}),
        ("enable_environment_connection", {"connection_id": connection["connection_id"]}),
    ):
        assert "There is no such" in await acme.failure(tool, environment_id=acme.here, **arguments)
        assert await acme(tool, environment_id=acme.there, **arguments)


# Connections


@pytest.mark.threat("T-038")
async def test_a_connection_is_of_no_use_before_it_is_enabled(acme: Caller, clock: FakeClock) -> None:
    provider = {"display_name": "A", "issuer": "https://idp.example.com/", "client_id": "gatehouse"}
    created = await acme("create_environment_oidc_connection", environment_id=acme.here, **provider)
    assert (
        created.items()
        >= {
            **provider,
            "organization_id": None,
            "kind": "oidc",
            "scopes": ["email", "openid", "profile"],
            "token_endpoint_auth_method": "private_key_jwt",
            "enabled_at": None,
        }.items()
    )
    enabling = {"environment_id": acme.here, "connection_id": created["connection_id"]}
    enabled = await acme("enable_environment_connection", **enabling)
    assert enabled == {**created, "enabled_at": int(clock())}
    clock.advance(60)
    assert await acme("enable_environment_connection", **enabling) == enabled


@pytest.mark.divergence("D-29")
@pytest.mark.threat("T-038")
async def test_a_secret_of_a_connection_cannot_be_given(acme: Caller) -> None:
    provider = {"display_name": "A", "issuer": "https://idp.example.com", "client_id": "a"}
    create = "create_environment_oidc_connection"
    answer = await acme.failure(create, environment_id=acme.here, **provider, client_secret="hunter2")
    assert "does not have" in answer
    method = await acme.failure(
        create, environment_id=acme.here, **provider, token_endpoint_auth_method="client_secret_basic"
    )
    assert "token_endpoint_auth_method" in method
    assert await acme(create, environment_id=acme.here, **provider, token_endpoint_auth_method="none")


async def test_a_connection_of_an_organization_is_listed_for_it_alone(acme: Caller) -> None:
    organization = await acme.organization()
    provider = {"display_name": "A", "issuer": "https://idp.example.com"}
    create = "create_environment_oidc_connection"
    for_all = await acme(create, environment_id=acme.here, **provider, client_id="all")
    theirs = await acme(create, environment_id=acme.here, **provider, client_id="theirs", organization_id=organization)
    listed = await acme("list_organization_connections", organization_id=organization)
    assert listed == {"connections": [theirs], "next_page_token": None}
    everything = (await acme("list_environment_connections", environment_id=acme.here))["connections"]
    assert sorted(c["connection_id"] for c in everything) == sorted(c["connection_id"] for c in (for_all, theirs))
    elsewhere = {"environment_id": acme.there, "organization_id": organization}
    assert "no such organization" in await acme.failure(create, **elsewhere, **provider, client_id="theirs")


async def test_a_connection_does_not_become_another_one(acme: Caller) -> None:
    provider = {"display_name": "A", "issuer": "https://idp.example.com"}
    create = "create_environment_oidc_connection"
    await acme(create, environment_id=acme.here, **provider, client_id="one")
    two = await acme(create, environment_id=acme.here, **provider, client_id="two")
    conflict = "There is a connection of that issuer and client_id"
    assert conflict in await acme.failure(create, environment_id=acme.here, **provider, client_id="one")
    changing = {"environment_id": acme.here, "connection_id": two["connection_id"]}
    assert conflict in await acme.failure("update_environment_oidc_connection", **changing, client_id="one")
    assert "nothing to change" in await acme.failure("update_environment_oidc_connection", **changing)
    changed = await acme("update_environment_oidc_connection", **changing, issuer="https://other.example.com")
    assert changed == {**two, "issuer": "https://other.example.com"}


# Settings and users of organizations


async def test_settings_have_defaults_and_change_one_by_one(acme: Caller) -> None:
    organization = await acme.organization()

    async def settings() -> dict[str, Any]:
        details = await acme("get_organization_details", organization_id=organization)
        assert (details["organization_id"], details["environment_id"]) == (organization, acme.here)
        shown: dict[str, Any] = details["settings"]
        return shown

    expected = {
        "organization_id": organization,
        "mfa_required": False,
        "allowed_email_domains": [],
        "session_lifetime_minutes": 720,
    }
    assert await settings() == expected
    change = "update_organization_settings"
    for sent, stored in (
        ({"mfa_required": True}, True),
        ({"session_lifetime_minutes": 30}, 30),
        ({"allowed_email_domains": ["Example.org", "example.com", "example.com"]}, ["example.com", "example.org"]),
        ({"mfa_required": False}, False),
        ({"allowed_email_domains": []}, []),
    ):
        expected = {**expected, next(iter(sent)): stored}
        assert await acme(change, organization_id=organization, **sent) == expected
        assert await settings() == expected
    assert "nothing to change" in await acme.failure(change, organization_id=organization)
    assert "domain" in await acme.failure(change, organization_id=organization, allowed_email_domains=["a@example.com"])


async def test_a_user_has_an_email_of_an_allowed_domain(acme: Caller) -> None:
    organization = await acme.organization()
    create = "create_organization_user"
    assert await acme(create, organization_id=organization, email="ada@elsewhere.org")
    domains = {"allowed_email_domains": ["example.com"]}
    await acme("update_organization_settings", organization_id=organization, **domains)
    for email in ("bob@elsewhere.org", "bob@sub.example.com", "bob@notexample.com"):
        answer = await acme.failure(create, organization_id=organization, email=email)
        assert answer == "The organization does not admit that email domain. Call get_organization_details."
    assert await acme(create, organization_id=organization, email="Bob@Example.com")


@pytest.mark.threat("T-027")
async def test_a_user_has_a_role_of_the_environment(acme: Caller) -> None:
    organization = await acme.organization()
    await acme("create_environment_role", environment_id=acme.there, name="owner")
    user = {"organization_id": organization, "email": "ada@example.com", "name": "Ada", "role": "owner"}
    assert "There is no such role" in await acme.failure("create_organization_user", **user)
    await acme("create_environment_role", environment_id=acme.here, name="owner")
    created = await acme("create_organization_user", **user)
    assert created.items() >= user.items()
    assert "There is a user of that email" in await acme.failure("create_organization_user", **user)
    other = await acme.organization()
    assert await acme("create_organization_user", **{**user, "organization_id": other})
    assert (await acme("list_organization_users", organization_id=organization))["users"] == [created]


# Limits and pages


def rows_of(
    table: type[Base], prefix: str, **values: Callable[[int], Any]
) -> Callable[[Caller, int], tuple[type[Base], list[dict[str, Any]]]]:
    """Return what makes rows of a table that belong to the environment `here`."""
    (key,) = table.__table__.primary_key
    owner = {"workspace_id", "environment_id"} & set(table.__table__.columns.keys())

    def make(caller: Caller, count: int) -> tuple[type[Base], list[dict[str, Any]]]:
        owners = {"workspace_id": caller.workspace_id, "environment_id": caller.here}
        return table, [
            {
                key.name: f"{prefix}_{number:026}",
                **{name: owners[name] for name in owner},
                **{name: value(number) for name, value in values.items()},
                "created_at": 0,
            }
            for number in range(count)
        ]

    return make


LIMITED = {
    "create_environment_role": (
        rows_of(EnvironmentRoleRow, "role", name=str, description=str),
        {"name": "new"},
        *("list_environment_roles", "roles", "roles in an environment", 100),
    ),
    "create_environment_scope": (
        rows_of(EnvironmentScopeRow, "scp", name=str, description=str),
        {"name": "new"},
        *("list_environment_scopes", "scopes", "scopes in an environment", 100),
    ),
    "register_mcp_server": (
        rows_of(McpServerRow, "mcps", name=str, url=str, scopes=lambda _: []),
        {"name": "new", "url": "https://new.example.com/mcp"},
        *("list_mcp_servers", "mcp_servers", "MCP servers in an environment", 100),
    ),
    "create_environment_oidc_connection": (
        rows_of(
            *(ConnectionRow, "conn"),
            kind=lambda _: "oidc",
            display_name=str,
            issuer=str,
            client_id=str,
            scopes=lambda _: ["openid"],
            token_endpoint_auth_method=lambda _: "none",
        ),
        {"display_name": "new", "issuer": "https://new.example.com", "client_id": "new"},
        *("list_environment_connections", "connections", "connections in an environment", 100),
    ),
    "invite_workspace_member": (
        rows_of(WorkspaceMemberRow, "usr", email=str, role=lambda _: "member", status=lambda _: "invited"),
        {"email": "new@example.com"},
        *("list_workspace_members", "members", "members in a workspace", 1000),
    ),
}


@pytest.mark.threat("T-041")
@pytest.mark.both_databases
@pytest.mark.parametrize("tool", LIMITED)
async def test_what_has_a_limit_ends_there_and_is_listed_whole_in_pages(acme: Caller, tool: str) -> None:
    make, arguments, listing, key, things, limit = LIMITED[tool]
    within = {} if "members" in things else {"environment_id": acme.here}
    table, rows = make(acme, limit)
    with acme.server.admin_database.write() as session:
        session.execute(insert(table), rows[1:])
    assert await acme(tool, **within, **arguments)
    answer = await acme.failure(tool, **within, **arguments)
    assert answer == f"There can be at most {limit} {things}. Remove or change one that exists instead."
    seen: list[str] = []
    page_token: dict[str, str] = {}
    while not seen or page_token:
        page = await acme(listing, **within, **page_token, page_size=100 if limit > 100 else 40)
        seen += [next(iter(entry.values())) for entry in page[key]]
        page_token = {"page_token": page["next_page_token"]} if page["next_page_token"] else {}
    assert len(seen) == len(set(seen)) == limit
    assert seen == sorted(seen)
