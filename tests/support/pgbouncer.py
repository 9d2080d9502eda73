"""A real PgBouncer in front of a test's PostgreSQL server."""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local_stack import free_port
from sqlalchemy import URL

from support.waiting import wait_until

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

_CONFIGURATION = """
[databases]
* = host={socket} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
query_wait_timeout = 5
{more}
"""


@contextmanager
def running_pgbouncer(server: URL, folder: Path, mode: str, *, size: int = 4, more: str = "") -> Iterator[URL]:
    """Run a pooler of `size` connections for each database of a server, and yield its URL without a database."""
    assert PGBOUNCER is not None, "install pgbouncer"
    place = Path(str(server.query["host"]))
    port = free_port()
    configuration = folder / "pgbouncer.ini"
    text = _CONFIGURATION.format(socket=place, user=server.username, port=port, mode=mode, size=size, more=more)
    configuration.write_text(text, encoding="ascii")
    command = [PGBOUNCER, str(configuration)]
    if os.geteuid() == 0:
        # It refuses to run as root. The owner of the server's socket can connect to it.
        command[1:1] = ["-u", pwd.getpwuid(place.stat().st_uid).pw_name]
    with (folder / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
    try:
        wait_until(lambda: process.poll() is not None or _listens(port))
        assert process.poll() is None, (folder / "pgbouncer.log").read_text(encoding="utf-8")
        yield URL.create("postgresql", username=server.username, host="127.0.0.1", port=port)
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
