"""An altered or incomplete export is refused as a whole."""

import json
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL
from support.authserver import ISSUER, AuthServer
from support.clock import FakeClock
from support.migrations import with_later_revision
from support.transfer import FullInstallation, export_of, import_into, is_empty, with_trailer

from gatehouse.authserver.backup import format as export_format
from gatehouse.authserver.backup.importing import ExportReader
from gatehouse.authserver.db.database import Database
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.protocol.status_list import LIST_SIZE
from gatehouse.shared.service.administrator import CommandRefused

ED25519_OF_SMALL_ORDER = {"kty": "OKP", "crv": "Ed25519", "x": "AQ" + "A" * 41}


class Target:
    """An empty database, and the sealing key of the exported installation."""

    def __init__(self, server: AuthServer, url: URL, folder: Path) -> None:
        self.url, self.folder, self.clock = url, folder, server.clock
        folder.mkdir()
        (folder / "keys").symlink_to(server.settings.keys_dir)

    def accepts(self, document: bytes) -> None:
        import_into(self.url, self.folder, document, self.clock)

    def refusal(self, document: bytes) -> str:
        """Return the reason for which a file is refused."""
        with pytest.raises(CommandRefused) as caught:
            self.accepts(document)
        assert "Traceback" not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def lines(authserver: AuthServer) -> list[bytes]:
    """The lines of an export with a row of every table."""
    return export_of(FullInstallation(authserver).server).splitlines(keepends=True)


@pytest.fixture
def target(authserver: AuthServer, empty_database: URL, tmp_path: Path) -> Target:
    return Target(authserver, empty_database, tmp_path / "target")


def number_of(lines: list[bytes], table: str) -> int:
    """Return the index of the last row of a table."""
    return max(number for number, line in enumerate(lines) if line.startswith(f'{{"table":"{table}"'.encode()))


def altered(line: bytes) -> bytes:
    """Change one character in the middle of a line."""
    middle = len(line) // 2
    return line[:middle] + (b"7" if line[middle : middle + 1] != b"7" else b"8") + line[middle + 1 :]


@pytest.mark.threat("T-092")
def test_a_lost_duplicate_truncated_or_altered_line_is_detected(lines: list[bytes]) -> None:
    def read(document: bytes) -> int:
        return len(list(ExportReader(BytesIO(document), ISSUER).rows()))

    whole = b"".join(lines)
    assert read(whole) == len(lines) - 2
    documents = [whole + b"\n", whole + lines[-1], whole[:-1], b"\xef\xbb\xbf" + whole, b""]
    for number, line in enumerate(lines):
        documents += [
            b"".join(lines[:number] + lines[number + 1 :]),
            b"".join([*lines[: number + 1], *lines[number:]]),
            b"".join([*lines[:number], altered(line), *lines[number + 1 :]]),
            b"".join([*lines[:number], line[: len(line) // 2]]),
            b"".join(lines[:number]),
        ]
    for document in documents:
        with pytest.raises(CommandRefused):
            read(document)


@pytest.mark.threat("T-092")
@pytest.mark.both_databases
def test_nothing_is_imported_if_one_character_was_altered(lines: list[bytes], target: Target) -> None:
    """In the header, a row of each table, or the trailer. The previous test covers every line."""
    last_of_each_table = {json.loads(line).get("table"): number for number, line in enumerate(lines)}
    for number in (0, *last_of_each_table.values()):
        target.refusal(b"".join([*lines[:number], altered(lines[number]), *lines[number + 1 :]]))
    assert is_empty(target.url)
    target.accepts(b"".join(lines))
    assert not is_empty(target.url)


@pytest.mark.threat("T-093")
def test_invalid_rows_are_refused_even_with_a_matching_digest(lines: list[bytes], target: Target) -> None:
    """The format is public: anyone can compute a digest. Each refusal names the line and its problem."""
    for table, changes, text in ALTERED:
        at = number_of(lines, table)
        record = json.loads(lines[at])
        record["row"] = {
            name: value
            for name, value in {**record["row"], **changes}.items()
            if value is not ABSENT  # leaves the column out
        }
        document = with_trailer([*lines[:at], json.dumps(record).encode() + b"\n", *lines[at + 1 :]])
        message = target.refusal(document)
        assert message.startswith(f"Line {at + 1} of the export: "), (changes, message)
        assert text in message, (changes, message)
        assert "Nothing was imported" in message
    assert is_empty(target.url)
    target.accepts(with_trailer(lines))


ABSENT = object()
NESTED: Any = "end"
for _ in range(40):
    NESTED = {"in": NESTED}
WEAK_RSA = {"kty": "RSA", "n": "AQAB" * 40, "e": "AQAB", "kid": "weak"}

ALTERED: list[tuple[str, dict[str, Any], str]] = [
    ("client", {"surplus": 1}, "has no such column"),
    ("client", {"strict": ABSENT}, "client.strict is missing"),
    ("client", {"strict": 1}, "neither true nor false"),
    ("client", {"client_name": None}, "client.client_name is not a string"),
    ("client", {"client_name": ""}, "A client name must have"),
    ("client", {"client_name": "two\nlines"}, "A client name must have"),
    ("client", {"client_name": "a" * 129}, "longer than 128 characters"),
    ("client", {"client_name": "a\0b"}, "without NUL"),
    ("client", {"client_id": "admin:root"}, "client.client_id is not an identifier that"),
    ("client", {"token_endpoint_auth_method": "none"}, "token_endpoint_auth_method is unknown"),
    ("client", {"token_ttl": 86400}, "The TTL must be"),
    ("client", {"token_ttl": True}, "not a whole number"),
    ("client", {"token_epoch": -1}, "not a whole number"),
    # The next increment would fail on PostgreSQL: the client could not be disabled, no token revoked (CWE-190).
    ("client", {"token_epoch": 2**31 - 1}, "not a whole number"),
    ("status_list", {"version": 2**31 - 1}, "not a whole number"),
    ("client", {"claims": {"sub": "somebody"}}, "reserved claim"),
    ("client", {"claims": {"workspace_id": 1}}, "not an object of strings"),
    ("client", {"claims": None}, "is null"),
    ("client", {"created_at": 253402300800}, "not a whole number"),
    ("client_secret", {"digest": "AAAA"}, "is not 32 bytes long"),
    ("client_secret", {"digest": "!" * 43}, "not base64url"),
    ("client_secret", {"digest": "A" * 42 + "B"}, "not canonical base64url"),
    ("client_secret", {"digest": 1}, "not base64url"),
    ("client_secret", {"client_id": "agent_" + "0" * 20}, "refers to a row that is not in the export"),
    ("client_secret", {"pepper_id": "pep_" + "0" * 16}, "refers to a row that is not in the export"),
    ("client_secret", {"prefix": "whatever"}, "client_secret.prefix is not an identifier that"),
    ("client_key", {"jwk": ED25519_OF_SMALL_ORDER}, "key 1: its x is not an Ed25519 point"),
    ("client_key", {"jwk": WEAK_RSA}, "it is not an RSA key of 2048"),
    ("client_key", {"jwk": json.loads(SigningKey.generate("ES256").private_jwk())}, "private or symmetric"),
    ("client_key", {"jwk": SigningKey.generate("ES256").public_jwk()}, "or does not have that thumbprint"),
    ("client_key", {"jwk": ["no object"]}, "key 1 is not an object"),
    ("resource", {"resource": "http://mcp.example.com/mcp"}, "A resource must use https"),
    ("resource", {"resource": "HTTPS://mcp.example.com/other"}, "not in its canonical form"),
    ("resource", {"resource_name": "\x1b[2J"}, "A resource name must have"),
    ("resource_scope", {"scope": "two words"}, "Invalid scope"),
    ("resource_scope", {"implies": "env:read"}, "a list 'implies'"),
    ("resource_scope", {"description": "\x07"}, "visible"),
    ("client_grant", {"scope": "org:delete"}, "refers to a row that is not in the export"),
    ("signing_key", {"alg": "HS256"}, "signing_key.alg is unknown"),
    ("signing_key", {"state": "eternal"}, "signing_key.state is unknown"),
    ("signing_key", {"kid": "../../etc"}, "signing_key.kid is not an identifier that"),
    ("spent_assertion", {"jti_digest": ""}, "is not 32 bytes long"),
    (
        "resource_credential",
        {"resource": "https://elsewhere.example.com/mcp"},
        "refers to a row that is not in the export",
    ),
    ("status_list", {"next_index": LIST_SIZE + 1}, "is beyond"),
    ("status_list", {"list_id": "../../../../x"}, "longer than 12"),
    ("status_block", {"start": LIST_SIZE}, "indices within the list"),
    ("status_block", {"size": 0}, "indices within the list"),
    ("revoked_token", {"idx": LIST_SIZE}, "is beyond the list"),
    ("trusted_issuer", {"name": "Two Words"}, "The name has 1 to 64"),
    ("trusted_issuer", {"kind": "saml"}, "The kind must be one of"),
    ("trusted_issuer", {"kind": "spiffe"}, "is its trust domain"),
    ("trusted_issuer", {"issuer": "http://platform.example.com"}, "an https URL"),
    ("trusted_issuer", {"jwks_uri": "http://platform.example.com/jwks"}, "The jwks_uri must be an https URL"),
    ("trusted_issuer", {"audience": ""}, "The audience has 1 to 512"),
    ("trusted_issuer", {"max_lifetime": 0}, "The maximum lifetime is"),
    ("trusted_issuer", {"max_lifetime": 86401}, "The maximum lifetime is"),
    ("trusted_issuer", {"algorithms": []}, "is not a list of algorithms"),
    ("trusted_issuer", {"algorithms": "RS256"}, "is not a list of algorithms"),
    ("trusted_issuer", {"algorithms": [256]}, "is not a list of algorithms"),
    ("trusted_issuer", {"algorithms": ["HS256"]}, "The algorithm HS256 is not supported"),
    ("trusted_issuer", {"algorithms": ["ES256"]}, "the set holds no usable key"),
    ("trusted_issuer", {"jwks": None, "fetched_at": None}, "Give the keys of the issuer"),
    ("trusted_issuer", {"jwks": None}, "fetched_at is not that of a key set"),
    ("trusted_issuer", {"fetched_at": None}, "fetched_at is not that of a key set"),
    ("trusted_issuer", {"jwks": '{"keys":[]}'}, "the set holds no usable key"),
    ("trusted_issuer", {"jwks": '{"keys":[{"kty":"oct","k":"AAAA"}]}'}, "private or symmetric"),
    ("trust_rule", {"rule_id": "rule_1"}, "trust_rule.rule_id is not an identifier that"),
    ("trust_rule", {"anchor": "AAAA"}, "is not 32 bytes long"),
    ("trust_rule", {"conditions": ["sub"]}, "is not an object of strings"),
    ("trust_rule", {"conditions": {"sub": 1}}, "is not an object of strings"),
    ("trust_rule", {"issuer": "elsewhere"}, "refers to a row that is not in the export"),
    ("trust_rule", {"client_id": "agent_" + "0" * 20}, "refers to a row that is not in the export"),
    ("audit_event", {"id": 2**53}, "not a whole number"),
    ("audit_event", {"id": 1}, "is a duplicate"),
    ("audit_event", {"time": 2**53 - 1}, "after the year 9999"),
    ("audit_event", {"detail": []}, "is not an object"),
    ("audit_event", {"detail": NESTED}, "more than 32 levels"),
    ("audit_checkpoint", {"time": 2**53 - 1}, "after the year 9999"),
    ("audit_checkpoint", {"kind": "prune"}, "not that of its kind"),
    ("audit_checkpoint", {"kind": "other"}, "not that of its kind"),
    ("audit_checkpoint", {"content": "[]"}, "not that of its kind"),
    ("audit_checkpoint", {"content": "{"}, "not valid JSON"),
]
"""A table, the changes to its last row, and part of the error."""


@pytest.mark.threat("T-093")
@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("table", "changes", "text"),
    [
        ("resource_scope", {"implies": ["org:delete"]}, "implies an unknown scope"),
        ("status_list", {"next_index": 0}, "status list indices that are free"),
        ("signing_key", {"alg": "RS256"}, "These do not decrypt with this sealing key"),
        ("pepper", {"pepper_id": "pep_" + "0" * 16}, "refers to a row that is not in the export"),
        ("pepper", {"sealed": ""}, "sealed with another sealing key"),
        ("trust_rule", {"conditions": {"repository_id": "1"}}, "do not identify a workload"),
        ("trust_rule", {"conditions": {"sub": "repo:acme/ops:ref:main"}}, "not one that registration would create"),
        ("trust_rule", {"conditions": {"/sub": "repo:acme/ops:ref:main"}}, "not one that registration would create"),
        ("trust_rule", {"anchor": "A" * 43}, "not one that registration would create"),
    ],
)
def test_rows_that_contradict_each_other_are_refused(
    lines: list[bytes], target: Target, table: str, changes: dict[str, Any], text: str
) -> None:
    at = number_of(lines, table)
    record = json.loads(lines[at])
    record["row"] |= changes
    assert text in target.refusal(with_trailer([*lines[:at], json.dumps(record).encode() + b"\n", *lines[at + 1 :]]))
    assert is_empty(target.url)
    target.accepts(with_trailer(lines))


@pytest.mark.threat("T-093")
def test_a_trust_rule_of_a_client_with_a_secret_is_refused(lines: list[bytes], target: Target) -> None:
    """A client has one method: otherwise a rule would be a second credential that no command shows."""
    rule = json.loads(lines[number_of(lines, "trust_rule")])["row"]
    [at] = [
        number
        for number, line in enumerate(lines)
        if line.startswith(b'{"table":"client"') and rule["client_id"].encode() in line
    ]
    record = json.loads(lines[at])
    record["row"]["token_endpoint_auth_method"] = "client_secret_basic"
    altered_row = json.dumps(record).encode() + b"\n"
    refusal = target.refusal(with_trailer([*lines[:at], altered_row, *lines[at + 1 :]]))
    assert f"the trust rule {rule['rule_id']} is not one that registration would create" in refusal
    assert is_empty(target.url)
    target.accepts(with_trailer(lines))


def test_lines_that_are_not_rows_are_refused(
    lines: list[bytes], target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = number_of(lines, "client")

    def with_line(line: bytes) -> str:
        return target.refusal(b"".join([*lines[:at], line, *lines[at:]]))

    for line, text in {
        b"\n": "not valid JSON",
        b"[]\n": "is not a JSON object",
        b"{}\n": "neither a row nor the last line",
        b'{"table":"client","table":"client","row":{}}\n': "the same member twice",
        b'{"table":"lease","row":{}}\n': "has no table lease",
        b'{"table":["client"],"row":{}}\n': "has no table",
        b'{"table":"alembic_version","row":{}}\n': "has no table alembic_version",
        b'{"table":"client","row":[]}\n': "'row' is not an object",
        lines[number_of(lines, "audit_event")]: "a row of audit_event comes after rows of client",
        b'{"table":"client","row":{},"beside":1}\n': "neither a row nor the last line",
        b'{"rows":{},"sha256":""}\n': "the numbers of rows",
        b'{"table":"client","row":{"client_name":"\xff"}}\n': "not valid UTF-8",
        b'{"table":"client","row":{"client_name":"\\ud800"}}\n': "not valid JSON",
        b'{"table":"client","row":{"created_at":1e999}}\n': "too large",
        b"[" * 100_000 + b"\n": "not valid JSON",
    }.items():
        message = with_line(line)
        assert text in message, line[:80]
        assert message.startswith(f"Line {at + 1} of the export: ")
    monkeypatch.setattr("gatehouse.authserver.backup.importing.MAX_LINE", max(map(len, lines)))
    assert "is longer than" in with_line(b'{"table":"client","row":{}}' + b" " * max(map(len, lines)) + b"\n")
    assert is_empty(target.url)
    target.accepts(b"".join(lines))


def test_a_row_too_long_to_import_is_not_exported(authserver: AuthServer, monkeypatch: pytest.MonkeyPatch) -> None:
    authserver.create_client()
    document = export_of(authserver)
    monkeypatch.setattr("gatehouse.authserver.backup.exporting.MAX_LINE", max(map(len, document.splitlines())))
    with pytest.raises(CommandRefused, match="--without-audit"):
        export_of(authserver)
    assert max(map(len, document.splitlines(keepends=True))) < export_format.MAX_LINE


Header = Callable[..., bytes]


@pytest.fixture
def with_header(lines: list[bytes]) -> Iterator[Header]:
    def make(**changes: Any) -> bytes:
        header = {**json.loads(lines[0]), **changes}
        header = {name: value for name, value in header.items() if value is not ABSENT}
        return with_trailer([json.dumps(header).encode() + b"\n", *lines[1:]])

    return make


@pytest.mark.threat("T-093")
def test_an_export_that_does_not_fit_is_refused_with_a_remediation(with_header: Header, target: Target) -> None:
    for changes, text in (
        ({"format": "something-else"}, "gatehouse-authserver-export"),
        ({"version": 2}, "Import it with the version of the program that made it"),
        ({"version": "1"}, "format version 1"),
        ({"schema": "9999"}, "or a newer one"),
        ({"issuer": "https://elsewhere.example.com"}, "set AUTHSERVER_ISSUER to that of the export"),
        ({"keys": ABSENT}, "the header does not have the members"),
        ({"keys": 1}, "the header does not have the members"),
        ({"created_at": True}, "the header does not have the members"),
        ({"beside": 1}, "the header does not have the members"),
        ({"keys": False}, "has no table pepper"),
        ({"audit": False}, "has no table audit_checkpoint"),
    ):
        message = target.refusal(with_header(**changes))
        assert text in message, (changes, message)
    assert "the file ends here" in target.refusal(b"")
    assert "not valid UTF-8" in target.refusal(b"\x1f\x8b\x08\x00compressed\n")
    target.accepts(with_header())


def test_an_export_of_an_older_schema_is_refused(
    with_header: Header, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = with_header()
    monkeypatch.setattr(Database, "schema", with_later_revision(Database.schema, tmp_path / "migrations"))
    assert "running authserver init. Then export it again" in target.refusal(document)


def test_a_foreign_installation_is_named_without_control_characters(
    with_header: Header, target: Target, clock: FakeClock
) -> None:
    for member in ("issuer", "schema"):
        refusal = target.refusal(with_header(**{member: "\x1b[2J"}))
        assert "\\x1b[2J" in refusal
        assert "\x1b" not in refusal
