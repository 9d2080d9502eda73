"""deploy/postgresql/create-databases.sh gives each server a database that no other role can use."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL
from support.databases import running_postgresql
from support.documents import ROOT

SERVERS = ("authserver", "resourceserver")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[URL]:
    """A PostgreSQL server of its own, because roles belong to the whole server."""
    for name in SERVERS:
        (tmp_path / f"{name}-password").write_text(f"secret-{name}\n")
    with running_postgresql(tmp_path) as postgresql:
        socket, user = postgresql.url.query["host"], postgresql.url.username
        environment = {
            "PATH": f"{postgresql.programs}:{os.environ['PATH']}",
            "PGHOST": str(socket),
            "PGUSER": str(user),
            "SECRETS": str(tmp_path),
        }
        subprocess.run(["sh", ROOT / "deploy/postgresql/create-databases.sh"], env=environment, check=True)
        yield postgresql.url


def connect(server: URL, role: str, database: str) -> psycopg.Connection:
    url = server.set(drivername="postgresql", username=role, password=f"secret-{role}", database=database)
    return psycopg.connect(url.render_as_string(hide_password=False))


@pytest.mark.threat("T-130")
def test_the_role_of_a_server_cannot_use_the_database_of_the_other(server: URL) -> None:
    """Source: review of issue 13. It could hold the advisory locks of the other server."""
    for role in SERVERS:
        with connect(server, role, role) as connection:
            connection.execute("CREATE TABLE own (id integer)")
            connection.execute("SELECT pg_advisory_xact_lock(hashtext('gatehouse.audit_checkpoint'))")
    for role, other in zip(SERVERS, reversed(SERVERS), strict=True):
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            connect(server, role, other)
