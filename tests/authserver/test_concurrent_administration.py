"""Two concurrent admins: the second change sees what the first committed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event, func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError
from support.assertions import jwks, public_jwk
from support.authserver import OTHER_RESOURCE, RESOURCE, AuthServer
from support.clock import FakeClock

from gatehouse.authserver.clients import registration as clients
from gatehouse.authserver.clients.registration import Update
from gatehouse.authserver.clients.registry import Client, load_client
from gatehouse.authserver.credentials.client_keys import rotate_keys
from gatehouse.authserver.credentials.client_secrets import list_secrets, revoke_secret, rotate_secret
from gatehouse.authserver.db.models import ClientRow, StatusBlockRow
from gatehouse.authserver.resources import registration as resources
from gatehouse.authserver.resources.registration import ScopeDeclaration
from gatehouse.authserver.resources.registry import load_resource
from gatehouse.authserver.tokens.reservations import BLOCK_LIFETIME, reserve_block
from gatehouse.authserver.tokens.revocation import revoke_all
from gatehouse.authserver.tokens.status_lists import prune_status_lists, revoke_token
from gatehouse.shared.protocol.claims import MAX_LIFETIME
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.protocol.status_list import LIST_SIZE
from gatehouse.shared.service.administrator import CommandRefused
from gatehouse.shared.service.failures import explain_database_failure

pytestmark = pytest.mark.only_on("postgresql")

Change = Callable[[Session], Any]

WAITING = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")


def both(server: AuthServer, first: Change, second: Change) -> Any:
    """Make two changes, the second of which begins before the first commits. Return the result of the second."""

    def in_its_turn() -> Any:
        with server.services.database.write() as session:
            return second(session)

    with ThreadPoolExecutor(1) as pool:
        with server.services.database.write() as session:
            first(session)
            session.flush()
            later = pool.submit(in_its_turn)
            wait_for_a_lock(server, later)
        return later.result()


def wait_for_a_lock(server: AuthServer, later: "Future[Any]") -> None:
    """Return as soon as a database session waits for another one."""
    waiting = 0
    while not waiting:
        assert not later.done(), "the second change did not wait for the first"
        with server.services.database.read() as session:
            waiting = session.scalar(WAITING) or 0


def rotate(server: AuthServer, client: Client, grace_period: int = 0) -> Callable[[Session], str]:
    keys = server.services.keys.ring()
    return lambda session: rotate_secret(session, server.admin, keys, client.client_id, grace_period)[1]


def update(server: AuthServer, client: Client, **changes: Any) -> Change:
    return lambda session: clients.update_client(session, server.admin, client.client_id, Update(**changes))


def delete(server: AuthServer, client: Client) -> Change:
    return lambda session: clients.delete_client(session, server.admin, client.client_id)


def disable(server: AuthServer, client: Client) -> Change:
    return lambda session: clients.set_disabled(session, server.admin, client.client_id, disabled=True)


def revoke_tokens(server: AuthServer, client: Client) -> Change:
    return lambda session: revoke_all(session, server.admin, client.client_id)


def grant(server: AuthServer, client: Client, scope: str) -> Change:
    return lambda session: clients.add_grant(session, server.admin, client.client_id, RESOURCE, scope)


def remove_grant(server: AuthServer, client: Client, scope: str) -> Change:
    return lambda session: clients.remove_grant(session, server.admin, client.client_id, RESOURCE, scope)


def declare(server: AuthServer, *scopes: str, implies: tuple[str, ...] = ()) -> Change:
    declared = [ScopeDeclaration(scope, "", implies) for scope in scopes]
    return lambda session: resources.add_resource(session, server.admin, RESOURCE, "tools", declared)


def remove(server: AuthServer) -> Change:
    return lambda session: resources.remove_resource(session, server.admin, RESOURCE)


def test_revoking_tokens_of_a_deleted_client_is_refused(authserver: AuthServer) -> None:
    gone, disabled = (authserver.create_client()[0] for _ in range(2))
    with pytest.raises(CommandRefused, match=f"There is no client {gone.client_id}"):
        both(authserver, delete(authserver, gone), revoke_tokens(authserver, gone))
    both(authserver, disable(authserver, disabled), revoke_tokens(authserver, disabled))
    assert [row["object"] for row in authserver.audit(action="token.revoke")] == [disabled.client_id]


@pytest.mark.threat("T-109")
def test_two_concurrent_rotations_leave_one_secret(authserver: AuthServer) -> None:
    """Otherwise a secret that the audit log calls replaced would stay active."""
    client, _ = authserver.create_client()
    secrets: list[str] = []
    first = rotate(authserver, client)
    secrets.append(both(authserver, lambda session: secrets.append(first(session)), rotate(authserver, client)))
    answers = [authserver.post_token(basic=(client.client_id, secret)).status_code for secret in secrets]
    assert answers == [401, 200]


@pytest.mark.threat("T-101")
def test_the_second_of_two_concurrent_rotations_is_refused(authserver: AuthServer) -> None:
    """Otherwise three secrets would be active."""
    client, _ = authserver.create_client()
    with pytest.raises(CommandRefused, match="has 2 active secrets"):
        both(authserver, rotate(authserver, client, grace_period=60), rotate(authserver, client, grace_period=60))
    with authserver.services.database.read() as session:
        assert len(list_secrets(session, client.client_id)) == 2
    both(authserver, rotate(authserver, client), rotate(authserver, client, grace_period=60))


def test_two_concurrent_revocations_leave_one_secret(authserver: AuthServer) -> None:
    client, _ = authserver.create_client()
    with authserver.services.database.write() as session:
        rotate(authserver, client, grace_period=60)(session)
        first, second = (known.secret_id for known in list_secrets(session, client.client_id))

    def end(secret_id: str) -> Change:
        return lambda session: revoke_secret(session, authserver.admin, client.client_id, secret_id)

    with pytest.raises(CommandRefused, match="the only active secret"):
        both(authserver, end(first), end(second))


def test_concurrent_key_rotations_count_each_other_s_keys(authserver: AuthServer) -> None:
    def some(number: int) -> bytes:
        return jwks(*(public_jwk(SigningKey.generate("ES256")) for _ in range(number)))

    client, _ = authserver.create_client(auth_method="private_key_jwt", jwks=some(1))

    def replace(number: int) -> Change:
        keys = some(number)
        return lambda session: rotate_keys(session, authserver.admin, client.client_id, keys, 60)

    with pytest.raises(CommandRefused, match="more than 8 active keys"):
        both(authserver, replace(4), replace(4))
    both(authserver, replace(1), replace(2))


@pytest.mark.threat("T-109")
def test_two_concurrent_updates_are_both_applied(authserver: AuthServer) -> None:
    client, _ = authserver.create_client()
    changed = both(
        authserver,
        update(authserver, client, claims={"team": "a"}, strict=True),
        update(authserver, client, claims={"workspace_id": "wks_1"}),
    )
    assert changed.claims == {"team": "a", "workspace_id": "wks_1"}
    assert changed.strict


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(rotate, id="rotate"),
        pytest.param(lambda *of: update(*of, strict=True), id="update"),
        pytest.param(delete, id="delete"),
        pytest.param(disable, id="disable"),
        pytest.param(lambda *of: grant(*of, "org:read"), id="grant add"),
        pytest.param(lambda *of: remove_grant(*of, "env:read"), id="grant remove"),
    ],
)
def test_a_change_after_a_deletion_reports_a_missing_client(
    authserver: AuthServer, second: Callable[..., Change]
) -> None:
    client, _ = authserver.create_client()
    with pytest.raises(CommandRefused, match="There is no client"):
        both(authserver, delete(authserver, client), second(authserver, client))
    assert authserver.audit(client="admin:tester")[-1]["action"] == "client.delete"


def test_a_scope_can_be_granted_and_removed_concurrently(authserver: AuthServer) -> None:
    client, _ = authserver.create_client()
    both(authserver, grant(authserver, client, "org:read"), grant(authserver, client, "org:read env:write"))
    both(authserver, remove_grant(authserver, client, "org:read"), remove_grant(authserver, client, "env:write"))
    with pytest.raises(CommandRefused, match="was not granted"):
        both(authserver, remove_grant(authserver, client, "env:read"), remove_grant(authserver, client, "env:read"))
    with authserver.services.database.read() as session:
        assert load_client(session.connection(), client.client_id).grants == {}


@pytest.mark.threat("T-109")
def test_a_grant_does_not_outlive_its_resource(authserver: AuthServer) -> None:
    client, _ = authserver.create_client()
    granted = grant(authserver, client, "org:read")
    assert both(authserver, granted, remove(authserver)) == [client.client_id]
    with authserver.services.database.read() as session:
        assert load_client(session.connection(), client.client_id).grants == {}


def test_nothing_is_granted_at_a_resource_being_removed(authserver: AuthServer) -> None:
    authserver.add_resource(OTHER_RESOURCE)
    client, _ = authserver.create_client(resource=OTHER_RESOURCE)
    with pytest.raises(CommandRefused, match="There is no resource"):
        both(authserver, remove(authserver), grant(authserver, client, "env:read"))


def test_a_second_declaration_sees_the_first(authserver: AuthServer) -> None:
    first = declare(authserver, "log:read")
    both(authserver, first, declare(authserver, "log:write"))
    with authserver.services.database.read() as session:
        resource = load_resource(session, RESOURCE)
    assert resource is not None
    assert {"log:read", "log:write"} <= resource.scopes.keys()
    assert resource.declared == {"log:write"}


def test_a_resource_declared_after_its_removal_is_new(authserver: AuthServer) -> None:
    added = both(authserver, remove(authserver), declare(authserver, "log:read"))
    assert added.scopes.keys() == {"log:read"}
    with pytest.raises(CommandRefused, match="There is no resource"):
        both(authserver, remove(authserver), remove(authserver))


def test_removing_a_resource_locks_its_clients(authserver: AuthServer) -> None:
    client, _ = authserver.create_client("env:read org:read")
    taken = remove_grant(authserver, client, "org:read")
    assert both(authserver, taken, remove(authserver)) == [client.client_id]
    events = [event for event in authserver.audit() if event["action"] == "client.grant.remove"]
    assert [event["detail"]["scope"] for event in events] == [["org:read"], ["env:read"]]


def test_a_concurrently_deleted_row_is_reported_clearly(authserver: AuthServer) -> None:
    """For code that does not lock rows, such as an operator's own script."""
    client, _ = authserver.create_client()
    other = authserver.services.database
    with pytest.raises(SQLAlchemyError) as failure, other.write() as session:
        row = session.scalars(select(ClientRow)).one()
        with other.write() as second:
            clients.delete_client(second, authserver.admin, client.client_id)
        row.strict = True
        session.flush()
    assert isinstance(failure.value, StaleDataError)
    assert "Another command changed the same row" in explain_database_failure(failure.value)


@pytest.mark.parametrize("when", ["blocks are revoked", "lists are locked"])
def test_pruning_and_a_revocation_do_not_wait_for_each_other(
    authserver: AuthServer, clock: FakeClock, when: str
) -> None:
    """The revocation locks lists, then blocks; a deletion of expired rows locks blocks, then lists."""
    client, _ = authserver.create_client()
    database = authserver.services.database
    with database.write() as session:
        assert reserve_block(session, client.client_id, LIST_SIZE, int(clock()))
    clock.advance(2 * (BLOCK_LIFETIME + MAX_LIFETIME))
    stops = {"blocks are revoked": "UPDATE status_block ", "lists are locked": "UPDATE status_list "}[when]

    def prune() -> None:
        with database.write() as session:
            prune_status_lists(session, int(clock()))

    with ThreadPoolExecutor(1) as pool:

        def prune_meanwhile(*arguments: Any) -> None:
            if arguments[2].startswith(stops):
                pool.submit(prune).result()

        event.listen(database.engine, "before_cursor_execute", prune_meanwhile)
        with database.write() as session:
            revoke_all(session, authserver.admin, client.client_id)
        event.remove(database.engine, "before_cursor_execute", prune_meanwhile)
    prune()
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(StatusBlockRow)) == 0


def test_a_token_of_a_list_that_is_being_deleted_has_expired(authserver: AuthServer, clock: FakeClock) -> None:
    client, _ = authserver.create_client()
    with authserver.services.database.write() as session:
        block = reserve_block(session, client.client_id, LIST_SIZE, int(clock()))
    assert block is not None
    clock.advance(2 * (BLOCK_LIFETIME + MAX_LIFETIME))
    prune = lambda session: prune_status_lists(session, int(clock()))  # noqa: E731
    assert both(authserver, prune, lambda session: revoke_token(session, block.list_id, 7)) is None
