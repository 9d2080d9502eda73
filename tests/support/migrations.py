"""The way back to an older schema, which no command offers."""

from alembic import command
from sqlalchemy import URL

from gatehouse.shared.service.database import open_engine
from gatehouse.shared.service.migrations import Schema, _config


def downgrade(url: URL, schema: Schema, revision: str) -> None:
    """Take a database back to a revision."""
    engine = open_engine(url, pool_size=1, patient=True, references=False)
    with engine.begin() as connection:
        command.downgrade(_config(schema.migrations, connection), revision)
    engine.dispose()
