"""The format of an export, and the rules for its contents.

An export is JSON Lines in ASCII: a header, one line for each row, and a trailer. Bytes are base64url without padding.
Times are seconds since the epoch, in audit events milliseconds.

A row must have the types of its columns, and be one that registration or the server itself would create. Anyone who can
write the file can create any client, exactly like anyone who can write to the database: the rules do not prevent
that. They keep out rows with effects that the server never has: weak keys, resources without TLS, names that stand for
somebody else in the audit log, values on which a request or a command fails.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Column, Integer, LargeBinary, String, Table

from gatehouse.authserver.clients.registration import check_values
from gatehouse.authserver.clients.registry import REGISTERED_METHODS
from gatehouse.authserver.credentials.client_jwks import client_verification_keys, parse_client_keys
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.keys.sealed_keys import STATES
from gatehouse.authserver.resources.catalogue import read_declaration
from gatehouse.authserver.resources.registration import check_name, parse_resource
from gatehouse.authserver.tokens.reservations import MAX_BLOCK
from gatehouse.authserver.workloads.issuer_keys import parse_issuer_keys
from gatehouse.authserver.workloads.registration import IssuerRegistration, check_issuer
from gatehouse.authserver.workloads.registry import KeyLocation
from gatehouse.shared.protocol.claims import MAX_NUMERIC_DATE
from gatehouse.shared.protocol.encoding import InvalidBase64url, decode_base64url, encode_base64url, parse_json
from gatehouse.shared.protocol.jws import SIGNING_ALGORITHMS
from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.protocol.status_list import LIST_SIZE
from gatehouse.shared.service.administrator import CommandRefused
from gatehouse.shared.service.audit.checkpoints import HEADS, PRUNE
from gatehouse.shared.service.audit.pruning import Pruned
from gatehouse.shared.service.migrations import known_revisions, newest_revision

FORMAT = "gatehouse-authserver-export"
VERSION = 1

MAX_LINE = 16 * 1024 * 1024
"""Bytes of a line with its line break. The longest is an audit event that names a hundred thousand clients."""

_MAX_INTEGER = 2**53 - 1
"""The largest integer that JSON readers agree on (RFC 8259 6). Audit events with it as id leave room for more."""

_MAX_INT32 = 2**30 - 1
"""Half of the range in PostgreSQL, so that counters can go on counting: else a client could not be disabled."""

_MAX_DEPTH = 32
"""Levels of JSON in a column."""


@dataclass(frozen=True, slots=True)
class Header:
    """The first line."""

    schema: str
    """The revision of the exported database."""
    issuer: str
    created_at: int
    keys: bool
    """Whether the export holds signing keys, peppers and the rows that depend on them."""
    audit: bool
    """Whether the export holds the audit log."""
    in_use: bool = False
    """Whether a server used the database: then it may have revoked more after the export."""

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
            "in_use": self.in_use,
        }

    @classmethod
    def from_json(cls, members: Mapping[str, Any], issuer: str) -> "Header":
        """Read the members of the line, for an import by `issuer`.

        Raises:
            ValueError: it is not the header of an export.
            CommandRefused: the export has another format version, schema or issuer.
        """
        if members.get("format") != FORMAT:
            raise ValueError(f"is not the first line of an export, which names its format, {FORMAT}")
        if members.get("version") != VERSION:
            raise CommandRefused(
                f"The export has format version {quoted(str(members.get('version')))}, and this program reads "
                f"{VERSION}. Import it with the version of the program that made it."
            )
        types: dict[str, type] = {
            "schema": str,
            "issuer": str,
            "created_at": int,
            "keys": bool,
            "audit": bool,
            "in_use": bool,
        }
        # Not isinstance, for which True is an int.
        known = {name: members[name] for name, type_ in types.items() if type(members.get(name)) is type_}
        if known.keys() != types.keys() or members.keys() != {"format", "version", *types}:
            raise ValueError("the header does not have the members of an export of this version")
        header = cls(**known)
        _check_schema(header.schema)
        if header.issuer != issuer:
            raise CommandRefused(
                f"The export is from the issuer {quoted(header.issuer)}, and AUTHSERVER_ISSUER is {issuer}. Tokens, "
                "keys and assertions are bound to their issuer: set AUTHSERVER_ISSUER to that of the export."
            )
        return header


def _check_schema(revision: str) -> None:
    if revision == newest_revision(Database.schema):
        return
    if revision in known_revisions(Database.schema):
        raise CommandRefused(
            f"The export has an older schema, {revision}. Upgrade the exported installation to this version of the "
            "program by running authserver init. Then export it again."
        )
    raise CommandRefused(
        f"The export has a schema that this version does not know, {quoted(revision)}. Import it with the version of "
        "the program that made it, or a newer one."
    )


def dump(members: Mapping[str, Any]) -> bytes:
    """Return the line of a JSON object."""
    return json.dumps(members, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def dump_row(table: Table, row: Mapping[str, Any]) -> bytes:
    """Return the line of a row."""
    return dump({"table": table.name, "row": {name: _plain(value) for name, value in row.items()}})


def dump_trailer(counts: Mapping[str, int], digest: str) -> bytes:
    """Return the last line: the number of rows of each table, and the SHA-256 of all lines before."""
    return dump({"rows": dict(counts), "sha256": digest})


def _plain(value: Any) -> Any:
    return encode_base64url(value) if isinstance(value, bytes) else value


def read_row(table: Table, members: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row that `dump_row` wrote, after checking it.

    Raises:
        CommandRefused, ValueError: a column is missing or unknown, a value does not have its column's type (which
            SQLite does not enforce), or the server would not have created the row.
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
    _check_row(table.name, row)
    return row


def _read_value(column: Column[Any], value: Any) -> Any:
    if value is None and column.nullable:
        return None
    return next(read for type_, read in READERS.items() if isinstance(column.type, type_))(column, value)


def _read_bytes(column: Column[Any], value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError("is not base64url")  # noqa: TRY004 - one kind of error for the caller
    try:
        data = decode_base64url(value)
    except InvalidBase64url as error:
        raise ValueError(f"is {error}") from None
    length = column.type.length  # type: ignore[attr-defined]
    if length is not None and len(data) != length:
        raise ValueError(f"is not {length} bytes long")
    return data


def _read_text(column: Column[Any], value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("is not a string without NUL")
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


READERS: Mapping[type, Callable[[Column[Any], Any], Any]] = {
    JSON: _read_json,
    LargeBinary: _read_bytes,
    Boolean: _read_boolean,
    String: _read_text,
    Integer: _read_integer,
}
"""By the type of the column, or by its base class."""


_NAMES = {
    "client_id": re.compile(r"agent_[0-9a-f]{20}", re.ASCII),
    "secret_id": re.compile(r"sec_[0-9a-f]{16}", re.ASCII),
    "pepper_id": re.compile(r"pep_[0-9a-f]{16}", re.ASCII),
    "credential_id": re.compile(r"rsc_[0-9a-f]{16}", re.ASCII),
    "prefix": re.compile(r"gt[hr]s_[A-Za-z0-9_-]{4}", re.ASCII),
    "list_id": re.compile(r"[0-9a-f]{12}", re.ASCII),
    "rule_id": re.compile(r"rule_[0-9a-f]{16}", re.ASCII),
}
"""The form of identifiers that the server generates, by column, in every table."""

_SIGNING_KEY_ID = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)

_CHECKPOINTS = {HEADS: {"last", "heads"}, PRUNE: set(Pruned._fields)}
"""The members of an audit checkpoint, by its kind."""

Row = Mapping[str, Any]


def _check_row(table: str, row: Row) -> None:
    for column, pattern in _NAMES.items():
        if column in row and pattern.fullmatch(row[column]) is None:
            raise ValueError(f"{table}.{column} is not an identifier that an authorization server generates")
    if (rule := _RULES.get(table)) is not None:
        rule(row)


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)


def _client(row: Row) -> None:
    claims = row["claims"]
    are_strings = isinstance(claims, dict) and all(isinstance(value, str) for value in claims.values())
    _require(are_strings, "client.claims is not an object of strings")
    _require(row["token_endpoint_auth_method"] in REGISTERED_METHODS, "client.token_endpoint_auth_method is unknown")
    check_values(row["client_name"], row["token_ttl"], claims)


def _client_key(row: Row) -> None:
    [jwk] = parse_client_keys(json.dumps({"keys": [row["jwk"]]}).encode()).jwks
    same = jwk == row["jwk"] and client_verification_keys(jwk)[0].thumbprint == row["thumbprint"]
    _require(same, "client_key.jwk differs from what registration stores, or does not have that thumbprint")


def _resource(row: Row) -> None:
    check_name("resource", row["resource_name"])
    _require(parse_resource(row["resource"]) == row["resource"], "resource.resource is not in its canonical form")


def _signing_key(row: Row) -> None:
    generated = _SIGNING_KEY_ID.fullmatch(row["kid"]) is not None
    _require(generated, "signing_key.kid is not an identifier that an authorization server generates")
    _require(row["alg"] in SIGNING_ALGORITHMS, "signing_key.alg is unknown")
    _require(row["state"] in STATES, "signing_key.state is unknown")


def _status_list(row: Row) -> None:
    _require(row["next_index"] <= LIST_SIZE, f"status_list.next_index is beyond {LIST_SIZE}")


def _status_block(row: Row) -> None:
    within = 1 <= row["size"] <= MAX_BLOCK and row["start"] + row["size"] <= LIST_SIZE
    _require(within, f"status_block does not have 1 to {MAX_BLOCK} indices within the list")


def _revoked_token(row: Row) -> None:
    _require(row["idx"] < LIST_SIZE, "revoked_token.idx is beyond the list")


def _trusted_issuer(row: Row) -> None:
    algorithms, jwks = row["algorithms"], row["jwks"]
    are_names = isinstance(algorithms, list) and bool(algorithms) and all(isinstance(name, str) for name in algorithms)
    _require(are_names, "trusted_issuer.algorithms is not a list of algorithms")
    _require((jwks is None) == (row["fetched_at"] is None), "trusted_issuer.fetched_at is not that of a key set")
    location = KeyLocation(row["discovery"], row["jwks_uri"], row["ca_file"], row["bearer_token_file"])
    registration = IssuerRegistration(
        name=row["name"],
        issuer=row["issuer"],
        kind=row["kind"],
        location=location,
        jwks=None if jwks is None else jwks.encode(),
        audience=row["audience"],
        algorithms=algorithms,
        max_lifetime=row["max_lifetime"],
    )
    kind, _ = check_issuer(registration)
    if registration.jwks is not None:
        parse_issuer_keys(registration.jwks, kind.name, algorithms)


def _trust_rule(row: Row) -> None:
    conditions = row["conditions"]
    are_strings = isinstance(conditions, dict) and all(isinstance(value, str) for value in conditions.values())
    _require(are_strings, "trust_rule.conditions is not an object of strings")


def _audit_event(row: Row) -> None:
    _require(row["time"] < (MAX_NUMERIC_DATE + 1) * 1000, "audit_event.time is after the year 9999")
    _require(isinstance(row["detail"], dict), "audit_event.detail is not an object")


def _audit_checkpoint(row: Row) -> None:
    _require(row["time"] < (MAX_NUMERIC_DATE + 1) * 1000, "audit_checkpoint.time is after the year 9999")
    content = parse_json(row["content"].encode())
    as_written = isinstance(content, dict) and content.keys() == _CHECKPOINTS.get(row["kind"])
    _require(as_written, "audit_checkpoint.content is not that of its kind")


_RULES: Mapping[str, Callable[[Row], object]] = {
    "audit_checkpoint": _audit_checkpoint,
    "audit_event": _audit_event,
    "client": _client,
    "client_key": _client_key,
    "resource": _resource,
    "resource_scope": read_declaration,
    "revoked_token": _revoked_token,
    "signing_key": _signing_key,
    "status_block": _status_block,
    "status_list": _status_list,
    "trust_rule": _trust_rule,
    "trusted_issuer": _trusted_issuer,
}
