"""One audit log of two nodes on PostgreSQL: verification is silent for all that happens, and then finds tampering."""

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError
from support.authserver import AuthServer, administrator, prepare_installation
from support.clock import FakeClock
from support.databases import PostgreSQL, running_postgresql
from support.waiting import wait_until

from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.db.models import audit_tables
from gatehouse.shared.service.audit.events import AuditAction
from gatehouse.shared.service.audit.keys import AuditKeys, rotate_audit_keys
from gatehouse.shared.service.audit.verification import Verification, verify_audit
from gatehouse.shared.service.database import SNAPSHOT

HOUR = 3600
DAY = 24 * HOUR

_WRITING = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from gatehouse.authserver.app import create_services
from gatehouse.shared.service.audit.events import AuditAction, AuditEvent
from support.authserver import settings_in
services = create_services(settings_in(Path({folder!r}), database_url={url!r}), lambda: {now})
number = 0
while True:
    number += 1
    services.audit.record(AuditEvent(AuditAction.TOKEN_ISSUE, "allowed", "killed"))
    with services.database.write() as session:
        services.audit.rows.record(session, AuditEvent(AuditAction.CLIENT_UPDATE, "allowed", "killed"))
    if number % 10 == 0:
        print(number, flush=True)
"""


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    """A PostgreSQL server of its own, because it is stopped."""
    with running_postgresql(tmp_path_factory.getbasetemp()) as server:
        yield server


class Node(AuthServer):
    """A node of an installation, with a copy of its keys."""

    def __init__(self, folder: Path, keys: Path, url: str, clock: FakeClock) -> None:
        shutil.copytree(keys, folder / "keys")
        self._url = url
        super().__init__(folder, self, clock, audit_retention=1)

    def install(self, _: Path) -> str:
        return self._url

    def work(self, client: Client, secret: str) -> None:
        """Issue tokens, refuse some, and change something."""
        for _ in range(3):
            assert self.post_token(basic=(client.client_id, secret)).status_code == 200
            assert self.post_token(basic=(client.client_id, "wrong")).status_code == 401
            self.add_resource(f"https://{uuid4()}.example.com/mcp")

    def rotate_key(self) -> None:
        """Rotate the audit key in the file of this node, as `audit key rotate` does."""
        kid = rotate_audit_keys(self.settings.audit_keys, int(self.clock()) + HOUR)
        self.admin = administrator(self.settings, self.clock)
        with self.services.database.write() as session:
            self.admin.record(session, AuditAction.AUDIT_KEY_ROTATE, kid)

    def copy_keys(self, other: "Node") -> None:
        """Copy the audit key file of another node."""
        shutil.copyfile(other.settings.audit_keys, self.settings.audit_keys)
        self.admin = administrator(self.settings, self.clock)


class TwoNodes:
    def __init__(self, folder: Path, url: str, clock: FakeClock) -> None:
        self.clock = clock
        prepare_installation(folder / "installation", url)
        keys = folder / "installation" / "keys"
        self.first, self.second = (Node(folder / name, keys, url, clock) for name in ("first", "second"))
        self.client, self.secret = self.first.create_client()

    @property
    def nodes(self) -> tuple[Node, Node]:
        return self.first, self.second

    def work(self) -> None:
        """Let both nodes work, and one of them write the checkpoint of the minute."""
        for node in self.nodes:
            node.work(self.client, self.secret)
        self.checkpoint()

    def checkpoint(self) -> None:
        """Let one of the nodes write a checkpoint of all events."""
        self.flush()
        self.clock.advance(61)
        for node in self.nodes:
            node.services.audit_upkeep.run_once()

    def flush(self) -> None:
        """Wait until both nodes have written what they recorded."""
        for node in self.nodes:
            node.audit()

    @property
    def keys(self) -> AuditKeys:
        return AuditKeys.read(self.first.settings.audit_keys)

    def verify(self) -> Verification:
        self.flush()
        engine = self.first.services.database.engine.execution_options(**SNAPSHOT)
        with engine.connect() as connection:
            return verify_audit(connection, audit_tables, self.keys)

    def close(self) -> None:
        for node in self.nodes:
            node.close()


@pytest.fixture
def log(server: PostgreSQL, tmp_path: Path, clock: FakeClock) -> Iterator[TwoNodes]:
    url = server.create_database().render_as_string(hide_password=False)
    nodes = TwoNodes(tmp_path, url, clock)
    yield nodes
    nodes.close()


def roll_back(log: TwoNodes) -> None:
    for node in log.nodes:
        with suppress(RuntimeError), node.services.database.write() as session:
            node.admin.record(session, AuditAction.RESOURCE_ADD, "rolled back")
            raise RuntimeError


def lose_the_database(log: TwoNodes, server: PostgreSQL) -> None:
    basic = (log.client.client_id, log.secret)
    for node in log.nodes:
        # Each node remembers the client for a while.
        assert node.post_token(basic=basic).status_code == 200
        node.audit()
    server.stop()
    for node in log.nodes:
        # The event waits in memory until the outage ends.
        assert node.post_token(basic=basic).status_code == 200
        with pytest.raises(OperationalError):
            node.add_resource("https://lost.example.com/mcp")
        node.services.audit_upkeep.run_once()
        wait_until(lambda node=node: not node.services.audit.available)  # type: ignore[misc]
        assert node.post_token(basic=basic).status_code == 503
    server.start()
    for node in log.nodes:
        wait_until(lambda node=node: node.services.audit.available)  # type: ignore[misc]


def kill_a_writer(log: TwoNodes) -> None:
    node = log.second
    program = textwrap.dedent(_WRITING).format(
        path=sys.path, folder=str(node.folder), url=node.install(node.folder), now=log.clock()
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(2):
            assert process.stdout.readline()
        process.kill()


def prune(log: TwoNodes) -> None:
    """As the retention of a day does."""
    before = log.verify().events
    log.clock.advance(3 * DAY)
    log.work()
    assert log.verify().events < before


def rotate_the_key(log: TwoNodes) -> None:
    """The second node has the new key later."""
    log.first.rotate_key()
    log.work()
    log.second.copy_keys(log.first)
    log.work()
    log.clock.advance(HOUR)


TAMPERING = {
    "the first event is altered": "UPDATE audit_event SET actor = 'x' WHERE id = (SELECT min(id) FROM audit_event)",
    "the first event is removed": "DELETE FROM audit_event WHERE id = (SELECT min(id) FROM audit_event)",
    "a middle event is altered": "UPDATE audit_event SET outcome = 'allowed' WHERE id = {middle}",
    "a middle event is removed": "DELETE FROM audit_event WHERE id = {middle}",
    "the last event is altered": "UPDATE audit_event SET time = time + 1 WHERE id = (SELECT max(id) FROM audit_event)",
    "the last event is removed": "DELETE FROM audit_event WHERE id = (SELECT max(id) FROM audit_event)",
    "a whole writer is removed": "DELETE FROM audit_event WHERE writer = '{writer}'",
    "a checkpoint is altered": "UPDATE audit_checkpoint SET time = time + 1 WHERE number = {number}",
    "a checkpoint is removed": "DELETE FROM audit_checkpoint WHERE number = {number}",
}


def found_after(connection: Connection, keys: AuditKeys, statement: str) -> str | None:
    """Return what verification finds after a statement, and undo it."""
    assert connection.execute(text(statement)).rowcount > 0
    finding = verify_audit(connection, audit_tables, keys).finding
    connection.rollback()
    return finding


@pytest.mark.threat("T-149")
def test_verification_is_silent_until_somebody_tampers(log: TwoNodes, server: PostgreSQL) -> None:
    """Source: issue 13."""
    log.work()
    assert log.verify().finding is None
    for event in (
        roll_back,
        lambda log: lose_the_database(log, server),
        kill_a_writer,
        prune,
        rotate_the_key,
        kill_a_writer,
        roll_back,
    ):
        event(log)
        assert log.verify().finding is None
        log.work()
        assert log.verify().finding is None
    log.checkpoint()
    with log.first.services.database.engine.connect() as connection:
        ids = connection.scalars(text("SELECT id FROM audit_event WHERE outcome = 'refused' ORDER BY id")).all()
        writers = connection.execute(text("SELECT writer, max(kid) FROM audit_event GROUP BY writer")).all()
        number = connection.scalar(text("SELECT max(number) - 1 FROM audit_checkpoint"))
        connection.rollback()
        assert len({kid for _, kid in writers}) == 2
        assert len(writers) > 4
        for name, statement in TAMPERING.items():
            for writer, _ in writers if "writer" in name else writers[:1]:
                tampered = statement.format(middle=ids[len(ids) // 2], writer=writer, number=number)
                assert found_after(connection, log.keys, tampered) is not None, name
    assert log.verify().finding is None
