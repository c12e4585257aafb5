"""New threads and messages, as several endpoints need them: with a thread, alone, and with a run."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
from msgspec import UNSET

from mini_assistant.assistants.schema import CodeInterpreterTool, NewToolResources
from mini_assistant.assistants.tool_resources import AttachedFiles, check_files, new_resources, note_code_files, with_attached
from mini_assistant.db.base import Bound
from mini_assistant.ids import new_id
from mini_assistant.services import Services
from mini_assistant.threads import store
from mini_assistant.threads.schema import (
    Content,
    ContentInput,
    CreateMessage,
    CreateThread,
    ImageFileContent,
    Message,
    Text,
    TextContent,
    TextInput,
    Thread,
)


async def check_message_files(services: Services, project_id: str, bodies: Iterable[CreateMessage]) -> None:
    """Raise NotFound for the first file of new messages that does not exist."""
    file_ids: list[str] = []
    for body in bodies:
        file_ids += [attachment.file_id for attachment in body.attachments or []]
        if not isinstance(body.content, str):
            file_ids += [part.image_file.file_id for part in body.content if isinstance(part, ImageFileContent)]
    await check_files(services, project_id, file_ids)


def new_message(services: Services, thread_id: str, body: CreateMessage) -> Message:
    """A message as a client sends it; its files have been checked.

    `assistant_id` and `run_id` stay None, also for the role `assistant` (behaviour §2.3).
    """
    now = services.now()
    return Message(
        id=new_id("msg"),
        created_at=now,
        assistant_id=None,
        thread_id=thread_id,
        run_id=None,
        status="completed",
        completed_at=now,
        role=body.role,
        content=_content(body.content),
        attachments=body.attachments or [],
        metadata=body.metadata or {},
    )


def _content(content: str | list[ContentInput]) -> list[Content]:
    if isinstance(content, str):
        return [TextContent(Text(content))]
    return [_content_part(part) for part in content]


def _content_part(part: ContentInput) -> Content:
    return TextContent(Text(part.text)) if isinstance(part, TextInput) else part


class NewThread(NamedTuple):
    """A thread with its first messages. statements: write it, the messages, and the vector store that it brings along."""

    thread: Thread
    body: str
    messages: list[Message]
    statements: list[Bound]


async def new_thread(services: Services, project_id: str, body: CreateThread, tool_resources: NewToolResources | None = None) -> NewThread:
    """A thread with its first messages, not yet written. `tool_resources` is used when `body` has none.

    Raises NotFound for a file or vector store that does not exist, and InvalidRequest for files that a tool cannot use.
    """
    bodies = body.messages or []
    await check_message_files(services, project_id, bodies)
    thread_id = new_id("thread")
    messages = [new_message(services, thread_id, message) for message in bodies]
    prepared = await new_resources(
        services,
        project_id,
        body.tool_resources or tool_resources,
        attached=_attached_files(messages),
        store_expiry_days=services.settings.thread_store_expiry_days,
    )
    thread = Thread(id=thread_id, created_at=services.now(), metadata=body.metadata or {}, tool_resources=prepared.resources)
    answer = msgspec.json.encode(thread).decode()
    statements = [
        *prepared.statements,
        store.insert_thread(project_id, thread, answer),
        *note_code_files(project_id, thread_id, thread.tool_resources),
        *insert_messages(project_id, messages),
    ]
    return NewThread(thread, answer, messages, statements)


async def attach_to_thread(services: Services, project_id: str, thread_id: str, messages: Sequence[Message]) -> list[Bound]:
    """Statements that give the files attached to new messages to the tools of their thread; none when nothing is attached.

    `write_with_files` raises RowsChanged when the thread has changed meanwhile. Raises NotFound for the thread, and InvalidRequest for
    files that a tool cannot use.
    """
    attached = _attached_files(messages)
    if not any(attached):
        return []
    seen = await store.get_thread_json(services, project_id, thread_id)
    thread = store.decode_thread(seen)
    prepared = await with_attached(services, project_id, thread.tool_resources, attached)
    thread.tool_resources = prepared.resources
    return [
        *prepared.statements,
        store.replace_thread(project_id, thread_id, seen, msgspec.json.encode(thread).decode()),
        *note_code_files(project_id, thread_id, thread.tool_resources),
    ]


async def delete_thread(services: Services, project_id: str, thread_id: str, audit: Bound, condition: Sequence[Bound] = ()) -> None:
    """Delete a thread with its messages and runs, and whatever is kept of it in memory.

    audit: the line about it. condition: guards that must hold. Raises NotFound, and GuardFailed for one of the condition.
    """
    for run_id in await store.delete_thread(services, project_id, thread_id, audit, condition):
        services.events.forget(run_id)
        services.queue.put("run", run_id, to_all=True)  # its worker finds that the run is gone and stops
    for tool in services.tools.values():
        tool.forget_thread(project_id, thread_id)


def _attached_files(messages: Sequence[Message]) -> AttachedFiles:
    to_search, to_code = dict[str, None](), dict[str, None]()
    for attachment in [attachment for message in messages for attachment in message.attachments]:
        for tool in [] if attachment.tools is UNSET else attachment.tools:
            files = to_code if isinstance(tool, CodeInterpreterTool) else to_search
            files[attachment.file_id] = None
    return AttachedFiles(list(to_search), list(to_code))


def insert_messages(project_id: str, messages: Sequence[Message]) -> list[Bound]:
    """Statements that write messages in their order."""
    return [store.insert_message(project_id, message) for message in messages]
