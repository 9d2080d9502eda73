"""Reads an export, line by line, and believes nothing of it before its last line has proven it whole."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from sqlalchemy import Table

from gatehouse.authserver.administration import Refused
from gatehouse.authserver.backup.lines import FORMAT, MAX_LINE, VERSION, Header, dump_trailer, read_row
from gatehouse.authserver.backup.rules import check_row
from gatehouse.authserver.backup.tables import tables_of
from gatehouse.authserver.db.database import Database
from gatehouse.shared.protocol import strict_json
from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.service.migrations import known_revisions, newest_revision

_MAKE_IT_ANEW = "Make it anew, or fetch it again: authserver export"


class CorruptExport(Refused):
    """The file is not as it was written. Nothing of it is imported."""

    def __init__(self, line: int, problem: str) -> None:
        problem = problem.rstrip(".")
        super().__init__(f"Line {line} of the export: {problem}. Nothing was imported. {_MAKE_IT_ANEW}")


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A row, and where it stands in the file."""

    line: int
    table: Table
    values: dict[str, Any]


class ExportReader:
    """Reads one file once, from its beginning."""

    def __init__(self, file: BinaryIO, issuer: str) -> None:
        """Read the header.

        Raises:
            Refused: this is no export, or one of another version, schema or issuer.
        """
        self._file = file
        self._line = 0
        self._digest = hashlib.sha256()
        self.header = self._read_header(issuer)
        self.counts = {table.name: 0 for table in tables_of(keys=self.header.keys, audit=self.header.audit)}

    def rows(self) -> Iterator[ReadRow]:
        """Yield every row. The end of the iteration is the proof that all came as they were written.

        Raises:
            CorruptExport: a line is not as `write_export` writes it, or lines are missing, added, or out of order.
        """
        tables = {table.name: table for table in tables_of(keys=self.header.keys, audit=self.header.audit)}
        order = list(tables)
        at = 0
        while (members := self._next_row()) is not None:
            name, values = members["table"], members["row"]
            if not isinstance(name, str) or name not in order:
                raise self._damaged(f"the export has no table {quoted(str(name))}")
            if order.index(name) < at:
                raise self._damaged(f"a row of {name} stands behind those of {order[at]}")
            if not isinstance(values, dict):
                raise self._damaged("'row' is no object")
            at = order.index(name)
            row = self._read_row(tables[name], values)
            self.counts[name] += 1
            yield row

    def _read_row(self, table: Table, members: dict[str, Any]) -> ReadRow:
        try:
            values = read_row(table, members)
            check_row(table.name, values)
        except (Refused, ValueError) as error:
            raise self._damaged(str(error)) from None
        return ReadRow(self._line, table, values)

    def _next_row(self) -> dict[str, Any] | None:
        """Return the members of the next line, or None after the trailer, if that is right."""
        line, members = self._next_line()
        if members.keys() == {"table", "row"}:
            self._digest.update(line)
            return members
        if members.keys() != {"rows", "sha256"}:
            raise self._damaged("is neither a row nor the last line")
        if members["rows"] != self.counts:
            raise self._damaged("the numbers of rows are not those of the file")
        if line != dump_trailer(self.counts, self._digest.hexdigest()):
            raise self._damaged("the digest is not that of the file")
        if self._file.read(1):
            raise self._damaged("there is something behind the last line")
        return None

    def _next_line(self) -> tuple[bytes, dict[str, Any]]:
        self._line += 1
        line = self._file.readline(MAX_LINE + 1)
        if len(line) > MAX_LINE:
            raise self._damaged(f"is longer than {MAX_LINE} bytes")
        if not line.endswith(b"\n"):
            raise self._damaged("the file ends here, before its last line")
        try:
            members = strict_json.loads(line)
        except strict_json.InvalidJson as error:
            raise self._damaged(str(error)) from None
        if not isinstance(members, dict):
            raise self._damaged("is no JSON object")
        return line, members

    def _read_header(self, issuer: str) -> Header:
        line, members = self._next_line()
        self._digest.update(line)
        if members.get("format") != FORMAT:
            raise self._damaged(f"is not the first line of an export, which names its format, {FORMAT}")
        if members.get("version") != VERSION:
            raise Refused(
                f"The export is of format version {quoted(str(members.get('version')))}, and this program reads "
                f"{VERSION}. Import it with the version of the program that made it."
            )
        header = self._header_of(members)
        _check_schema(header.schema)
        if header.issuer != issuer:
            raise Refused(
                f"The export is of the issuer {quoted(header.issuer)}, and AUTHSERVER_ISSUER is {issuer}. Tokens, keys "
                "and assertions are bound to their issuer: set AUTHSERVER_ISSUER to that of the export."
            )
        return header

    def _header_of(self, members: dict[str, Any]) -> Header:
        types: dict[str, type] = {"schema": str, "issuer": str, "created_at": int, "keys": bool, "audit": bool}
        # Not isinstance, to which true is a number.
        named = {name: members[name] for name, type_ in types.items() if type(members.get(name)) is type_}
        if named.keys() != types.keys() or members.keys() != {"format", "version", *types}:
            raise self._damaged("the header is not as an export of this version has it")
        return Header(**named)

    def _damaged(self, problem: str) -> CorruptExport:
        return CorruptExport(self._line, problem)


def _check_schema(revision: str) -> None:
    if revision == newest_revision(Database.schema):
        return
    if revision in known_revisions(Database.schema):
        raise Refused(
            f"The export is of an older schema, {revision}. Bring the installation that it is of up to date with this "
            "version of the program, by: authserver init. Then export it again."
        )
    raise Refused(
        f"The export is of a schema that this version does not know, {quoted(revision)}. Import it with the version of "
        "the program that made it, or a newer one."
    )
