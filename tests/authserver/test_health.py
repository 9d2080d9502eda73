"""/livez and /readyz."""

import pytest
from sqlalchemy import update
from support.authserver import AuthServer
from support.http_client import http_client

from gatehouse.authserver.app import build_app, close_services, create_services
from gatehouse.authserver.db.models import SigningKeyRow


def test_a_server_that_can_issue_tokens_is_ready(authserver: AuthServer) -> None:
    response = authserver.http.get("/readyz")
    assert (response.status_code, response.headers["Cache-Control"]) == (200, "no-store")
    assert response.json == {"status": "ok", "database": "ok", "signing_key": "ok"}


@pytest.mark.both_databases
def test_a_server_without_its_database_is_live_but_not_ready(authserver: AuthServer) -> None:
    assert authserver.http.get("/readyz").status_code == 200
    authserver.take_database_away()
    response = authserver.http.get("/readyz")
    assert (response.status_code, response.headers["Cache-Control"]) == (503, "no-store")
    assert response.json["status"] == "unavailable"
    assert response.json["database"] == "does not answer"
    assert str(authserver.folder) not in response.text
    assert authserver.http.get("/livez").json == {"status": "ok"}


def test_a_server_that_cannot_decrypt_its_keys_is_not_ready(authserver: AuthServer) -> None:
    assert authserver.http.get("/readyz").status_code == 200
    with authserver.services.database.write() as session:
        session.execute(update(SigningKeyRow).values(sealed=b""))
    services = create_services(authserver.settings, authserver.clock)
    response = http_client(build_app(services)).get("/readyz")
    close_services(services)
    assert response.status_code == 503
    assert response.json == {"status": "unavailable", "database": "ok", "signing_key": "none is usable"}


@pytest.mark.threat("T-138")
def test_a_server_whose_database_accepts_no_writes_is_not_ready_until_it_does(authserver: AuthServer) -> None:
    """Reading still works, and the reason is for the operator only."""
    database = authserver.services.database
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE audit_event RENAME TO elsewhere")
    assert authserver.post_token({}).status_code == 503
    response = authserver.http.get("/readyz")
    assert (response.status_code, response.json["database"]) == (503, "does not accept writes")
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO audit_event")
    assert authserver.post_token({}).status_code == 401
    assert authserver.http.get("/readyz").status_code == 200
