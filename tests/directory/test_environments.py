"""Environments, their roles and their scopes."""

import pytest
from support.clock import FakeClock
from support.directory import Caller

pytestmark = pytest.mark.anyio


async def test_a_created_environment_can_be_read_and_listed(caller: Caller, clock: FakeClock) -> None:
    created = await caller("create_environment", name="staging", kind="staging")
    identifier = created.pop("environment_id")
    assert created == {"name": "staging", "kind": "staging", "created_at": int(clock())}
    whole = {"environment_id": identifier, **created}
    assert await caller("get_environment_details", environment_id=identifier) == whole
    assert await caller("list_environments") == {"environments": [whole], "next_page_token": None}


@pytest.mark.both_databases
async def test_a_duplicate_environment_name_is_a_conflict(caller: Caller, other: Caller) -> None:
    await caller("create_environment", name="staging", kind="staging")
    answer = await caller.failure("create_environment", name="staging", kind="production")
    assert "An environment with that name exists" in answer
    assert [e["kind"] for e in (await caller("list_environments"))["environments"]] == ["staging"]
    # Names are unique per workspace, so a conflict reveals nothing about another workspace.
    assert await other("create_environment", name="staging")


async def test_identifiers_have_a_prefix_for_their_type(caller: Caller) -> None:
    environment = await caller("create_environment", name="staging")
    organization = await caller("create_organization", environment_id=environment["environment_id"], name="A")
    for identifier, prefix in (
        (caller.workspace_id, "wks_"),
        (environment["environment_id"], "env_"),
        (organization["organization_id"], "org_"),
    ):
        assert identifier.startswith(prefix)
        assert len(identifier) == 30
    # An identifier of another type is not looked up at all.
    answer = await caller.failure("list_organizations", environment_id=organization["organization_id"])
    assert "environment_id" in answer


@pytest.mark.both_databases
@pytest.mark.parametrize("entity", ["role", "scope"])
async def test_role_and_scope_names_are_unique_per_environment(acme: Caller, entity: str) -> None:
    create = f"create_environment_{entity}"
    await acme(create, environment_id=acme.here, name="billing", description="Caf\u00e9")
    answer = await acme.failure(create, environment_id=acme.here, name="billing")
    assert answer == f"A {entity} with that name exists. Choose another name, or use that {entity}."
    assert await acme(create, environment_id=acme.there, name="billing")
    (listed,) = (await acme(f"list_environment_{entity}s", environment_id=acme.here))[f"{entity}s"]
    assert (listed["name"], listed["description"]) == ("billing", "Caf\u00e9")


@pytest.mark.threat("T-027")
async def test_objects_cannot_be_changed_through_another_environment(acme: Caller) -> None:
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
