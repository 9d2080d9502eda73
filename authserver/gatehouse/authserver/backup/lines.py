"""The lines of an export (JSON Lines, in ASCII): a header, one line for each row, and a trailer.

Bytes are base64url without padding; times are seconds since the epoch, of audit events milliseconds.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Column, Integer, LargeBinary, String, Table

from gatehouse.shared.protocol import base64url
from gatehouse.shared.protocol.numeric_date import MAX_NUMERIC_DATE

FORMAT = "gatehouse-authserver-export"
VERSION = 1

MAX_LINE = 16 * 1024 * 1024
"""Bytes of a line, its end included. The longest is an audit event that names a hundred thousand clients."""

_MAX_INTEGER = 2**53 - 1
"""What every reader of JSON reads alike (RFC 8259 6). As the id of an audit event it leaves room for further ones."""

_MAX_INT32 = 2**30 - 1
"""Half of what PostgreSQL takes: what is counted has room to be counted on, or a client could not be disabled."""

_MAX_DEPTH = 32
"""Of JSON in a column."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the first line says."""

    schema: str
    """The revision of the database that it was made from."""
    issuer: str
    created_at: int
    keys: bool
    """Whether signing keys, peppers and what depends on them are in it."""
    audit: bool

    def to_json(self) -> dict[str, Any]:
        """Return the members of the line."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "schema": self.schema,
            "issuer": self.issuer,
            "created_at": self.created_at,
            "keys": self.keys,
            "audit": self.audit,
        }


def dump(members: Mapping[str, Any]) -> bytes:
    """Return a line."""
    return json.dumps(members, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def dump_row(table: Table, row: Mapping[str, Any]) -> bytes:
    """Return the line of a row."""
    return dump({"table": table.name, "row": {name: _plain(value) for name, value in row.items()}})


def dump_trailer(counts: Mapping[str, int], digest: str) -> bytes:
    """Return the last line: how many rows each table has, and the SHA-256 of every line before."""
    return dump({"rows": dict(counts), "sha256": digest})


def _plain(value: Any) -> Any:
    return base64url.encode(value) if isinstance(value, bytes) else value


def read_row(table: Table, members: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row that `dump_row` wrote, judged by the types of its columns, which SQLite itself does not enforce.

    Raises:
        ValueError: a column is missing or unknown, or a value is not of its column's type.
    """
    if surplus := sorted(members.keys() - set(table.columns.keys())):
        raise ValueError(f"{table.name} has no such column: {surplus[0][:64]!a}")
    row = {}
    for column in table.columns:
        if column.name not in members:
            raise ValueError(f"{table.name}.{column.name} is missing")
        try:
            row[column.name] = _read_value(column, members[column.name])
        except ValueError as error:
            raise ValueError(f"{table.name}.{column.name} {error}") from None
    return row


def _read_value(column: Column[Any], value: Any) -> Any:
    if value is None and column.nullable:
        return None
    return next(read for type_, read in _READERS.items() if isinstance(column.type, type_))(column, value)


def _read_bytes(column: Column[Any], value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError("is not base64url")  # noqa: TRY004 - one kind of error for the caller
    try:
        data = base64url.decode(value)
    except base64url.InvalidBase64url as error:
        raise ValueError(f"is {error}") from None
    length = column.type.length  # type: ignore[attr-defined]
    if length is not None and len(data) != length:
        raise ValueError(f"is not of {length} bytes")
    return data


def _read_text(column: Column[Any], value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("is not a text without NUL")
    length = column.type.length  # type: ignore[attr-defined]
    if length is not None and len(value) > length:
        raise ValueError(f"is longer than {length} characters")
    return value


def _read_boolean(_: Column[Any], value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is neither true nor false")  # noqa: TRY004 - one kind of error for the caller
    return value


def _read_integer(column: Column[Any], value: Any) -> int:
    limit = _MAX_INTEGER if isinstance(column.type, BigInteger) else _MAX_INT32
    if column.name.endswith("_at"):
        limit = MAX_NUMERIC_DATE
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
        raise ValueError(f"is not a whole number from 0 to {limit}")
    return value


def _read_json(_: Column[Any], value: Any) -> Any:
    if value is None or _is_deeper(value, _MAX_DEPTH):
        raise ValueError(f"is null, or JSON of more than {_MAX_DEPTH} levels")
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return bool(items) and (levels == 0 or any(_is_deeper(item, levels - 1) for item in items))


_READERS: Mapping[type, Callable[[Column[Any], Any], Any]] = {
    JSON: _read_json,
    LargeBinary: _read_bytes,
    Boolean: _read_boolean,
    String: _read_text,
    Integer: _read_integer,
}
"""By the type of the column; a subclass is its base's."""
