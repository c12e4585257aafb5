"""Rows of threads and messages."""

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from mini_assistant.db.base import Bound, GuardFailed, Query
from mini_assistant.db.tables import messages, run_is_active, runs, threads
from mini_assistant.errors import NotFound
from mini_assistant.pagination import Listing
from mini_assistant.services import Services
from mini_assistant.threads.schema import Message, Thread

thread_listing = Listing(threads, ("project_id",), "thread")
message_listing = Listing(messages, ("project_id", "thread_id"), "message")
decode_thread = msgspec.json.Decoder(Thread).decode
decode_message = msgspec.json.Decoder(Message).decode

_of_project = (threads.c.id == sa.bindparam("object_id"), threads.c.project_id == sa.bindparam("project_id"))
_select_thread = Query(sa.select(threads.c.body).where(*_of_project))
_lock_thread = Query(sa.select(threads.c.id).where(*_of_project).with_for_update())
_insert_thread = Query.insert_into(threads)
_replace_thread = Query(
    sa.update(threads)
    .where(*_of_project, threads.c.body == sa.bindparam("seen_body"))
    .values(body=sa.bindparam("new_body"))
    .returning(threads.c.id)
)
_delete_thread = Query(sa.delete(threads).where(*_of_project).returning(threads.c.id))

_of_thread = (
    messages.c.id == sa.bindparam("object_id"),
    messages.c.thread_id == sa.bindparam("thread_id"),
    messages.c.project_id == sa.bindparam("project_id"),
)
_select_message = Query(sa.select(messages.c.body).where(*_of_thread))
_insert_message = Query.insert_into(messages)
_replace_message = Query(
    sa.update(messages)
    .where(*_of_thread, messages.c.body == sa.bindparam("seen_body"))
    .values(body=sa.bindparam("new_body"))
    .returning(messages.c.id)
)
_update_message = Query(sa.update(messages).where(messages.c.id == sa.bindparam("object_id")).values(body=sa.bindparam("new_body")))
_delete_message = Query(sa.delete(messages).where(*_of_thread).returning(messages.c.id))
_no_active_run = Query(
    sa.select(sa.literal(1)).where(
        ~sa.exists().where(
            runs.c.thread_id == sa.bindparam("thread_id"),
            run_is_active,
        )
    )
)
_has_user_message = Query(
    sa.select(messages.c.id)
    .where(
        messages.c.thread_id == sa.bindparam("thread_id"), messages.c.project_id == sa.bindparam("project_id"), messages.c.role == "user"
    )
    .limit(1)
)
_select_history = Query(
    sa.select(messages.c.body)
    .where(messages.c.thread_id == sa.bindparam("thread_id"), messages.c.project_id == sa.bindparam("project_id"))
    .order_by(messages.c.created_at.desc(), messages.c.seq.desc())
    .limit(sa.bindparam("row_limit", type_=sa.Integer))
)
# Runs of which events are kept: those that go on, and those that have ended a moment ago.
_select_runs_with_events = Query(
    sa.select(runs.c.id).where(
        runs.c.thread_id == sa.bindparam("thread_id"),
        runs.c.project_id == sa.bindparam("project_id"),
        sa.or_(run_is_active, runs.c.ended_at.is_not(None)),
    )
)
# Of a thread in which nothing has happened since a unix time; locked, so that nothing can until it is deleted.
_require_idle = Query(
    sa.select(threads.c.id)
    .where(
        threads.c.id == sa.bindparam("thread_id"),
        threads.c.created_at < sa.bindparam("since", type_=sa.BigInteger),
        *[
            ~sa.exists().where(table.c.thread_id == threads.c.id, table.c.created_at >= sa.bindparam("since", type_=sa.BigInteger))
            for table in (messages, runs)
        ],
        ~sa.exists().where(runs.c.thread_id == threads.c.id, run_is_active),
    )
    .with_for_update()
)


def thread_not_found(thread_id: str) -> NotFound:
    """The error for an unknown thread."""
    return NotFound(f"No thread found with id '{thread_id[:100]}'.")


def message_not_found(message_id: str) -> NotFound:
    """The error for an unknown message."""
    return NotFound(f"No message found with id '{message_id[:100]}'.")


async def get_thread_json(services: Services, project_id: str, thread_id: str) -> str:
    """A thread's wire JSON. Raises NotFound."""
    rows = await services.db.read(_select_thread(object_id=thread_id, project_id=project_id))
    if not rows:
        raise thread_not_found(thread_id)
    return rows[0][0]


def insert_thread(project_id: str, thread: Thread, body: str) -> Bound:
    """Writes a new thread; `body` is its wire JSON."""
    return _insert_thread(id=thread.id, project_id=project_id, created_at=thread.created_at, body=body)


def require_thread(project_id: str, thread_id: str) -> Bound:
    """Guard `thread`: the thread exists, and stays until the list is committed."""
    return _lock_thread.guard("thread", object_id=thread_id, project_id=project_id)


def require_unlocked_thread(thread_id: str) -> Bound:
    """Guard `unlocked`: no run of the thread is active. Comes after `require_thread`."""
    return _no_active_run.guard("unlocked", thread_id=thread_id)


def replace_thread(project_id: str, thread_id: str, seen_body: str, new_body: str) -> Bound:
    """Writes a changed thread; its guard `changed` fails when the row is not `seen_body` any more."""
    return _replace_thread.guard("changed", object_id=thread_id, project_id=project_id, seen_body=seen_body, new_body=new_body)


async def delete_thread(services: Services, project_id: str, thread_id: str, audit: Bound, condition: Sequence[Bound] = ()) -> list[str]:
    """Delete a thread with its messages and runs; returns the runs of which events are kept. audit: the line about it.

    condition: guards that must hold. Raises NotFound, and GuardFailed for one of the condition.
    """
    try:
        rows = await services.db.write(
            [
                *condition,
                _select_runs_with_events(thread_id=thread_id, project_id=project_id),
                thread_listing.keep_place(project_id, thread_id, services.now()),
                _delete_thread.guard("exists", object_id=thread_id, project_id=project_id),
                audit,
            ]
        )
    except GuardFailed as exc:
        if exc.guard != "exists":
            raise
        raise thread_not_found(thread_id) from exc
    return [row[0] for row in rows[len(condition)]]


def require_idle_thread(thread_id: str, since: int) -> Bound:
    """Guard `idle`: nothing has happened in the thread since a unix time, and no run of it is active."""
    return _require_idle.guard("idle", thread_id=thread_id, since=since)


def insert_message(project_id: str, message: Message) -> Bound:
    """Writes a new message."""
    return _insert_message(
        id=message.id,
        project_id=project_id,
        created_at=message.created_at,
        body=msgspec.json.encode(message).decode(),
        thread_id=message.thread_id,
        run_id=message.run_id,
        role=message.role,
    )


def update_message(message: Message) -> Bound:
    """Writes a message that a run has changed; nothing happens when a client has deleted it meanwhile."""
    return _update_message(object_id=message.id, new_body=msgspec.json.encode(message).decode())


def replace_message(project_id: str, message: Message, seen_body: str, new_body: str) -> Bound:
    """Writes a message that a client has changed; its guard `changed` fails when the row is not `seen_body` any more."""
    return _replace_message.guard(
        "changed",
        object_id=message.id,
        thread_id=message.thread_id,
        project_id=project_id,
        seen_body=seen_body,
        new_body=new_body,
    )


async def get_message_json(services: Services, project_id: str, thread_id: str, message_id: str) -> str:
    """A message's wire JSON. Raises NotFound for the thread or the message."""
    rows = await services.db.read(_select_message(object_id=message_id, thread_id=thread_id, project_id=project_id))
    if not rows:
        await get_thread_json(services, project_id, thread_id)
        raise message_not_found(message_id)
    return rows[0][0]


async def get_message_or_none(services: Services, project_id: str, thread_id: str, message_id: str) -> Message | None:
    """A message, None when it does not exist (any more)."""
    rows = await services.db.read(_select_message(object_id=message_id, thread_id=thread_id, project_id=project_id))
    return decode_message(rows[0][0]) if rows else None


async def delete_message(services: Services, project_id: str, thread_id: str, message_id: str, audit: Bound) -> None:
    """Delete a message. audit: the line about it. Raises NotFound for the thread or the message."""
    try:
        await services.db.write(
            [
                message_listing.keep_place(project_id, message_id, services.now()),
                _delete_message.guard("exists", object_id=message_id, thread_id=thread_id, project_id=project_id),
                audit,
            ]
        )
    except GuardFailed as exc:
        await get_thread_json(services, project_id, thread_id)
        raise message_not_found(message_id) from exc


async def has_user_message(services: Services, project_id: str, thread_id: str) -> bool:
    """Whether the thread has anything that a run could answer."""
    return bool(await services.db.read(_has_user_message(thread_id=thread_id, project_id=project_id)))


async def get_history(services: Services, project_id: str, thread_id: str, limit: int) -> list[Message]:
    """The newest `limit` messages, oldest first."""
    rows = await services.db.read(_select_history(thread_id=thread_id, project_id=project_id, row_limit=limit))
    return [decode_message(body) for (body,) in reversed(rows)]
