"""Run by Alembic: applies the revisions in one transaction."""

import sqlalchemy as sa
from alembic import context

from mini_assistant.db.tables import metadata

_engine = sa.create_engine(context.config.get_main_option("sqlalchemy.url") or "")
with _engine.begin() as _connection:
    context.configure(connection=_connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()
_engine.dispose()
