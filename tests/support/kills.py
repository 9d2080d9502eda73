"""An installation whose commands are killed, and the invariants that must hold afterwards."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import URL, select

from gatehouse.authserver.app import Services, create_services
from gatehouse.authserver.clients.registry import load_client
from gatehouse.authserver.credentials.secrets import find_secret
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import audit_event
from gatehouse.authserver.keys.lifecycle import Transition, plan
from gatehouse.authserver.keys.rotation import policy_of
from gatehouse.authserver.keys.sealed_keys import DecryptedKeys, lifecycle_of
from gatehouse.authserver.settings import Settings
from gatehouse.shared.service import migrations
from gatehouse.shared.service.migrations import newest_revision
from support import kill_points
from support.authserver import ISSUER
from support.keys import rotation_of
from support.migrations import downgrade, with_later_revision
from support.shell import CREATE, RESOURCE, Shell

KEY_FILES = {"authserver-audit.json", "restore-mark.json", "sealing.key"}
"""What the folder of the keys contains while nothing writes to it."""

UPGRADE = """
    with op.batch_alter_table("signing_key") as batch:
        batch.add_column(sa.Column("added", sa.Integer(), nullable=True))
    op.execute("UPDATE signing_key SET added = 7")
    with op.batch_alter_table("signing_key") as batch:
        batch.alter_column("added", existing_type=sa.Integer(), nullable=False, server_default="7")
"""
DOWNGRADE = """
    with op.batch_alter_table("signing_key") as batch:
        batch.drop_column("added")
"""


@dataclass
class Tally:
    """How many kills of an operation there were, and how many inside a transaction."""

    kills: int = 0
    in_transaction: int = 0

    def __str__(self) -> str:
        return f"{self.kills} kills, {self.in_transaction} of them inside an open transaction"


@dataclass
class Killed:
    """An installation with two signing keys and a client."""

    folder: Path
    url: URL
    seed: int
    random: random.Random
    now: int = field(default_factory=lambda: int(time.time()))
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.shell = Shell(self.folder, self.url.render_as_string(hide_password=False))
        self.shell.text("init")
        self.shell.text("resource", "add", RESOURCE, "--name", "tools", "--scope", "env:read")
        created = self.shell.json(*CREATE)
        self.client_id, self.secret = created["client_id"], created["client_secret"]
        self.shell.text("key", "rotate")

    def run(
        self, *arguments: str, now: int | None = None, migrations: str | None = None, kill_at: int = 0
    ) -> tuple[int, list[bool]]:
        """Run a command, or the maintenance at a time. Return its exit code and the points that it passed.

        `migrations` is a folder of migrations to use in place of the installed ones.
        """
        log = self.folder / "killed.log"
        job = kill_points.Job(
            arguments,
            self.shell.environment,
            str(self.folder),
            str(log),
            now=now,
            migrations=migrations,
            kill_at=kill_at,
        )
        ended = kill_points.run(job)
        with log.open("a", encoding="utf-8") as file:
            file.write(ended.errors)
        return ended.code, list(ended.passed)

    def kill(self, points: list[bool], *arguments: str, now: int | None = None, migrations: str | None = None) -> None:
        """Kill a command at a random point; every second time, at a point inside an open transaction.

        A command that completes an interrupted one may have fewer points and end before: this does not count.
        """
        numbers = range(1, len(points) + 1)
        if self.tally.kills % 2 == 0:
            numbers = [number for number in numbers if points[number - 1]]  # type: ignore[assignment]
        code, passed = self.run(*arguments, now=now, migrations=migrations, kill_at=self.random.choice(numbers))
        assert code in {0, -signal.SIGKILL}, self.log()
        if code == 0:
            return
        self.tally.kills += 1
        self.tally.in_transaction += passed[-1]

    def log(self) -> str:
        return f"seed {self.seed}\n" + (self.folder / "killed.log").read_text(encoding="utf-8")[-4000:]

    @contextmanager
    def services(self) -> Iterator[Services]:
        """The parts of a server that starts now and reads everything from the database."""
        environment = self.shell.environment
        settings = Settings(
            issuer=ISSUER,
            database_url=environment["AUTHSERVER_DATABASE_URL"],
            keys_dir=environment["AUTHSERVER_KEYS_DIR"],
        )
        services = create_services(settings, lambda: self.now)
        try:
            yield services
        finally:
            services.audit.close()
            services.database.close()

    def decrypted(self) -> DecryptedKeys:
        """Return the sealed rows, after checking that all of them decrypt and one key is active."""
        with self.services() as services, services.database.read() as session:
            decrypted = rotation_of(services, lambda: self.now).sealed_keys.read(session)
        assert decrypted.undecryptable_rows == set(), self.log()
        assert [row.state for row in decrypted.key_rows].count("active") == 1, self.log()
        assert len(decrypted.peppers) == 1, self.log()
        return decrypted

    def secret_works(self, secret: str) -> bool:
        """Tell whether the client can authenticate with a secret now."""
        with self.services() as services, services.database.read() as session:
            client = load_client(session.connection(), self.client_id)
            peppers = rotation_of(services, lambda: self.now).sealed_keys.read(session).peppers
        assert client is not None
        found = find_secret(secret, client.secrets, peppers)
        return found is not None and not found.lifetime.is_inactive(self.now)

    def events(self, action: str) -> int:
        """Return the number of events of an action in the audit log."""
        with self.services() as services, services.database.read() as session:
            return len(session.execute(select(audit_event.c.id).where(audit_event.c.action == action)).all())


def rotate_keys(killed: Killed, times: int) -> None:
    """A round of maintenance applies all transitions that are due, or none; if killed, the next round applies them."""
    points: dict[tuple[str, ...], list[bool]] = {}
    while killed.tally.kills < times:
        before = killed.decrypted()
        killed.now = _next_transition(killed, before)
        with killed.services() as services:
            due = plan(killed.now, before.lifecycles(), policy_of(services.settings))
        actions = tuple(move.action for move in due)
        if actions not in points:
            # The first round of each kind is not killed, to record its points.
            code, points[actions] = killed.run(now=killed.now)
            assert code == 0, killed.log()
            _assert_applied(killed, before, due)
            continue
        killed.kill(points[actions], now=killed.now)
        if killed.decrypted().lifecycles() != before.lifecycles():
            _assert_applied(killed, before, due)
        assert killed.run(now=killed.now + 60)[0] == 0, killed.log()
        _assert_applied(killed, before, due)


def _assert_applied(killed: Killed, before: DecryptedKeys, due: tuple[Transition, ...]) -> None:
    after = killed.decrypted()
    made, gone = after.keys.keys() - before.keys.keys(), before.keys.keys() - after.keys.keys()
    assert len(made) == sum(move.action == "publish" for move in due), killed.log()
    assert gone == {move.kid for move in due if move.action == "remove"}, killed.log()
    activated = {move.kid for move in due if move.action == "activate"}
    assert not activated or activated == {key.kid for key in after.lifecycles() if key.state == "active"}, killed.log()
    assert killed.secret_works(killed.secret), killed.log()


def _next_transition(killed: Killed, decrypted: DecryptedKeys) -> int:
    with killed.services() as services:
        policy = policy_of(services.settings)
    moments: dict[str, Callable[[Any], int]] = {
        "next": policy.signs_at,
        "active": policy.successor_at,
        "retiring": policy.removed_at,
    }
    lifecycles = [lifecycle_of(row) for row in decrypted.key_rows]
    waiting = any(key.state == "next" for key in lifecycles)
    return min(moments[key.state](key) for key in lifecycles if not (key.state == "active" and waiting))


def rotate_sealing_key(killed: Killed, times: int) -> None:
    """Either sealing key may be in place; every row decrypts, and repeating the command completes the rotation."""
    arguments = ("sealing-key", "rotate", "--yes")
    code, points = killed.run(*arguments)
    assert code == 0, killed.log()
    before = killed.decrypted()
    while killed.tally.kills < times:
        killed.kill(points, *arguments)
        after = killed.decrypted()
        assert (after.keys.keys(), after.peppers) == (before.keys.keys(), before.peppers), killed.log()
        assert killed.secret_works(killed.secret), killed.log()
        if killed.random.random() < 0.5:
            assert killed.run(*arguments)[0] == 0, killed.log()
    assert killed.run(*arguments)[0] == 0, killed.log()
    assert killed.decrypted().peppers == before.peppers
    assert {path.name for path in (killed.folder / "keys").iterdir()} == KEY_FILES
    assert killed.secret_works(killed.secret)


def rotate_secret(killed: Killed, times: int) -> None:
    """Either the rotation is in the audit log and the old secret has ended, or will; or nothing has changed."""
    with_grace = ("client", "secret", "rotate", killed.client_id, "--grace-period", "7d")
    at_once = ("client", "secret", "rotate", killed.client_id, "--yes")
    points = {arguments: killed.run(*arguments)[1] for arguments in (with_grace, at_once)}
    while killed.tally.kills < times:
        secret = killed.shell.json(*at_once)["client_secret"]
        [before] = _active_secrets(killed)
        recorded = killed.events("client.secret.rotate")
        arguments = killed.random.choice([with_grace, at_once])
        killed.kill(points[arguments], *arguments)
        rotated = killed.events("client.secret.rotate") - recorded
        assert rotated in {0, 1}
        assert killed.secret_works(secret) == (arguments is with_grace or rotated == 0), killed.log()
        after = _active_secrets(killed)
        assert len(after) == (2 if rotated and arguments is with_grace else 1), killed.log()
        ends = {known["secret_id"]: known["expires_at"] for known in after}
        assert (ends.get(before["secret_id"]) is None) == (rotated == 0 or arguments is at_once), killed.log()


def _active_secrets(killed: Killed) -> list[dict[str, Any]]:
    listed = killed.shell.json("client", "secret", "list", killed.client_id)
    return [known for known in listed if known["state"] == "active"]


def migrate(killed: Killed, times: int) -> None:
    """The database is at the old revision or at the new one, and running `init` again completes the migration."""
    later = with_later_revision(Database.schema, killed.folder / "migrations", UPGRADE, DOWNGRADE)
    kids = set(killed.decrypted().keys)
    before = newest_revision(Database.schema)
    assert before is not None
    code, points = killed.run("init", migrations=later.migrations)
    assert code == 0, killed.log()
    while killed.tally.kills < times:
        downgrade(killed.url, later, before)
        assert killed.decrypted().keys.keys() == kids
        killed.kill(points, "init", migrations=later.migrations)
        assert killed.decrypted().keys.keys() == kids, killed.log()
        assert killed.run("init", migrations=later.migrations)[0] == 0, killed.log()
        with killed.services() as services:
            migrations.require_current(services.database.engine, later)
        assert killed.decrypted().keys.keys() == kids, killed.log()
        assert killed.secret_works(killed.secret)


OPERATIONS: dict[str, Callable[[Killed, int], None]] = {
    "rotation": rotate_keys,
    "sealing key rotation": rotate_sealing_key,
    "secret rotation": rotate_secret,
    "migration": migrate,
}


def killed_installation(folder: Path, url: URL) -> Killed:
    """Return an installation whose random choices can be repeated by its seed."""
    seed = random.SystemRandom().randrange(2**32)
    return Killed(folder, url, seed, random.Random(seed))
