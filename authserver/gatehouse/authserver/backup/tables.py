"""Which tables an export holds. Every one of the schema has its place here, and its columns go with it."""

from collections.abc import Mapping
from enum import Enum

from sqlalchemy import Table

from gatehouse.authserver.db.models import Base


class Part(Enum):
    """When a table is exported."""

    ALWAYS = "always"
    KEYS = "with the keys"
    """Private material, though sealed, and the digests that are of no use without it."""
    AUDIT = "unless left out"
    NEVER = "never"
    """True of the processes that run on the database, and of no other."""


PART_OF: Mapping[str, Part] = {
    "audit_event": Part.AUDIT,
    "client": Part.ALWAYS,
    "client_grant": Part.ALWAYS,
    "client_key": Part.ALWAYS,
    "client_secret": Part.KEYS,
    "lease": Part.NEVER,
    "pepper": Part.KEYS,
    "resource": Part.ALWAYS,
    "resource_credential": Part.KEYS,
    "resource_scope": Part.ALWAYS,
    "revoked_token": Part.ALWAYS,
    "signing_key": Part.KEYS,
    "spent_assertion": Part.ALWAYS,
    "status_block": Part.ALWAYS,
    "status_list": Part.ALWAYS,
}


def tables_of(*, keys: bool, audit: bool) -> list[Table]:
    """Return the tables of an export in the order of their rows: what others refer to comes first."""
    parts = {Part.ALWAYS, *({Part.KEYS} if keys else ()), *({Part.AUDIT} if audit else ())}
    return [table for table in Base.metadata.sorted_tables if PART_OF[table.name] in parts]


def tables_that_matter() -> list[Table]:
    """Return the tables in which an installation leaves a row."""
    return [table for table in Base.metadata.sorted_tables if PART_OF[table.name] is not Part.NEVER]
