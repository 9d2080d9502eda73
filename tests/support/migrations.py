"""Revisions that a later version of a server would add, and the downgrade, which no command offers."""

import shutil
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


def upgrade():
    op.create_table("later", sa.Column("id", sa.Integer(), primary_key=True))
{upgrade}


def downgrade():
    op.drop_table("later")
{downgrade}
"""


def with_later_revision(schema: Schema, folder: Path, upgrade: str = "", downgrade: str = "") -> Schema:
    """Copy a server's migrations to a folder, and add a revision with further statements, indented by four spaces."""
    shutil.copytree(ScriptDirectory.from_config(alembic_config(schema)).dir, folder)
    revision = _REVISION.format(revision=LATER, before=newest_revision(schema), upgrade=upgrade, downgrade=downgrade)
    (folder / "versions" / f"{LATER}_later.py").write_text(revision, encoding="utf-8")
    return replace(schema, migrations=str(folder))


def downgrade(url: URL, schema: Schema, revision: str) -> None:
    """Bring a database back to an older revision."""
    engine = open_engine(url, pool_size=1, patient=True, references=False)
    with engine.begin() as connection:
        command.downgrade(alembic_config(schema, connection), revision)
    engine.dispose()
