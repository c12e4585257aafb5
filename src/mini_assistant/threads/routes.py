"""The endpoints of threads and messages."""

from collections.abc import Awaitable

import msgspec
from msgspec import UNSET

from mini_assistant.assistants.schema import Deleted, ToolResources
from mini_assistant.assistants.tool_resources import check_resources, note_code_files
from mini_assistant.db.base import GuardFailed
from mini_assistant.errors import RunStateConflict
from mini_assistant.http.routing import Request, Route, check_id
from mini_assistant.pagination import EMPTY_LIST, Page, list_schema
from mini_assistant.runs.store import active_run_id_or_none
from mini_assistant.threads import commands, store
from mini_assistant.threads.schema import CreateMessage, CreateThread, Message, ModifyMessage, ModifyThread, Thread
from mini_assistant.vector_stores.commands import RowsChanged, write_with_files


class MessagePage(Page, frozen=True):
    """Query of the list of messages. run_id: only messages that this run wrote."""

    run_id: str | None = None


async def create_thread(request: Request[CreateThread, None]) -> str:
    while True:
        new = await commands.new_thread(request.services, request.project_id, request.body)
        try:
            await write_with_files(request.services, [*new.statements, *request.remember(new.body)])
        except RowsChanged:
            continue  # one of its files or its vector store has changed in between
        return new.body


async def list_threads(request: Request[None, Page]) -> str:
    return await store.thread_listing.page(request.services.db, request.query, {"project_id": request.project_id})


async def get_thread(request: Request[None, None]) -> str:
    return await store.get_thread_json(request.services, request.project_id, request.path["thread_id"])


async def modify_thread(request: Request[ModifyThread, None]) -> str:
    services, thread_id, body = request.services, request.path["thread_id"], request.body
    if body.tool_resources is not UNSET:
        await check_resources(services, request.project_id, body.tool_resources)
    while True:
        seen = await store.get_thread_json(services, request.project_id, thread_id)
        thread = store.decode_thread(seen)
        if body.metadata is not UNSET:
            thread.metadata = body.metadata or {}
        if body.tool_resources is not UNSET:
            thread.tool_resources = body.tool_resources or ToolResources()
        answer = msgspec.json.encode(thread).decode()
        replaced = store.replace_thread(request.project_id, thread_id, seen, answer)
        try:
            await services.db.write([replaced, *note_code_files(request.project_id, thread_id, thread.tool_resources)])
        except GuardFailed:
            continue  # somebody else changed it in between: apply this change to theirs
        return answer


async def delete_thread(request: Request[None, None]) -> str:
    services, thread_id = request.services, request.path["thread_id"]
    await commands.delete_thread(services, request.project_id, thread_id, request.audit("thread.deleted", thread_id))
    return msgspec.json.encode(Deleted(thread_id, "thread.deleted")).decode()


async def create_message(request: Request[CreateMessage, None]) -> str:
    services, thread_id = request.services, request.path["thread_id"]
    await commands.check_message_files(services, request.project_id, [request.body])
    message = commands.new_message(services, thread_id, request.body)
    answer = msgspec.json.encode(message).decode()
    while True:
        statements = [
            store.require_thread(request.project_id, thread_id),
            store.require_unlocked_thread(thread_id),
            *await commands.attach_to_thread(services, request.project_id, thread_id, [message]),
            store.insert_message(request.project_id, message),
            *request.remember(answer),
        ]
        try:
            await write_with_files(services, statements)
        except RowsChanged:
            continue  # the thread or its vector store has changed in between: attach to it as it is now
        except GuardFailed as exc:
            if exc.guard == "thread":
                raise store.thread_not_found(thread_id) from exc
            run_id = await active_run_id_or_none(services, request.project_id, thread_id)
            raise RunStateConflict(f"Can't add messages to {thread_id} while a run {run_id} is active.") from exc
        return answer


async def list_messages(request: Request[None, MessagePage]) -> str:
    services, thread_id, page = request.services, request.path["thread_id"], request.query
    filters: dict[str, str] = {}
    if page.run_id is not None:
        check_id("run_id", page.run_id)
        filters["run_id"] = page.run_id
    answer = await store.message_listing.page(services.db, page, {"project_id": request.project_id, "thread_id": thread_id}, filters)
    if answer is EMPTY_LIST:
        await store.get_thread_json(services, request.project_id, thread_id)
    return answer


def get_message(request: Request[None, None]) -> Awaitable[str]:
    return store.get_message_json(request.services, request.project_id, request.path["thread_id"], request.path["message_id"])


async def modify_message(request: Request[ModifyMessage, None]) -> str:
    services, thread_id, message_id = request.services, request.path["thread_id"], request.path["message_id"]
    while True:
        seen = await store.get_message_json(services, request.project_id, thread_id, message_id)
        message = store.decode_message(seen)
        if message.status == "in_progress":  # the run that is writing it would overwrite the change
            raise RunStateConflict("Cannot update message with status 'in_progress'.")
        if request.body.metadata is not UNSET:
            message.metadata = request.body.metadata or {}
        answer = msgspec.json.encode(message).decode()
        try:
            await services.db.write([store.replace_message(request.project_id, message, seen, answer)])
        except GuardFailed:
            continue  # somebody else changed it in between: apply this change to theirs
        return answer


async def delete_message(request: Request[None, None]) -> str:
    thread_id, message_id = request.path["thread_id"], request.path["message_id"]
    audit = request.audit("thread.message.deleted", message_id)
    await store.delete_message(request.services, request.project_id, thread_id, message_id, audit)
    return msgspec.json.encode(Deleted(message_id, "thread.message.deleted")).decode()


ROUTES = [
    Route(
        method="POST",
        path="/threads",
        name="createThread",
        summary="Create a thread",
        call=create_thread,
        body=CreateThread,
        body_optional=True,
        answer=Thread,
    ),
    Route(
        method="GET",
        path="/threads",
        name="listThreads",
        summary="List threads (extension)",
        call=list_threads,
        query=Page,
        answer=list_schema(Thread),
    ),
    Route(method="GET", path="/threads/{thread_id}", name="getThread", summary="Get a thread", call=get_thread, answer=Thread),
    Route(
        method="POST",
        path="/threads/{thread_id}",
        name="modifyThread",
        summary="Change a thread",
        call=modify_thread,
        body=ModifyThread,
        body_optional=True,
        answer=Thread,
    ),
    Route(
        method="DELETE",
        path="/threads/{thread_id}",
        name="deleteThread",
        summary="Delete a thread with its messages and runs",
        call=delete_thread,
        answer=Deleted,
    ),
    Route(
        method="POST",
        path="/threads/{thread_id}/messages",
        name="createMessage",
        summary="Add a message",
        call=create_message,
        body=CreateMessage,
        answer=Message,
    ),
    Route(
        method="GET",
        path="/threads/{thread_id}/messages",
        name="listMessages",
        summary="List messages",
        call=list_messages,
        query=MessagePage,
        answer=list_schema(Message),
    ),
    Route(
        method="GET",
        path="/threads/{thread_id}/messages/{message_id}",
        name="getMessage",
        summary="Get a message",
        call=get_message,
        answer=Message,
    ),
    Route(
        method="POST",
        path="/threads/{thread_id}/messages/{message_id}",
        name="modifyMessage",
        summary="Change a message's metadata",
        call=modify_message,
        body=ModifyMessage,
        body_optional=True,
        answer=Message,
    ),
    Route(
        method="DELETE",
        path="/threads/{thread_id}/messages/{message_id}",
        name="deleteMessage",
        summary="Delete a message",
        call=delete_message,
        answer=Deleted,
    ),
]
