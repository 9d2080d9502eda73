"""The copies of rows with which the benchmark makes an installation large."""

from contextlib import closing
from pathlib import Path

from bench.fill import CLIENT_ID, add_audit_rows, add_clients
from sqlalchemy import text
from support.authserver import AuthServer

from gatehouse.shared.service.database import sqlite_path


def database_file(authserver: AuthServer) -> Path:
    """Return the file of a server's SQLite database."""
    file = sqlite_path(authserver.settings.database)
    assert file is not None
    return file


def test_a_copied_client_gets_a_token_with_the_secret_of_its_original(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    add_clients(database_file(authserver), client.client_id, 30)
    for number in (1, 30):
        response = authserver.post_token(basic=(CLIENT_ID.format(number), secret))
        assert authserver.read_token(response)[1]["client_id"] == CLIENT_ID.format(number)
    assert authserver.post_token(basic=(CLIENT_ID.format(31), secret)).status_code == 401


def test_copied_audit_events_are_found_by_their_indexes(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    authserver.post_token(basic=(client.client_id, secret))
    [original] = authserver.audit(action="token.issue")
    add_audit_rows(database_file(authserver), "token.issue", 30)
    found = authserver.audit(action="token.issue")
    assert len({event["jti"] for event in found}) == 31
    assert {event["object"] for event in found} == {original["object"]}
    with closing(authserver.services.database.engine.connect()) as connection:
        plan = connection.execute(text("EXPLAIN QUERY PLAN SELECT * FROM audit_event WHERE jti = 'x'")).fetchall()
    assert "ix_audit_event_jti" in str(plan)
