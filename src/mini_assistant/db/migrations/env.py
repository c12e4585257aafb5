"""Run by Alembic: applies the revisions in one transaction."""

import sqlalchemy as sa
from alembic import context

from mini_assistant.db.tables import metadata

_url = sa.make_url(context.config.get_main_option("sqlalchemy.url") or "")
_engine = sa.create_engine(_url, connect_args={"connect_timeout": 10} if _url.get_backend_name() == "postgresql" else {})
try:
    with _engine.begin() as _connection:
        if _connection.dialect.name == "sqlite":
            # The driver itself would begin a transaction only with the first row, after the tables: half of them could stay behind.
            _connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            # One process at a time; and rather give up than hold up the servers that are running, who would wait behind this for a lock.
            _connection.exec_driver_sql("SET LOCAL lock_timeout = '60s'")
            _connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('mini_assistant.migrations'))")
            _connection.exec_driver_sql("SET LOCAL lock_timeout = '10s'")
        context.configure(connection=_connection, target_metadata=metadata)
        with context.begin_transaction():
            context.run_migrations()
finally:
    _engine.dispose()
