"""Vectors of large vector stores for pgvector; in PostgreSQL only.

The tables need the extension, which may be installed later. So they are made by a function of the database that can be called again:
it yields whether the tables are there.
"""

from alembic import op

revision = "0005"
down_revision = "0004"

_CREATE_FUNCTION = """
CREATE FUNCTION make_passage_vectors() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('mini_assistant.make_passage_vectors'));
    IF to_regclass('passage_vectors') IS NOT NULL THEN
        RETURN true;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector') THEN
        RETURN false;
    END IF;
    CREATE EXTENSION IF NOT EXISTS vector;
    -- Stores that are searched here. Vectors of segments up to filled_seq are in passage_vectors; is_ready: with an index.
    CREATE TABLE indexed_stores (
        store_seq bigint PRIMARY KEY,
        vector_store_id text NOT NULL UNIQUE REFERENCES vector_stores (id) ON DELETE CASCADE,
        dimension integer NOT NULL,
        filled_seq bigint NOT NULL,
        is_ready boolean NOT NULL
    );
    CREATE TABLE passage_vectors (
        segment_seq bigint NOT NULL REFERENCES segments (seq) ON DELETE CASCADE,
        place integer NOT NULL,
        store_seq bigint NOT NULL,
        embedding halfvec NOT NULL,
        PRIMARY KEY (segment_seq, place)
    );
    -- Long vectors would else lie beside the table, one more page for each.
    ALTER TABLE passage_vectors ALTER COLUMN embedding SET STORAGE PLAIN;
    RETURN true;
EXCEPTION WHEN insufficient_privilege OR feature_not_supported OR undefined_file THEN
    RETURN false;
END $$
"""


def upgrade() -> None:
    if op.get_context().dialect.name != "postgresql":
        return
    op.execute(_CREATE_FUNCTION)
    op.execute("SELECT make_passage_vectors()")
