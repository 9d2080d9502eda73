"""What a migration may not do, because the version before it still uses the database (docs/decisions/0024)."""

import re
from collections.abc import Collection, Iterator
from typing import Any

from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import URL, MetaData, String, Table, UniqueConstraint

from gatehouse.shared.service.database import create_file, open_engine
from gatehouse.shared.service.migrations import Schema, alembic_config


def refused_changes(url: URL, schema: Schema) -> list[str]:
    """Migrate an empty database revision by revision, and return every change that the version before would notice.

    A revision names what its version no longer uses in `retires`, as `TABLE` or `TABLE.COLUMN`. Only a later revision
    may drop it.
    """
    create_file(url)
    engine = open_engine(url, pool_size=1, patient=True, references=False)
    found: list[str] = []
    retired: set[str] = set()
    before: MetaData | None = None
    try:
        for revision in reversed([*ScriptDirectory.from_config(alembic_config(schema)).walk_revisions()]):
            with engine.begin() as connection:
                command.upgrade(alembic_config(schema, connection), revision.revision)
            after = MetaData()
            after.reflect(engine)
            if before is not None:
                found += [f"{revision.revision} {change}" for change in compare(before, after, retired)]
            retired |= {*getattr(revision.module, "retires", ())}
            before = after
    finally:
        engine.dispose()
    return found


def compare(before: MetaData, after: MetaData, retired: Collection[str]) -> Iterator[str]:
    """Yield what the version that uses the schema `before` would notice of the schema `after`."""
    for name, table in before.tables.items():
        if name in retired:
            continue
        if name not in after.tables:
            yield f"drops {name}"
            continue
        yield from _columns(table, after.tables[name], retired)
        yield from _constraints(table, after.tables[name])


def _columns(before: Table, after: Table, retired: Collection[str]) -> Iterator[str]:
    for name, column in before.columns.items():
        full, now = f"{before.name}.{name}", after.columns.get(name)
        if full in retired:
            continue
        if now is None:
            yield f"drops {full}"
            continue
        if not _holds(now.type, column.type):
            yield f"changes the type of {full}"
        if now.nullable and not column.nullable:
            yield f"allows NULL in {full}"
        if not now.nullable and (column.nullable or (column.server_default and not now.server_default)):
            yield f"requires {full}"
    for name, column in after.columns.items():
        if name not in before.columns and not column.nullable and column.server_default is None:
            yield f"requires {after.name}.{name}"


def _holds(new: Any, old: Any) -> bool:
    """Tell whether a type is the old one, or a longer string."""
    if isinstance(new, String) and isinstance(old, String) and type(new) is type(old):
        return new.length is None or (old.length is not None and new.length >= old.length)
    return str(new) == str(old)


def _constraints(before: Table, after: Table) -> Iterator[str]:
    """Yield constraints that rows of the version before could break."""
    new = {_shape(constraint) for constraint in _restricting(after)} - {
        _shape(constraint) for constraint in _restricting(before)
    }
    for kind, columns in sorted(new):
        # A row of the version before has the default in a new column.
        if kind == "unique" or any(column in before.columns for column in columns):
            yield f"restricts {before.name} ({', '.join(columns)})"


def _restricting(table: Table) -> Iterator[Any]:
    yield from (index for index in table.indexes if index.unique)
    yield from table.constraints


def _shape(constraint: Any) -> tuple[str, tuple[str, ...]]:
    kind = "unique" if isinstance(constraint, UniqueConstraint) or getattr(constraint, "unique", False) else ""
    text = str(getattr(constraint, "sqltext", ""))
    words = set(re.findall(r"\w+", text)) & set(constraint.table.columns.keys())
    return kind or type(constraint).__name__, tuple(sorted(words or {column.name for column in constraint.columns}))
