"""What a row of an export has to be, beside its types: what registration, or the server itself, would have made.

Whoever writes the file can make any client he likes, as whoever writes to the database can: these rules are no
protection against him. They keep out what would make the server do what it never does: weak keys, resources without
TLS, names that stand for somebody else in the audit log, values on which a request or a command breaks.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from gatehouse.authserver.administration import check_name
from gatehouse.authserver.clients.registration import check_values
from gatehouse.authserver.clients.registry import AUTH_METHODS
from gatehouse.authserver.keys.sealed_keys import STATES
from gatehouse.authserver.resources.catalogue import read_declaration
from gatehouse.authserver.resources.registration import parse_resource
from gatehouse.authserver.tokens.status_lists import MAX_BLOCK
from gatehouse.shared.protocol.jws import SIGNING_ALGORITHMS, client_verification_keys, parse_client_keys
from gatehouse.shared.protocol.numeric_date import MAX_NUMERIC_DATE
from gatehouse.shared.protocol.status_list import LIST_SIZE

_NAMES = {
    "client_id": re.compile(r"agent_[0-9a-f]{20}", re.ASCII),
    "secret_id": re.compile(r"sec_[0-9a-f]{16}", re.ASCII),
    "pepper_id": re.compile(r"pep_[0-9a-f]{16}", re.ASCII),
    "credential_id": re.compile(r"rsc_[0-9a-f]{16}", re.ASCII),
    "prefix": re.compile(r"gt[hr]s_[A-Za-z0-9_-]{4}", re.ASCII),
    "kid": re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII),
    "list_id": re.compile(r"[0-9a-f]{12}", re.ASCII),
}
"""How the server makes names, in whatever table they are."""

Row = Mapping[str, Any]


def check_row(table: str, row: Row) -> None:
    """Judge a row whose types are right.

    Raises:
        Refused, ValueError: it is none that the server would have made.
    """
    for column, pattern in _NAMES.items():
        if column in row and pattern.fullmatch(row[column]) is None:
            raise ValueError(f"{table}.{column} is none that an authorization server makes")
    if (rule := _RULES.get(table)) is not None:
        rule(row)


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)


def _client(row: Row) -> None:
    claims = row["claims"]
    are_texts = isinstance(claims, dict) and all(isinstance(value, str) for value in claims.values())
    _require(are_texts, "client.claims is no object of texts")
    _require(row["token_endpoint_auth_method"] in AUTH_METHODS, "client.token_endpoint_auth_method is unknown")
    check_values(row["client_name"], row["token_ttl"], claims)


def _client_key(row: Row) -> None:
    [jwk] = parse_client_keys(json.dumps({"keys": [row["jwk"]]}).encode())
    same = jwk == row["jwk"] and client_verification_keys(jwk)[0].thumbprint == row["thumbprint"]
    _require(same, "client_key.jwk is not as it is stored at registration, or not of that thumbprint")


def _resource(row: Row) -> None:
    check_name("resource", row["resource_name"])
    _require(parse_resource(row["resource"]) == row["resource"], "resource.resource is not in its canonical form")


def _signing_key(row: Row) -> None:
    _require(row["alg"] in SIGNING_ALGORITHMS, "signing_key.alg is unknown")
    _require(row["state"] in STATES, "signing_key.state is unknown")


def _status_list(row: Row) -> None:
    _require(row["next_index"] <= LIST_SIZE, f"status_list.next_index is beyond {LIST_SIZE}")


def _status_block(row: Row) -> None:
    within = 1 <= row["size"] <= MAX_BLOCK and row["start"] + row["size"] <= LIST_SIZE
    _require(within, f"status_block is not of 1 to {MAX_BLOCK} indices within the list")


def _revoked_token(row: Row) -> None:
    _require(row["idx"] < LIST_SIZE, "revoked_token.idx is beyond the list")


def _audit_event(row: Row) -> None:
    _require(row["time"] < (MAX_NUMERIC_DATE + 1) * 1000, "audit_event.time is after the year 9999")
    _require(isinstance(row["detail"], dict), "audit_event.detail is no object")


_RULES: Mapping[str, Callable[[Row], object]] = {
    "audit_event": _audit_event,
    "client": _client,
    "client_key": _client_key,
    "resource": _resource,
    "resource_scope": read_declaration,
    "revoked_token": _revoked_token,
    "signing_key": _signing_key,
    "status_block": _status_block,
    "status_list": _status_list,
}
