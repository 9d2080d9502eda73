"""Exports and imports in the test process, with a fake clock."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import URL, select
from werkzeug.test import TestResponse

from gatehouse.authserver.backup.exporting import write_export
from gatehouse.authserver.backup.format import Header
from gatehouse.authserver.backup.importing import ExportReader, Imported, import_installation
from gatehouse.authserver.clients.registration import set_disabled
from gatehouse.authserver.credentials.resource_credentials import create_credential
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import Base
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.service.migrations import newest_revision
from support.assertions import KeyClient
from support.authserver import OTHER_RESOURCE, RESOURCE, AuthServer, administrator, basic_header, settings_in
from support.clock import FakeClock
from support.keys import rotation_of
from support.platforms import github, gitlab
from support.workloads import DISCOVERY, WorkloadClient, trust


def export_of(
    server: AuthServer, *, keys: bool = True, audit: bool = True, file: BinaryIO | None = None, **changes: Any
) -> bytes:
    """Return the export of an installation, or write it to a file."""
    server._flush()
    target = file or BytesIO()
    header = {"schema": newest_revision(Database.schema), "issuer": server.settings.issuer, **changes}
    database = Database(server.settings.database)
    try:
        write_export(
            database,
            target,
            Header(created_at=int(server.clock()), keys=keys, audit=audit, **header),
            lambda counts: None,
            lambda done, table: None,
        )
    finally:
        database.close()
    return target.getvalue() if isinstance(target, BytesIO) else b""


def import_into(url: URL, folder: Path, document: bytes, clock: FakeClock, **changes: Any) -> Imported:
    """Import an export into a database, with the sealing key in a folder."""
    settings = settings_in(folder, database_url=url.render_as_string(hide_password=False), **changes)
    database = Database(settings.database)
    admin = administrator(settings, clock)
    try:
        reader = ExportReader(BytesIO(document), settings.issuer)
        return import_installation(settings, database, admin, reader, lambda done, table: None)
    finally:
        database.close()


@dataclass
class Moved:
    """An installation created by importing an export: a template for one server."""

    url: URL
    document: bytes
    clock: FakeClock
    keys: Path | None = None
    """The folder that its sealing key is copied from."""

    def install(self, folder: Path) -> str:
        folder.mkdir()
        if self.keys is not None:
            shutil.copytree(self.keys, folder / "keys")
        import_into(self.url, folder, self.document, self.clock)
        return self.url.render_as_string(hide_password=False)

    def discard(self) -> None:
        """Do nothing: the database belongs to the caller."""


def rows_of(url: URL) -> dict[str, list[dict[str, Any]]]:
    """Return every row of every table, in the same order on every database."""
    database = Database(url)
    try:
        with database.read() as session:
            return {
                table.name: sorted(
                    (dict(row) for row in session.execute(select(table)).mappings()),
                    key=lambda row: [
                        (len(str(row[column.name])), str(row[column.name])) for column in table.primary_key
                    ],
                )
                for table in Base.metadata.sorted_tables
            }
    finally:
        database.close()


def is_empty(url: URL) -> bool:
    """Tell whether no table of a migrated database has a row."""
    return not any(rows_of(url).values())


def with_trailer(lines: Sequence[bytes]) -> bytes:
    """Return an export with a correct last line for altered lines before it."""
    *before, last = lines
    counts = dict.fromkeys(json.loads(last)["rows"], 0)
    for line in before[1:]:
        name = json.loads(line).get("table")
        if name in counts:
            counts[name] += 1
    document = b"".join(before)
    trailer = {"rows": counts, "sha256": hashlib.sha256(document).hexdigest()}
    return document + json.dumps(trailer, separators=(",", ":")).encode() + b"\n"


class FullInstallation:
    """A server with rows in every table, and the credentials and tokens of its clients."""

    def __init__(self, server: AuthServer) -> None:
        self.server = server
        server.add_resource(OTHER_RESOURCE)
        client, secret = server.create_client(claims={"workspace_id": "wks_1"}, token_ttl=600)
        self.basic = (client.client_id, secret)
        self.token = self.issue().json["access_token"]
        self.revoked = self.issue().json["access_token"]
        assert server.http.post("/revoke", data={"token": self.revoked}, headers=_basic(self.basic)).status_code == 200
        self.keyed = KeyClient(server, SigningKey.generate("ES256"))
        self.assertion = self.keyed.assertion()
        assert self.keyed.post(self.assertion).status_code == 200
        self.workload = WorkloadClient(server, github(server.clock))
        self.platform_token = self.workload.platform.token()
        trust(server, gitlab(server.clock, name="another-not-fetched"), location=DISCOVERY, jwks=None)
        self.workload.accepted("assertion", self.platform_token)
        gone, gone_secret = server.create_client()
        self.disabled = (gone.client_id, gone_secret)
        assert self.issue(self.disabled).status_code == 200
        with server.services.database.write() as session:
            set_disabled(session, server.admin, gone.client_id, disabled=True)
            keys = server.services.keys.ring()
            created, credential = create_credential(session, server.admin, keys, RESOURCE)
            rotation_of(server.services, server.clock).publish(session)
        server.services.audit_upkeep.run_once()
        self.credential = (created.credential_id, credential)

    def on(self, server: AuthServer) -> "FullInstallation":
        """Return the same clients, using another server."""
        moved = object.__new__(FullInstallation)
        moved.__dict__ = {**self.__dict__, "server": server}
        moved.keyed = object.__new__(KeyClient)
        moved.keyed.__dict__ = {**self.keyed.__dict__, "server": server}
        moved.workload = object.__new__(WorkloadClient)
        moved.workload.__dict__ = {**self.workload.__dict__, "server": server}
        return moved

    def issue(self, basic: tuple[str, str] | None = None) -> TestResponse:
        """Request a token with a client's secret."""
        return self.server.post_token(basic=basic or self.basic)

    def is_active(self, token: str) -> bool:
        """Return whether introspection reports a token as active."""
        response = self.server.http.post("/introspect", data={"token": token}, headers=_basic(self.credential))
        assert response.status_code == 200, response.text
        active: bool = response.json["active"]
        return active


def _basic(credentials: tuple[str, str]) -> dict[str, str]:
    return {"Authorization": basic_header(*credentials)}
