"""`check` of the database: it must accept writes, and those of a running server must be recent."""

from contextlib import closing
from socket import create_server

import pytest
from sqlalchemy.exc import OperationalError
from support.authserver import AuthServer

from gatehouse.shared.service import deadline
from gatehouse.shared.service.check_command import database_steps
from gatehouse.shared.service.cli import Refusal
from gatehouse.shared.service.heartbeat import MAX_AGE, SERVER, write_heartbeat

pytestmark = pytest.mark.both_databases


def check(authserver: AuthServer, bind: str = "127.0.0.1:0") -> str:
    settings = authserver.settings.model_copy(update={"bind": bind})
    (_, step), *_ = database_steps(settings, authserver.services.database, authserver.clock)
    return step()


def test_the_age_of_the_last_heartbeat_of_a_server_is_reported(authserver: AuthServer) -> None:
    assert check(authserver).endswith("; no server has used it yet")
    with authserver.services.database.engine.begin() as connection:
        write_heartbeat(connection, SERVER, authserver.clock())
    authserver.clock.advance(3)
    assert check(authserver).endswith("; the last heartbeat of a server is 3 s old")
    authserver.clock.advance(3600)
    assert check(authserver).endswith("; the last heartbeat of a server is 3603 s old"), "it may be stopped"


def test_a_running_server_must_have_written_lately(authserver: AuthServer) -> None:
    with authserver.services.database.engine.begin() as connection:
        write_heartbeat(connection, SERVER, authserver.clock())
    with closing(create_server(("127.0.0.1", 0))) as listening:
        bind = f"127.0.0.1:{listening.getsockname()[1]}"
        authserver.clock.advance(MAX_AGE)
        assert check(authserver, bind).endswith("is 15 s old")
        authserver.clock.advance(1)
        with pytest.raises(Refusal, match=f"A process listens on {bind}, and .* is 16 s old"):
            check(authserver, bind)


@pytest.mark.only_on("sqlite")
def test_a_database_that_accepts_no_writes_fails_the_check(authserver: AuthServer) -> None:
    with (
        authserver.services.database.engine.begin(),
        deadline.renewed(0),
        pytest.raises(OperationalError, match="locked"),
    ):
        check(authserver)
