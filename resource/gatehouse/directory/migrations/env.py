"""Alembic's environment: runs over the connection that `migrations.upgrade` opened, in its transaction."""

from alembic import context

from gatehouse.directory.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=context.config.attributes["version_table"],
    render_as_batch=True,
)
context.run_migrations()
