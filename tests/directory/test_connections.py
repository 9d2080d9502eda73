"""Connections of an environment or an organization."""

import pytest
from support.clock import FakeClock
from support.directory import Caller

pytestmark = pytest.mark.anyio


@pytest.mark.threat("T-038")
async def test_a_connection_is_disabled_until_it_is_enabled(acme: Caller, clock: FakeClock) -> None:
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
async def test_a_connection_accepts_no_client_secret(acme: Caller) -> None:
    provider = {"display_name": "A", "issuer": "https://idp.example.com", "client_id": "a"}
    create = "create_environment_oidc_connection"
    answer = await acme.failure(create, environment_id=acme.here, **provider, client_secret="hunter2")
    assert "unknown argument" in answer
    method = await acme.failure(
        create, environment_id=acme.here, **provider, token_endpoint_auth_method="client_secret_basic"
    )
    assert "token_endpoint_auth_method" in method
    assert await acme(create, environment_id=acme.here, **provider, token_endpoint_auth_method="none")


async def test_a_connection_can_belong_to_one_organization(acme: Caller) -> None:
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


async def test_issuer_and_client_id_are_unique_per_environment(acme: Caller) -> None:
    provider = {"display_name": "A", "issuer": "https://idp.example.com"}
    create = "create_environment_oidc_connection"
    await acme(create, environment_id=acme.here, **provider, client_id="one")
    two = await acme(create, environment_id=acme.here, **provider, client_id="two")
    conflict = "A connection with that issuer and client_id exists"
    assert conflict in await acme.failure(create, environment_id=acme.here, **provider, client_id="one")
    changing = {"environment_id": acme.here, "connection_id": two["connection_id"]}
    assert conflict in await acme.failure("update_environment_oidc_connection", **changing, client_id="one")
    assert "nothing to change" in await acme.failure("update_environment_oidc_connection", **changing)
    changed = await acme("update_environment_oidc_connection", **changing, issuer="https://other.example.com")
    assert changed == {**two, "issuer": "https://other.example.com"}
