"""Alembic's environment: migrates over the connection that `shared.schema` opened, in its transaction."""

from alembic import context

from gatehouse.resourceserver.db.models import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
context.run_migrations()
