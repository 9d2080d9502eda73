"""The time of a credential's last use is written in the background; no request waits for it."""

import threading
from typing import Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.exc import SQLAlchemyError
from support.assertions import KeyClient
from support.authserver import RESOURCE, AuthServer, basic_header
from support.clock import FakeClock

from gatehouse.authserver.credentials.client_secrets import rotate_secret
from gatehouse.authserver.credentials.lifecycle import LAST_USE_INTERVAL, LastUse, prune_credentials
from gatehouse.authserver.credentials.resource_credentials import create_credential, rotate_credential
from gatehouse.authserver.db.models import ClientKeyRow, ClientSecretRow, CredentialRow, ResourceCredentialRow
from gatehouse.shared.protocol.jws import SigningKey

pytestmark = pytest.mark.both_databases

DAY = 86400
KEY = SigningKey.generate("ES256")


def last_used(server: AuthServer, row: type[CredentialRow] = ClientSecretRow) -> list[int | None]:
    with server.services.database.read() as session:
        return list(session.scalars(select(row.last_used_at).order_by(row.created_at)).all())


def use(server: AuthServer, basic: tuple[str, str]) -> int:
    """Use a secret, and return the time of the use."""
    assert server.post_token(basic=basic).status_code == 200
    return int(server.clock())


def test_each_kind_of_credential_has_a_time_of_last_use(authserver: AuthServer, clock: FakeClock) -> None:
    client, secret = authserver.create_client()
    of_key = KeyClient(authserver, KEY)
    with authserver.services.database.write() as session:
        keys = authserver.services.keys.ring()
        credential, resource_secret = create_credential(session, authserver.admin, keys, RESOURCE)
    rows = (ClientSecretRow, ClientKeyRow, ResourceCredentialRow)
    authserver.services.maintenance.run_once()
    assert [last_used(authserver, row) for row in rows] == [[None]] * 3
    used_at = use(authserver, (client.client_id, secret))
    of_key.accepted()
    basic = {"Authorization": basic_header(credential.credential_id, resource_secret)}
    answer = authserver.http.post("/introspect", data={"token": "x"}, headers=basic)
    assert answer.status_code == 200
    clock.advance(5)
    authserver.services.maintenance.run_once()
    assert [last_used(authserver, row) for row in rows] == [[used_at]] * 3


def test_the_last_uses_of_many_credentials_are_written_with_few_statements(authserver: AuthServer) -> None:
    """One statement for each would keep requests from the write lock of SQLite for seconds in a large installation."""
    for _ in range(5):
        client, secret = authserver.create_client()
        use(authserver, (client.client_id, secret))
    statements: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        statements.append(statement.split(maxsplit=1)[0])

    event.listen(authserver.services.database.engine, "before_cursor_execute", note)
    try:
        authserver.services.last_use.write(everything=True)
    finally:
        event.remove(authserver.services.database.engine, "before_cursor_execute", note)
    assert [each for each in statements if each in {"SELECT", "UPDATE"}] == ["SELECT", "UPDATE"]
    assert last_used(authserver) == [int(authserver.clock())] * 5


def test_a_refused_credential_does_not_count_as_used(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    assert authserver.post_token(basic=(client.client_id, "gths_wrong")).status_code == 401
    authserver.services.last_use.write(everything=True)
    assert last_used(authserver) == [None]
    use(authserver, (client.client_id, secret))
    authserver.services.last_use.write(everything=True)
    assert last_used(authserver) == [int(authserver.clock())]


def test_a_request_does_not_write_the_time_of_use(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    use(authserver, (client.client_id, secret))
    authserver.audit()
    written: list[tuple[str, str]] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        if statement.startswith(("UPDATE", "INSERT", "DELETE")):
            written.append((threading.current_thread().name, statement))

    event.listen(authserver.services.database.engine, "before_cursor_execute", note)
    try:
        use(authserver, (client.client_id, secret))
        authserver.audit()
    finally:
        event.remove(authserver.services.database.engine, "before_cursor_execute", note)
    assert {thread for thread, _ in written} == {"audit"}
    assert not any("last_used_at" in statement for _, statement in written)


def test_the_latest_use_is_written_at_most_once_a_minute(authserver: AuthServer, clock: FakeClock) -> None:
    client, secret = authserver.create_client()
    basic, last_use = (client.client_id, secret), authserver.services.last_use
    first = use(authserver, basic)
    last_use.write()
    clock.advance(LAST_USE_INTERVAL - 2)
    use(authserver, basic)
    clock.advance(1)
    last = use(authserver, basic)
    last_use.write()
    assert last_used(authserver) == [first]
    clock.advance(1)
    last_use.write()
    assert last_used(authserver) == [last]


def test_the_later_use_of_two_processes_is_kept(authserver: AuthServer, clock: FakeClock) -> None:
    client, secret = authserver.create_client()
    basic = (client.client_id, secret)
    use(authserver, basic)
    earlier = LastUse(authserver.services.database, clock)
    with authserver.services.database.read() as session:
        [secret_id] = session.scalars(select(ClientSecretRow.secret_id))
        earlier.note(ClientSecretRow, secret_id, now=clock() - 1)
    authserver.services.last_use.write()
    earlier.write()
    assert last_used(authserver) == [int(clock())]


def test_times_of_use_are_written_after_a_database_outage(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    used_at = use(authserver, (client.client_id, secret))
    last_use, failing = authserver.services.last_use, {"now": True}

    def fail(*_: Any) -> None:
        if failing["now"]:
            raise SQLAlchemyError

    event.listen(authserver.services.database.engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(SQLAlchemyError):
            last_use.write()
        last_use.close()
        failing["now"] = False
        assert last_used(authserver) == [None]
        last_use.write()
    finally:
        event.remove(authserver.services.database.engine, "before_cursor_execute", fail)
    assert last_used(authserver) == [used_at]


def test_a_deleted_credential_is_not_an_error(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    other, other_secret = authserver.create_client()
    use(authserver, (client.client_id, secret))
    used_at = use(authserver, (other.client_id, other_secret))
    with authserver.services.database.write() as session:
        for row in session.scalars(select(ClientSecretRow).where(ClientSecretRow.client_id == client.client_id)):
            session.delete(row)
    authserver.services.last_use.write()
    assert last_used(authserver) == [used_at]


@pytest.mark.only_on("postgresql")
def test_a_locked_credential_does_not_delay_the_others(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    other, other_secret = authserver.create_client()
    use(authserver, (client.client_id, secret))
    used_at = use(authserver, (other.client_id, other_secret))
    with authserver.services.database.write() as session:
        of_client = ClientSecretRow.client_id == client.client_id
        assert session.scalars(select(ClientSecretRow).where(of_client).with_for_update()).all()
        authserver.services.last_use.write()
    assert sorted(last_used(authserver), key=str) == [used_at, None]


def test_a_stopping_server_writes_pending_times_of_use(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    used_at = use(authserver, (client.client_id, secret))
    authserver.services.last_use.close()
    assert last_used(authserver) == [used_at]


def test_many_credentials_are_written_in_several_transactions(
    authserver: AuthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatehouse.authserver.credentials.lifecycle._BATCH", 2)
    for _ in range(5):
        client, secret = authserver.create_client()
        used_at = use(authserver, (client.client_id, secret))
    authserver.services.last_use.write()
    assert last_used(authserver) == [used_at] * 5


def test_an_inactive_credential_is_deleted_after_30_days(authserver: AuthServer, clock: FakeClock) -> None:
    client, _ = authserver.create_client()
    with authserver.services.database.write() as session:
        keys = authserver.services.keys.ring()
        rotate_secret(session, authserver.admin, keys, client.client_id, grace_period=DAY)
        credential, _ = create_credential(session, authserver.admin, keys, RESOURCE)
        rotate_credential(session, authserver.admin, keys, credential.credential_id)
    rows = (ClientSecretRow, ResourceCredentialRow)
    clock.advance(30 * DAY)
    prune_credentials(authserver.services.database, clock)
    assert [len(last_used(authserver, row)) for row in rows] == [2, 2]
    clock.advance(1)
    prune_credentials(authserver.services.database, clock)
    assert [len(last_used(authserver, row)) for row in rows] == [2, 1]
    clock.advance(DAY)
    authserver.services.maintenance.run_once()
    assert [len(last_used(authserver, row)) for row in rows] == [1, 1]
