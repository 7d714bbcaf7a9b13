"""Alembic's entry point: runs the migrations over the given connection, in its transaction."""

from alembic import context

from wattfare_mw.service.ledger.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite changes a table by copying it.
    render_as_batch=True,
)
context.run_migrations()
