"""Alembic's environment: runs over the connection that `migrations.upgrade` opened, in its transaction."""

from alembic import context

from gatehouse.authserver.db.models import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
context.run_migrations()
