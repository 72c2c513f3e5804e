"""Alembic runs this for each upgrade; the store hands over its connection."""

from alembic import context

from asymrec.serving.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
