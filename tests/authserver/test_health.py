"""/livez and /readyz."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import update
from support.assertions import KeyClient, jwks, public_jwk
from support.authserver import FORM, AuthServer
from support.http_client import http_client, run
from support.locking import locked
from werkzeug.test import TestResponse

from gatehouse.authserver.app import build_app, close_services, create_services
from gatehouse.authserver.db.models import SigningKeyRow
from gatehouse.shared.protocol.jws import SigningKey


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


REQUESTS = 16
"""More than the threads of the server."""


class Writers:
    """Requests that need the write lock of the database."""

    def __init__(self, server: AuthServer) -> None:
        self._server = server
        self._clients = [server.create_client() for _ in range(REQUESTS)]
        key = SigningKey.generate("ES256")
        self._by_key = KeyClient(server, key, jwks(public_jwk(key)))
        self._by_key.accepted()
        self._assertions = [self._by_key.assertion() for _ in range(REQUESTS)]

    def first_token(self, number: int) -> TestResponse:
        """Reserve status indices for a client."""
        client, secret = self._clients[number]
        return self._server.post_token(basic=(client.client_id, secret))

    def assertion(self, number: int) -> TestResponse:
        """Spend an assertion."""
        return self._by_key.post(self._assertions[number])

    def refusal(self, number: int) -> TestResponse:
        """Record a refusal."""
        return self._server.post_token(basic=(self._clients[number][0].client_id, "wrong"))

    def refused_introspection(self, _: int) -> TestResponse:
        """Record a refusal of an endpoint that runs in a thread."""
        return self._server.http.post("/introspect", data={"token": "x"}, content_type=FORM)


@pytest.mark.parametrize(
    ("kind", "status"), [("first_token", 200), ("assertion", 200), ("refusal", 401), ("refused_introspection", 401)]
)
def test_waiting_for_a_locked_database_delays_no_other_request(authserver: AuthServer, kind: str, status: int) -> None:
    """16 requests wait for the write lock in threads, and the event loop serves the next request."""
    request = getattr(Writers(authserver), kind)
    with ThreadPoolExecutor(REQUESTS) as pool:
        with locked(Path(str(authserver.settings.database.database))) as waiters:
            responses = [pool.submit(request, number) for number in range(REQUESTS)]
            waiters.wait_for_one()
            assert authserver.http.get("/livez").status_code == 200
            assert not any(response.done() for response in responses)
        assert run(_thread()) not in waiters.threads
    assert [response.result().status_code for response in responses] == [status] * REQUESTS


async def _thread() -> int:
    """Return the thread of the event loop."""
    return threading.get_ident()
