"""Registration and changes of clients and resources, without the command line."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.orm import Session
from support.authserver import OTHER_RESOURCE, RESOURCE, AuthServer
from support.clock import FakeClock
from support.databases import everything_in
from support.http_client import run

from gatehouse.authserver.clients import registration as clients
from gatehouse.authserver.clients.registration import Registration
from gatehouse.authserver.clients.registry import Client, find_clients, load_client, load_clients
from gatehouse.authserver.db.models import ClientRow, ClientSecretRow
from gatehouse.authserver.resources import registration as resources
from gatehouse.authserver.resources.registration import ScopeDeclaration
from gatehouse.authserver.resources.registry import load_resource
from gatehouse.shared.protocol.claims import MAX_STATIC_CLAIMS, RESERVED_CLAIMS
from gatehouse.shared.service.administrator import CommandRefused
from gatehouse.shared.service.cache import GroupLoadingCache


def change(server: AuthServer, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    with server.services.database.write() as session:
        return function(session, server.admin, *arguments, **named)


def register(server: AuthServer, **changes: Any) -> Any:
    registration = Registration(**{"name": "agent", "resource": RESOURCE, "scope": "env:read", **changes})
    return change(server, clients.create_client, server.services.keys.ring(), registration)


def refusal(server: AuthServer, function: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    """Return the message of a refused change. Assert that it changed nothing and left no event."""
    before = server.audit(client="admin:tester")
    with pytest.raises(CommandRefused) as refused:
        function(server, *arguments, **named)
    assert server.audit(client="admin:tester") == before
    return str(refused.value)


@pytest.mark.both_databases
def test_a_client_is_stored_as_registered(authserver: AuthServer) -> None:
    client, secret = register(
        authserver,
        name="ci agent",
        scope="org:read env:read",
        auth_method="client_secret_post",
        token_ttl=60,
        strict=True,
        claims={"workspace_id": "wks_1"},
    )
    assert client.client_id.startswith("agent_")
    assert secret.startswith("gths_")
    with authserver.services.database.read() as session:
        assert load_client(session.connection(), client.client_id) == client
    assert (client.client_name, client.token_endpoint_auth_method) == ("ci agent", "client_secret_post")
    assert (client.token_ttl, client.strict, client.disabled) == (60, True, False)
    assert client.claims == {"workspace_id": "wks_1"}
    assert client.grants == {RESOURCE: {"env:read", "org:read"}}
    assert client.created_at == int(authserver.clock())


@pytest.mark.divergence("D-52")
@pytest.mark.both_databases
def test_only_the_digest_and_prefix_of_a_secret_are_stored(authserver: AuthServer) -> None:
    client, secret = register(authserver)
    assert authserver.post_token(basic=(client.client_id, secret)).status_code == 200
    with authserver.services.database.read() as session:
        row = session.scalars(select(ClientSecretRow).where(ClientSecretRow.client_id == client.client_id)).one()
    assert len(row.digest) == 32
    assert secret.startswith(row.prefix)
    assert len(row.prefix) == 9
    assert secret not in repr(client)
    authserver.services.database.close()
    stored = everything_in(authserver.settings.database)
    assert client.client_id.encode() in stored
    assert secret.removeprefix("gths_").encode() not in stored


@pytest.mark.divergence("D-50")
@pytest.mark.parametrize(
    ("changes", "remediation"),
    [
        pytest.param({"name": ""}, "1 to 128 visible", id="no name"),
        pytest.param({"name": "a" * 129}, "1 to 128 visible", id="long name"),
        pytest.param({"name": "a\x1b[31m"}, "1 to 128 visible", id="name with an escape"),
        pytest.param({"name": "a\nb"}, "1 to 128 visible", id="multi-line name"),
        pytest.param({"auth_method": "none"}, "client_secret_basic", id="public client"),
        pytest.param({"auth_method": "client_assertion_jwt"}, "private_key_jwt", id="Authlib's name of a method"),
        pytest.param({"token_ttl": 0}, "1 to 3600", id="no time"),
        pytest.param({"token_ttl": 3601}, "1 to 3600", id="more than an hour"),
        pytest.param({"scope": "no:such"}, "Its scopes are: env:read, env:write, org:read", id="unknown scope"),
        pytest.param({"scope": "env:read "}, "cannot be read", id="scope syntax"),
        pytest.param({"scope": ""}, "cannot be read", id="no scope"),
        pytest.param({"resource": OTHER_RESOURCE}, "authserver resource add", id="unknown resource"),
        pytest.param({"resource": "mcp"}, "absolute", id="resource syntax"),
        pytest.param({"resource": "http://mcp.example.com/mcp"}, "https", id="plain http"),
        pytest.param({"claims": {"Name": "a"}}, "lower case", id="claim name"),
        pytest.param({"claims": {"name": "a\nb"}}, "printable ASCII", id="claim value"),
        pytest.param({"claims": {"name": ""}}, "printable ASCII", id="empty claim"),
        pytest.param(
            {"claims": {f"c{n}": "a" for n in range(MAX_STATIC_CLAIMS + 1)}}, "at most 16", id="too many claims"
        ),
    ],
)
def test_an_invalid_registration_is_refused_with_its_remediation(
    authserver: AuthServer, changes: dict[str, Any], remediation: str
) -> None:
    register(authserver)
    assert remediation in refusal(authserver, register, **changes)
    with authserver.services.database.read() as session:
        assert len(load_clients(session.connection())) == 1


@pytest.mark.divergence("D-55")
@pytest.mark.parametrize("name", sorted(RESERVED_CLAIMS))
def test_no_registered_claim_can_be_set_on_a_client(authserver: AuthServer, name: str) -> None:
    """A static claim named `scope` or `cnf` would change authorization (cf. keycloak CVE-2026-16102)."""
    register(authserver, claims={f"x_{name}": "a"})
    assert f"{name} is a reserved claim" in refusal(authserver, register, claims={name: "a"})


@pytest.mark.both_databases
def test_new_grants_are_added_to_existing_ones(authserver: AuthServer) -> None:
    change(authserver, resources.add_resource, OTHER_RESOURCE, "other", [ScopeDeclaration("log:read")])
    client, _ = register(authserver)
    change(authserver, clients.add_grant, client.client_id, RESOURCE, "env:read org:read")
    changed = change(authserver, clients.add_grant, client.client_id, OTHER_RESOURCE, "log:read")
    assert changed.grants == {RESOURCE: {"env:read", "org:read"}, OTHER_RESOURCE: {"log:read"}}


def test_a_grant_names_its_resource_in_any_equal_form(authserver: AuthServer) -> None:
    client, _ = register(authserver)
    changed = change(authserver, clients.add_grant, client.client_id, "https://MCP.example.com:443/mcp", "org:read")
    assert changed.grants == {RESOURCE: {"env:read", "org:read"}}


@pytest.mark.both_databases
def test_removed_scopes_are_gone_and_the_others_stay(authserver: AuthServer) -> None:
    client, _ = register(authserver, scope="env:read org:read")
    changed = change(authserver, clients.remove_grant, client.client_id, RESOURCE, "org:read")
    assert changed.grants == {RESOURCE: {"env:read"}}


@pytest.mark.parametrize("scope", ["org:read", "env:read org:read", "no:such"])
def test_a_missing_grant_cannot_be_removed(authserver: AuthServer, scope: str) -> None:
    client, _ = register(authserver)

    def remove(server: AuthServer, scope: str) -> None:
        change(server, clients.remove_grant, client.client_id, RESOURCE, scope)

    assert f"authserver client show {client.client_id}" in refusal(authserver, remove, scope)
    with authserver.services.database.read() as session:
        assert load_client(session.connection(), client.client_id) == client
    remove(authserver, "env:read")


@pytest.mark.parametrize(
    "do",
    [
        pytest.param(lambda s: change(s, clients.set_disabled, "agent_no", disabled=True), id="disable"),
        pytest.param(lambda s: change(s, clients.set_disabled, "", disabled=True), id="disable an unknown client"),
        pytest.param(lambda s: change(s, clients.add_grant, "agent_no", RESOURCE, "env:read"), id="grant"),
        pytest.param(lambda s: change(s, clients.remove_grant, "agent_no", RESOURCE, "env:read"), id="remove a grant"),
    ],
)
def test_a_change_of_an_unknown_client_is_refused(authserver: AuthServer, do: Callable[[AuthServer], Any]) -> None:
    assert "authserver client list" in refusal(authserver, do)


def test_an_unregistered_resource_is_refused_with_the_known_ones(authserver: AuthServer) -> None:
    assert refusal(authserver, register, resource=OTHER_RESOURCE) == (
        f"There is no resource {OTHER_RESOURCE}. Add it with: authserver resource add. Registered are: {RESOURCE}."
    )
    change(authserver, resources.remove_resource, RESOURCE)
    assert refusal(authserver, register).endswith("Registered are: none.")


def test_an_empty_client_id_is_refused_without_a_lookup(authserver: AuthServer) -> None:
    with authserver.services.database.read() as session:
        authserver.take_database_away()
        with pytest.raises(CommandRefused, match="The client_id is empty"):
            clients.existing_client(session, "")


@pytest.mark.both_databases
def test_every_change_is_recorded_with_its_admin(authserver: AuthServer) -> None:
    client, _ = register(authserver)
    change(authserver, clients.add_grant, client.client_id, RESOURCE, "org:read")
    change(authserver, clients.remove_grant, client.client_id, RESOURCE, "org:read")
    change(authserver, clients.set_disabled, client.client_id, disabled=True)
    change(authserver, clients.set_disabled, client.client_id, disabled=False)
    events = authserver.audit(client="admin:tester")
    assert [event["action"] for event in events] == [
        "resource.add",
        "client.create",
        "client.grant.add",
        "client.grant.add",
        "client.grant.remove",
        "client.disable",
        "client.enable",
    ]
    assert {event["object"] for event in events[1:]} == {client.client_id}
    assert {event["outcome"] for event in events} == {"allowed"}
    assert events[3]["detail"] == {"resource": RESOURCE, "scope": ["org:read"]}


@pytest.mark.both_databases
def test_each_clients_events_list_the_grants_it_lost(authserver: AuthServer) -> None:
    """`audit --client` finds events of a client, which do not include those of a resource."""
    declare(authserver, ScopeDeclaration("log:read"))
    several, _ = register(authserver, scope="env:read org:read")
    one, _ = register(authserver)
    other, _ = register(authserver, resource=OTHER_RESOURCE, scope="log:read")
    removed = change(authserver, resources.remove_resource, RESOURCE)
    assert removed == sorted([several.client_id, one.client_id])
    for client, lost in ((several, ["env:read", "org:read"]), (one, ["env:read"])):
        event = authserver.audit(client=client.client_id)[-1]
        assert (event["action"], event["actor"]) == ("client.grant.remove", "admin:tester")
        assert event["detail"] == {"resource": RESOURCE, "scope": lost}
    assert authserver.audit(client=other.client_id)[-1]["action"] == "client.grant.add"


@pytest.mark.both_databases
def test_a_failed_change_leaves_neither_row_nor_event(authserver: AuthServer) -> None:
    keys = authserver.services.keys.ring()

    def fail(session: Session) -> None:
        clients.create_client(session, authserver.admin, keys, Registration("agent", RESOURCE, "env:read"))
        assert session.scalars(select(ClientRow)).all()
        raise CommandRefused("after all")

    with pytest.raises(CommandRefused, match="after all"), authserver.services.database.write() as session:
        fail(session)
    with authserver.services.database.read() as session:
        assert load_clients(session.connection()) == []
    assert "client.create" not in {event["action"] for event in authserver.audit()}


def declare(server: AuthServer, *scopes: ScopeDeclaration, name: str = "other") -> Any:
    return change(server, resources.add_resource, OTHER_RESOURCE, name, list(scopes))


@pytest.mark.both_databases
def test_redeclaring_a_resource_adds_scopes_and_keeps_old_ones(authserver: AuthServer) -> None:
    declare(authserver, ScopeDeclaration("log:read", "See logs"))
    declare(authserver, ScopeDeclaration("log:write"), ScopeDeclaration("log:admin", "", ("log:write",)))
    with authserver.services.database.read() as session:
        resource = load_resource(session, OTHER_RESOURCE)
    assert resource is not None
    assert resource.scopes == {"log:admin": "", "log:read": "See logs", "log:write": ""}
    assert resource.declared == {"log:admin", "log:write"}
    assert resource.hierarchy.implies == {"log:admin": {"log:write"}}
    no_longer_declared = ScopeDeclaration("log:write", "", ("log:read",))
    assert "log:read, which is not declared" in refusal(authserver, lambda s: declare(s, no_longer_declared))
    assert [e["action"] for e in authserver.audit() if e["object"] == OTHER_RESOURCE] == [
        "resource.add",
        "resource.update",
    ]


@pytest.mark.parametrize(
    ("scopes", "remediation"),
    [
        pytest.param([], "at least one scope", id="no scope"),
        pytest.param([ScopeDeclaration("a:b"), ScopeDeclaration("a:b")], "each scope once", id="a scope twice"),
        pytest.param([ScopeDeclaration("a:b", "", ("c:d",))], "c:d, which is not declared", id="unknown implied scope"),
    ],
)
def test_an_invalid_declaration_is_refused(
    authserver: AuthServer, scopes: list[ScopeDeclaration], remediation: str
) -> None:
    assert remediation in refusal(authserver, lambda server: declare(server, *scopes))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="empty"),
        pytest.param("a" * 129, id="too long"),
        pytest.param("tools\x1b[2J", id="escape"),
        pytest.param("tools\nothers", id="two lines"),
    ],
)
def test_a_resource_name_is_short_and_visible(authserver: AuthServer, name: str) -> None:
    """It is printed by `resource list`, and its column holds 128 characters."""
    assert "visible" in refusal(authserver, lambda server: declare(server, ScopeDeclaration("a:b"), name=name))


def test_a_change_of_a_client_takes_effect_within_one_second(authserver: AuthServer, clock: FakeClock) -> None:
    client, _ = authserver.create_client()
    cache = authserver.services.authenticator.clients
    before = cache.get(client.client_id)
    assert before == client
    change(authserver, clients.set_disabled, client.client_id, disabled=True)
    authserver.add_grant(client, "org:read")
    assert cache.get(client.client_id) == before
    clock.advance(1)
    after = cache.get(client.client_id)
    assert after is not None
    assert after.disabled
    assert after.grants == {RESOURCE: {"env:read", "org:read"}}


@pytest.mark.both_databases
def test_clients_that_requests_wait_for_are_read_together(authserver: AuthServer) -> None:
    groups: list[Sequence[str]] = []

    def find(client_ids: Sequence[str]) -> dict[str, Client | None]:
        groups.append(client_ids)
        return find_clients(authserver.services.database, client_ids)

    async def get_all() -> list[Client | None]:
        return await asyncio.gather(*(cache.get_async(client_id, None) for client_id in ids))

    cache = GroupLoadingCache(find)
    first, second = (authserver.create_client()[0] for _ in range(2))
    ids = [first.client_id, "agent_unknown", second.client_id, first.client_id]
    for _ in range(2):
        assert run(get_all()) == [first, None, second, first]
    assert [cache.get(client_id) for client_id in ids] == [first, None, second, first]
    assert groups == [ids[:3]]


def test_the_number_of_queries_does_not_depend_on_the_number_of_clients(authserver: AuthServer) -> None:
    def queries() -> int:
        statements: list[str] = []

        def remember(_: Any, __: Any, statement: str, *___: Any) -> None:
            statements.append(statement)

        event.listen(authserver.services.database.engine, "before_cursor_execute", remember)
        try:
            with authserver.services.database.read() as session:
                load_clients(session.connection())
        finally:
            event.remove(authserver.services.database.engine, "before_cursor_execute", remember)
        return len(statements)

    authserver.create_client()
    of_one = queries()
    for _ in range(3):
        authserver.create_client()
    assert queries() == of_one
