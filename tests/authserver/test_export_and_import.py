"""Moving an installation from one database to another with export and import."""

import itertools
import json
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
from sqlalchemy import URL, insert
from support.audit import verification
from support.authserver import AuthServer
from support.clock import FakeClock
from support.databases import PostgreSQL
from support.transfer import FullInstallation, Moved, export_of, import_into, is_empty, rows_of

from gatehouse.authserver.backup.exporting import PART_OF, Part
from gatehouse.authserver.backup.format import READERS
from gatehouse.authserver.backup.importing import Imported
from gatehouse.authserver.db.models import Base, audit_event, audit_tables
from gatehouse.authserver.maintenance import LEASE, has_leader
from gatehouse.shared.protocol.jws import read_header
from gatehouse.shared.protocol.key_sets import parse_key_set
from gatehouse.shared.protocol.status_list import LIST_SIZE
from gatehouse.shared.service.administrator import CommandRefused
from gatehouse.shared.service.audit.chain import LINKED
from gatehouse.shared.service.audit.events import AuditEvent
from gatehouse.shared.service.audit.keys import AuditKeys
from gatehouse.shared.service.database import parse_database_url

pytestmark = pytest.mark.both_databases

DAY = 86400
EVENTS = 3000


@pytest.fixture(params=["sqlite", "postgresql"])
def other_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[URL]:
    """An empty database of each backend, independent of the backend of the first."""
    if request.param == "sqlite":
        yield parse_database_url(f"sqlite:///{tmp_path}/other/var/moved.db")
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    url = server.create_database()
    yield url
    server.drop_database(url)


@pytest.fixture
def full(authserver: AuthServer) -> FullInstallation:
    return FullInstallation(authserver)


@pytest.fixture
def moved(full: FullInstallation, other_database: URL, tmp_path: Path) -> Iterator[FullInstallation]:
    """The same installation on another database, with its keys."""
    source = full.server
    template = Moved(other_database, export_of(source), source.clock, source.settings.keys_dir)
    server = AuthServer(tmp_path / "moved", template, source.clock)
    yield full.on(server)
    server.close()


@pytest.fixture
def without_keys(full: FullInstallation, other_database: URL, tmp_path: Path) -> Iterator[FullInstallation]:
    """The same installation on another database, without its keys."""
    source = full.server
    template = Moved(other_database, export_of(source, keys=False), source.clock)
    server = AuthServer(tmp_path / "moved", template, source.clock)
    yield full.on(server)
    server.close()


def test_the_format_covers_every_table_and_column_type() -> None:
    assert set(PART_OF) == set(Base.metadata.tables)
    for table in Base.metadata.sorted_tables:
        for column in table.columns:
            assert isinstance(column.type, tuple(READERS)), f"{table.name}.{column.name}"


def test_every_row_is_imported_unchanged(full: FullInstallation, moved: FullInstallation) -> None:
    before, after = (rows_of(installation.server.settings.database) for installation in (full, moved))
    exported = {name for name, part in PART_OF.items() if part is not Part.NEVER}
    assert [name for name in exported if not before[name]] == [], "every table has a row"
    known = len(before["audit_event"])
    imported = after["audit_event"][known:]
    after["audit_event"] = after["audit_event"][:known]
    # The bits change: indices that the exported installation had not reserved are set.
    closed = [{**row, "next_index": LIST_SIZE, "version": row["version"] + 1} for row in before["status_list"]]
    fresh = [row for row in after["status_list"] if row not in closed]
    assert [row["next_index"] for row in fresh] == [0], (
        "no index is reserved that the exported installation may have reserved"
    )
    before["status_list"], after["status_list"] = closed, [row for row in after["status_list"] if row in closed]
    assert {name: after[name] for name in exported} == {name: before[name] for name in exported}
    assert imported[0]["action"] == "installation.import"
    assert imported[0]["actor"] == "admin:tester"
    assert imported[0]["detail"]["rows"] == {name: len(before[name]) for name in exported}
    assert imported[0]["id"] > before["audit_event"][-1]["id"]


def test_the_imported_audit_log_verifies_with_its_keys(full: FullInstallation, moved: FullInstallation) -> None:
    for installation in (full, moved):
        server = installation.server
        found = verification(server.services.database.engine, audit_tables, AuditKeys.read(server.settings.audit_keys))
        assert found.finding is None
        assert found.events > 10
        assert found.checkpoints == 1


def test_without_its_keys_the_imported_audit_log_names_the_missing_one(without_keys: FullInstallation) -> None:
    server = without_keys.server
    found = verification(server.services.database.engine, audit_tables, AuditKeys.read(server.settings.audit_keys))
    assert found.finding is not None
    assert "which is not in the audit key file" in found.finding


@pytest.mark.threat("T-094")
def test_with_keys_credentials_work_and_revoked_tokens_stay_revoked(
    full: FullInstallation, moved: FullInstallation
) -> None:
    assert full.is_active(full.token)
    assert moved.is_active(moved.token)
    assert not moved.is_active(moved.revoked)
    assert moved.issue().status_code == 200
    assert moved.issue(moved.disabled).status_code == 401
    moved.keyed.accepted()
    moved.keyed.refused(moved.keyed.post(moved.assertion), "assertion: jti was used before")
    moved.workload.accepted("grant")
    moved.workload.refused("assertion", moved.platform_token, "platform token: it was used before")


def test_with_keys_an_earlier_token_verifies_with_the_published_keys(
    moved: FullInstallation,
) -> None:
    kid = read_header(moved.token).kid
    assert kid in parse_key_set(moved.server.http.get("/.well-known/jwks.json").data)
    fresh = moved.issue().json["access_token"]
    assert read_header(fresh).kid == kid
    assert moved.is_active(fresh)


def test_reserved_indices_are_not_reserved_again(full: FullInstallation, moved: FullInstallation) -> None:
    """No bit that was reserved before the export is reserved for another token after the import."""
    before = {(row["list_id"], row["start"]) for row in rows_of(full.server.settings.database)["status_block"]}
    assert moved.issue().status_code == 200
    blocks = rows_of(moved.server.settings.database)["status_block"]
    assert {(row["list_id"], row["start"]) for row in blocks} > before
    spans = sorted((row["list_id"], row["start"], row["start"] + row["size"]) for row in blocks)
    assert all(one[0] != next_[0] or one[2] <= next_[1] for one, next_ in itertools.pairwise(spans))


@pytest.mark.threat("T-091")
def test_an_export_holds_private_material_only_on_request(full: FullInstallation) -> None:
    documents = {keys: export_of(full.server, keys=keys) for keys in (False, True)}
    rows = rows_of(full.server.settings.database)
    private = [name for name, part in PART_OF.items() if part is Part.KEYS]
    assert private
    for name in private:
        assert rows[name], name
        line = f'{{"table":"{name}"'.encode()
        assert line in documents[True]
        assert line not in documents[False]
        assert name not in json.loads(documents[False].splitlines()[-1])["rows"]
    for document in documents.values():
        for secret in (full.basic[1], full.disabled[1], full.credential[1]):
            assert secret.encode() not in document
    assert (full.server.settings.keys_dir / "sealing.key").read_bytes().strip() not in documents[True]


def test_without_keys_only_clients_with_a_secret_need_a_new_one(
    full: FullInstallation, without_keys: FullInstallation
) -> None:
    without_keys.workload.accepted("grant")
    without_keys.workload.refused("grant", without_keys.platform_token, "platform token: it was used before")
    without_keys.keyed.accepted()
    without_keys.keyed.refused(without_keys.keyed.post(without_keys.assertion), "assertion: jti was used before")
    assert without_keys.issue().status_code == 401
    published = parse_key_set(without_keys.server.http.get("/.well-known/jwks.json").data)
    assert read_header(full.token).kid not in published
    after = rows_of(without_keys.server.settings.database)
    assert after["revoked_token"] == rows_of(full.server.settings.database)["revoked_token"] != []
    actions = [event["action"] for event in after["audit_event"]]
    assert actions[actions.index("installation.import") + 1] == "key.create"


def test_an_import_returns_new_keys_and_the_clients_without_a_secret(full: FullInstallation, tmp_path: Path) -> None:
    outcomes = {}
    for keys in (True, False):
        folder = tmp_path / f"keys-{keys}"
        folder.mkdir()
        if keys:
            (folder / "keys").symlink_to(full.server.settings.keys_dir)
        url = parse_database_url(f"sqlite:///{folder}/moved.db")
        outcomes[keys] = import_into(url, folder, export_of(full.server, keys=keys, audit=keys), full.server.clock)
    assert (outcomes[True].created, outcomes[True].without_secret) == ([], 0)
    assert (len(outcomes[False].created), outcomes[False].without_secret) == (1, 2)
    assert "audit_event" not in outcomes[False].rows


@pytest.mark.threat("T-097")
def test_an_old_export_never_signs_with_an_expired_key(
    full: FullInstallation, clock: FakeClock, empty_database: URL, tmp_path: Path
) -> None:
    document, kid = export_of(full.server), read_header(full.issue().json["access_token"]).kid
    clock.advance(60 * DAY)
    server = AuthServer(
        tmp_path / "moved", Moved(empty_database, document, clock, full.server.settings.keys_dir), clock
    )
    later = full.on(server)
    old = {row["kid"] for row in rows_of(full.server.settings.database)["signing_key"]}
    assert kid in old
    assert read_header(later.issue().json["access_token"]).kid not in old
    server.close()


def test_an_export_is_a_snapshot_of_a_changing_database(full: FullInstallation) -> None:
    class Changing(BytesIO):
        """Registers another client once the first row has been read."""

        def write(self, line: bytes) -> int:  # type: ignore[override]
            if line.startswith(b'{"table"') and not created:
                created.append(full.server.create_client()[0].client_id)
            return super().write(line)

    created: list[str] = []
    clients = len(rows_of(full.server.settings.database)["client"])
    document = export_of(full.server, file=Changing())
    [client_id] = created
    assert client_id.encode() not in document
    assert json.loads(document.splitlines()[-1])["rows"]["client"] == clients


@contextmanager
def peak_of_memory() -> Iterator[list[int]]:
    """Measure the peak of allocated bytes while the block runs."""
    peak: list[int] = []
    tracemalloc.start()
    try:
        yield peak
        peak.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


def test_the_memory_use_does_not_grow_with_the_audit_log(
    authserver: AuthServer, clock: FakeClock, empty_database: URL, tmp_path: Path
) -> None:
    """The limits are those of 500 rows at a time, which the log has several times over."""
    rows = authserver.services.audit.rows
    with authserver.services.database.write() as session:
        row = rows.row(AuditEvent("token.issue", "allowed", reason="long " * 200))
        [linked], _ = rows.chains.extend(rows.chains.new(), [row])
        values = dict(zip(LINKED, linked, strict=True)) | {"detail": {}}
        session.execute(insert(audit_event), [values] * EVENTS)
    path = tmp_path / "export.jsonl"
    with path.open("wb") as file, peak_of_memory() as exporting:
        export_of(authserver, file=file)
    document = path.read_bytes()
    assert len(document) > 3_500_000
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "keys").symlink_to(authserver.settings.keys_dir)
    with peak_of_memory() as importing:
        imported = import_into(empty_database, tmp_path / "moved", document, clock)
    assert imported.rows["audit_event"] > EVENTS
    assert max(*exporting, *importing) < 3_200_000


@pytest.mark.threat("T-096")
def test_of_two_concurrent_imports_one_succeeds(
    full: FullInstallation, clock: FakeClock, empty_database: URL, tmp_path: Path
) -> None:
    document = export_of(full.server)
    folder = tmp_path / "moved"
    folder.mkdir()
    (folder / "keys").symlink_to(full.server.settings.keys_dir)

    def attempt(_: int) -> Imported | CommandRefused:
        try:
            return import_into(empty_database, folder, document, clock)
        except CommandRefused as refused:
            return refused

    with ThreadPoolExecutor(2) as threads:
        outcomes = sorted(threads.map(attempt, range(2)), key=lambda outcome: isinstance(outcome, CommandRefused))
    assert isinstance(outcomes[0], Imported)
    assert "is not empty" in str(outcomes[1])
    assert len(rows_of(empty_database)["client"]) == len(rows_of(full.server.settings.database)["client"])


def test_nothing_is_imported_if_the_keys_do_not_decrypt(
    full: FullInstallation, clock: FakeClock, empty_database: URL, tmp_path: Path
) -> None:
    document = export_of(full.server)
    folder = tmp_path / "moved"
    with pytest.raises(
        CommandRefused, match=r"There is no sealing key.*Put the sealing key .* at .*moved/keys/sealing\.key"
    ):
        import_into(empty_database, folder, document, clock)
    (folder / "keys").mkdir(parents=True, mode=0o700)
    path = folder / "keys" / "sealing.key"
    path.touch(mode=0o600)
    path.write_text("A" * 43)
    with pytest.raises(CommandRefused, match=r"sealed with another sealing key.*Nothing was imported"):
        import_into(empty_database, folder, document, clock)
    assert is_empty(empty_database)
    path.write_bytes((full.server.settings.keys_dir / "sealing.key").read_bytes())
    import_into(empty_database, folder, document, clock)
    assert not is_empty(empty_database)


def test_a_running_server_is_detected_until_its_lease_expires(authserver: AuthServer) -> None:
    def is_detected() -> bool:
        with authserver.services.database.read() as session:
            return has_leader(session, int(authserver.clock()))

    assert not is_detected()
    assert authserver.services.maintenance.run_once()
    assert is_detected()
    authserver.clock.advance(LEASE)
    assert not is_detected()
