"""No statement without its project: each one that can touch rows of several is named here with its reason.

What is named must need it, so that an exception goes away with its statement. Statements are named by module and variable.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import pytest
import sqlalchemy as sa

from mini_assistant.db.base import Query
from mini_assistant.db.tables import assistants, deleted_cursors, messages, run_events, runs, upload_parts, uploads
from mini_assistant.files.store import _select_ids
from mini_assistant.pagination import Listing
from mini_assistant.projects.retention import _Walk
from mini_assistant.runs.claims import FairOrder
from mini_assistant.vector_stores.filters import matching_files
from mini_assistant.vector_stores.indexes.base import StoreScope
from mini_assistant.vector_stores.schema import AndFilter, EqualFilter
from mini_assistant.webhooks.deliveries import DueDeliveries
from tests.project_queries import functions_with_statements, statements_in, statements_of_modules, why_of_many_projects

ALLOWED: Mapping[str, Sequence[str]] = {
    "only the worker asks: it works for all projects, by ids that its own queries have found": (
        "files.store._select_expired",
        "runs.claims.*",
        "runs.leases.*",
        "runs.observed._select_traceparent",
        "threads.store._require_idle",
        "threads.store._update_message",
        "vector_stores.ingest._delete_summary_vector",
        "vector_stores.ingest_tasks.*",
        "vector_stores.store._count_ended_in_*",
        "vector_stores.store._end_file",
        "vector_stores.store._pin_embedder",
        "vector_stores.store._select_record",
        "vector_stores.store._tell_of_batch_of_file",
        "webhooks.deliveries.*",
    ),
    "only the sweep of all projects asks": (
        "files.uploads.store._delete_old",
        "files.uploads.store._delete_overdue_parts",
        "files.uploads.store._doom_overdue_parts",
        "files.uploads.store._expire",
        "http.idempotency._delete_of_deleted*",
        "http.idempotency._delete_old",
        "pagination.forget_deleted_cursors",
        "projects.audit._delete_old",
        "projects.usage._delete_days",
        "projects.usage._delete_entries",
        "projects.usage._select_entries",
        "projects.usage._all_are_there",
        "projects.usage._select_storage",
        "projects.usage._select_vectors",
        "vector_stores.sweep.*",
    ),
    "only who looks after the server asks: commands, and keys of the scope admin": (
        "http.metrics_page._select_*",
        "projects.audit._listing.*",
        "projects.store._select_all",
        "projects.store._select_by_id",
        "projects.store._revoke",
        "projects.usage._select_days",
    ),
    "a key says which project it is": ("projects.store._select_by_prefix", "projects.store._select_any"),
    "a run that was read with its project, by its id": (
        "runs.store._advance",
        "runs.store._replace_body",
        "runs.store._select_events",
        "runs.store._select_steps",
        "runs.store._set_status",
        "runs.store._take_over",
        "runs.store._update_step",
    ),
    "the worker's; and the run of an answer that was kept for this project": ("runs.store._select_record_by_id",),
    "behind a guard of the same list, which names the project": (
        "files.uploads.store._delete_parts",
        "files.uploads.store._doom_parts",
        "files.uploads.store._room_for_part",
        "threads.store._no_active_run",
        "vector_stores.attached_files._insert_attribute",
    ),
    "a file of a store that was read with its project, by its row": (
        "vector_stores.attached_files._delete_attributes",
        "vector_stores.attached_files._replace_attributes",
        "vector_stores.batches._leave",
        "vector_stores.batches._move_file",
        "vector_stores.batches._tell_of_left",
    ),
    "segments of a store that was found with its project, by their rows": (
        "vector_stores.indexes.pgvector._select_vectors",
        "vector_stores.indexes.pgvector_words._select_postings",
        "vector_stores.indexes.segments._select_blobs",
        "vector_stores.indexes.segments._select_passages_by_count*",
    ),
    "what is written there are counters and locks by the name of their project": (
        "projects.buckets._fill",
        "projects.limits._touch_limit",
        "projects.usage._add_to_day",
        "projects.usage._take_minute",
        "projects.usage._touch_lock",
        "webhooks.store._touch_limit",
    ),
}
_FILTER = AndFilter([EqualFilter("key", 1)])
# Functions that make statements when they are called. What modules have made with them at once is found in the modules.
AT_IMPORT = {
    "files.uploads.store._dooming",
    "pagination.Listing.__init__",
    "pagination.Listing._build",
    "projects.deletion._delete_some",
    "projects.deletion._doom_some",
    "projects.deletion._forget_named",
    "projects.deletion._has_row",
    "projects.usage._days_query",
    "projects.usage._sum_of_tokens",
    "runs.claims._within_limit",
    "vector_stores.indexes.segments._insert_passages",
    "vector_stores.indexes.segments._select_passages",
    "vector_stores.store._Detaching.__init__",
    "vector_stores.store.leave_batches",
    "webhooks.store._event_query",
}
MADE_LATER = {
    "files.store._select_ids": _select_ids(2),
    "vector_stores.filters._query": matching_files(StoreScope("p", "vs"), _FILTER).query,
}
MADE_FOR_THE_WORKER = {
    "projects.retention._Walk.__init__": _Walk,
    "runs.claims.FairOrder._query": FairOrder,
    "webhooks.deliveries.DueDeliveries.__init__": DueDeliveries,
}


def reasons_of(name: str) -> list[str]:
    return [pattern for patterns in ALLOWED.values() for pattern in patterns if fnmatchcase(name, pattern.replace("[", "[[]"))]


def test_every_statement_names_its_project_or_is_named_here() -> None:
    wrong: list[str] = []
    needed: set[str] = set()
    count = 0
    for name, query in [*statements_of_modules(), *MADE_LATER.items()]:
        count += 1
        if why := why_of_many_projects(query):
            reasons = reasons_of(name)
            needed |= set(reasons)
            if not reasons:
                wrong.append(f"{name}: {why} without project_id")
    assert wrong == []
    assert count > 200
    assert {pattern for patterns in ALLOWED.values() for pattern in patterns} == needed, "an exception is not needed any more"


def test_no_statement_is_hidden_in_a_function() -> None:
    assert set(functions_with_statements()) == {*AT_IMPORT, *MADE_LATER, *MADE_FOR_THE_WORKER}


@pytest.mark.parametrize(
    "clause",
    [
        sa.select(assistants.c.body).where(assistants.c.id == sa.bindparam("id")),
        sa.select(assistants.c.body).where(
            sa.or_(assistants.c.id == sa.bindparam("id"), assistants.c.project_id == sa.bindparam("project_id"))
        ),
        sa.select(assistants.c.body).where(assistants.c.project_id == runs.c.project_id),
        sa.select(assistants.c.body).where(~(assistants.c.project_id == sa.bindparam("project_id"))),
        sa.select(sa.literal(1)).where(sa.exists().where(runs.c.id == sa.bindparam("id"))),
        sa.select(run_events.c.data).where(run_events.c.run_id == sa.bindparam("id")),
        sa.update(messages).where(messages.c.id == sa.bindparam("id")).values(body=sa.bindparam("body")),
        sa.delete(messages).where(messages.c.thread_id.in_(sa.select(runs.c.thread_id).where(runs.c.id == sa.bindparam("id")))),
        sa.union_all(
            sa.select(uploads.c.id).where(uploads.c.project_id == sa.bindparam("project_id")),
            sa.select(deleted_cursors.c.id).where(deleted_cursors.c.id == sa.bindparam("id")),
        ),
        sa.insert(upload_parts).from_select(["id", "project_id"], sa.select(uploads.c.id, uploads.c.project_id)),
        sa.text("SELECT body FROM runs"),
    ],
    ids=str,
)
def test_a_statement_of_several_projects_is_refused(clause: sa.ClauseElement) -> None:
    assert why_of_many_projects(Query(clause))


@pytest.mark.parametrize(
    "clause",
    [
        sa.select(assistants.c.body).where(assistants.c.id == sa.bindparam("id"), assistants.c.project_id == sa.bindparam("project_id")),
        sa.delete(messages).where(messages.c.id.in_(sa.select(messages.c.id).where(messages.c.project_id == sa.bindparam("project_id")))),
        sa.insert(upload_parts).from_select(["project_id"], sa.select(sa.bindparam("new_project_id"))),
    ],
    ids=str,
)
def test_a_statement_of_one_project_is_taken(clause: sa.ClauseElement) -> None:
    assert not why_of_many_projects(Query(clause))


def test_lists_of_all_projects_are_seen() -> None:
    listing = Listing(runs, ("thread_id",), "run")
    assert [name for name, query in statements_in(listing, "list") if why_of_many_projects(query)] == ["list._place", "list.page"]
