"""Events of runs on their way from the process that writes them to the others; in PostgreSQL only.

The log need not survive a crash, since rows are in `run_events` and deltas can be told again: it is unlogged. Its numbers are given one
writer after the other, so that whoever has read up to a number has missed none below it; and they do not begin anew after a crash.
"""

from alembic import op

revision = "0004"
down_revision = "0003"

_SHARE = """
CREATE FUNCTION share_events(
    run_ids text[], attempts bigint[], seqs bigint[], parts bigint[], names text[], datas bytea[], wakes text[]
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('mini_assistant.shared_events'));
    INSERT INTO shared_events (run_id, attempt, seq, part, name, data)
        SELECT * FROM unnest(run_ids, attempts, seqs, parts, names, datas);
    PERFORM pg_notify('mini_assistant_events', wake) FROM unnest(wakes) AS wake;
END $$
"""


def upgrade() -> None:
    if op.get_context().dialect.name != "postgresql":
        return
    op.execute("CREATE SEQUENCE shared_events_numbers")
    op.execute(
        "CREATE UNLOGGED TABLE shared_events ("
        "n bigint PRIMARY KEY DEFAULT nextval('shared_events_numbers'), run_id text NOT NULL, attempt bigint NOT NULL,"
        " seq bigint NOT NULL, part bigint NOT NULL, name text NOT NULL, data bytea NOT NULL,"
        " written_at timestamptz NOT NULL DEFAULT clock_timestamp())"
    )
    op.execute("CREATE INDEX shared_events_of_run ON shared_events (run_id, n)")
    op.execute(_SHARE)
