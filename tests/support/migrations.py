"""Revisions that a later version of a server would add, and the downgrade, which no command offers."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import URL

from gatehouse.shared.service.database import open_engine
from gatehouse.shared.service.migrations import Schema, alembic_config, newest_revision

LATER = "9000"
"""The later revision. It creates a table `later`."""

REBUILD_TABLES = """
    recreate = "always" if op.get_bind().dialect.name == "sqlite" else "never"
    for table in sa.inspect(op.get_bind()).get_table_names():
        if table not in ("alembic_version", "directory_version", "later"):
            with op.batch_alter_table(table, recreate=recreate) as batch:
                batch.add_column(sa.Column("added", sa.Integer(), nullable=False, server_default="7"))
"""
"""An upgrade that adds a column to every table. SQLite copies each one to a new table and drops the old one."""

_REVISION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "{revision}", "{before}", None, None
retires = {retires}


def upgrade():
    pass
{upgrade}


def downgrade():
    pass
{downgrade}
"""

_CREATE_LATER = '    op.create_table("later", sa.Column("id", sa.Integer(), primary_key=True))'


def with_later_revision(schema: Schema, folder: Path, upgrade: str = "", downgrade: str = "") -> Schema:
    """Copy a server's migrations to a folder, and add a revision with further statements, indented by four spaces."""
    return _with_revision(
        schema, folder, LATER, f"{_CREATE_LATER}\n{upgrade}", downgrade=f'    op.drop_table("later")\n{downgrade}'
    )


def with_next_revision(schema: Schema, folder: Path, upgrade: str, retires: Sequence[str] = ()) -> Schema:
    """Copy the migrations as `with_later_revision` does, and add the revision of the next version."""
    return _with_revision(schema, folder, f"{int(newest_revision(schema) or 0) + 1:04}", upgrade, retires)


def _with_revision(
    schema: Schema, folder: Path, revision: str, upgrade: str, retires: Sequence[str] = (), downgrade: str = ""
) -> Schema:
    shutil.copytree(ScriptDirectory.from_config(alembic_config(schema)).dir, folder)
    text = _REVISION.format(
        revision=revision, before=newest_revision(schema), retires=retires, upgrade=upgrade, downgrade=downgrade
    )
    (folder / "versions" / f"{revision}_later.py").write_text(text, encoding="utf-8")
    return replace(schema, migrations=str(folder))


def downgrade(url: URL, schema: Schema, revision: str) -> None:
    """Bring a database back to an older revision."""
    engine = open_engine(url, pool_size=1, patient=True, references=False)
    with engine.begin() as connection:
        command.downgrade(alembic_config(schema, connection), revision)
    engine.dispose()
