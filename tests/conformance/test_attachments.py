"""Files and vector stores of assistants and threads, and files attached to messages, wherever messages are made."""

import asyncio
from typing import Any

import aiohttp
import openai
from openai.types.beta import Thread

from mini_assistant.models.script import Stall
from mini_assistant.models.scripted import ScriptedEndpoint
from tests.conformance.conversations import MODEL, answer_with, new_assistant, stopped
from tests.conformance.raw_http import call, refused
from tests.conformance.server_settings import server_with
from tests.conformance.stored_files import TOMATOES, found, ingested, listed, store_with, text_file, text_files
from tests.conformance.strictness import wire

SEARCH: list[Any] = [{"type": "file_search"}]
CODE: list[Any] = [{"type": "code_interpreter"}]


def attached(file_id: str, tools: list[Any]) -> list[Any]:
    return [{"file_id": file_id, "tools": tools}]


def saying(text: str, attachments: list[Any]) -> dict[str, Any]:
    return {"role": "user", "content": text, "attachments": attachments}


async def thread_resources(sdk: openai.AsyncOpenAI, thread_id: str) -> dict[str, Any]:
    return wire(await sdk.beta.threads.retrieve(thread_id))["tool_resources"]


async def thread_store(sdk: openai.AsyncOpenAI, thread_id: str) -> str:
    [store_id] = (await thread_resources(sdk, thread_id))["file_search"]["vector_store_ids"]
    return store_id


# --- resources ------------------------------------------------------------------------------------------------------------------


async def test_files_and_stores_that_exist_are_kept(sdk: openai.AsyncOpenAI) -> None:
    file_ids, store = await text_files(sdk, 2), await sdk.vector_stores.create()
    resources: Any = {"code_interpreter": {"file_ids": file_ids}, "file_search": {"vector_store_ids": [store.id]}}
    assistant = await new_assistant(sdk, tools=[*SEARCH, *CODE], tool_resources=resources)
    assert wire(assistant)["tool_resources"] == resources
    thread = await sdk.beta.threads.create(tool_resources=resources)
    assert wire(thread)["tool_resources"] == resources
    emptied: Any = {"code_interpreter": {"file_ids": []}, "file_search": {"vector_store_ids": []}}
    assert wire(await sdk.beta.assistants.update(assistant.id, tool_resources=emptied))["tool_resources"] == emptied
    assert wire(await sdk.beta.threads.update(thread.id, tool_resources=emptied))["tool_resources"] == emptied
    assert wire(await sdk.beta.threads.update(thread.id, tool_resources=resources))["tool_resources"] == resources


async def test_what_does_not_exist_is_not_found(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    assistant, thread = await new_assistant(sdk), await sdk.beta.threads.create()
    file_id = await text_file(sdk)
    store: Any = {"file_search": {"vector_store_ids": ["vs_unknown"]}}
    files: Any = {"code_interpreter": {"file_ids": [file_id, "file-unknown"]}}
    no_store = (404, "Vector store with id ['vs_unknown'] not found.", None, None)
    no_file = (404, "No such File object: file-unknown", "id", None)
    for path, body in (
        ("/v1/assistants", {"model": MODEL}),
        (f"/v1/assistants/{assistant.id}", {}),
        ("/v1/threads", {}),
        (f"/v1/threads/{thread.id}", {}),
        ("/v1/threads/runs", {"assistant_id": assistant.id, "thread": {"messages": [saying("Hello", [])]}}),
    ):
        assert await refused(http, "POST", path, {**body, "tool_resources": store}) == no_store
        assert await refused(http, "POST", path, {**body, "tool_resources": files}) == no_file
    made: Any = {"file_search": {"vector_stores": [{"file_ids": ["file-unknown"]}]}}
    assert await refused(http, "POST", "/v1/threads", {"tool_resources": made}) == no_file
    for body in (saying("Hello", attached("file-unknown", SEARCH)), {"role": "user", "content": [image("file-unknown")]}):
        assert await refused(http, "POST", f"/v1/threads/{thread.id}/messages", body) == no_file
        assert await refused(http, "POST", "/v1/threads", {"messages": [body]}) == no_file
        run = {"assistant_id": assistant.id, "additional_messages": [body]}
        assert await refused(http, "POST", f"/v1/threads/{thread.id}/runs", run) == no_file
    assert (await sdk.beta.threads.messages.list(thread.id)).data == []
    assert (await sdk.vector_stores.list()).data == []


def image(file_id: str) -> dict[str, Any]:
    return {"type": "image_file", "image_file": {"file_id": file_id}}


async def test_an_image_that_was_uploaded_is_taken(sdk: openai.AsyncOpenAI) -> None:
    picture = await sdk.files.create(file=("a.png", b"\x89PNG"), purpose="vision")
    thread = await sdk.beta.threads.create(messages=[{"role": "user", "content": [image(picture.id)]}])  # type: ignore[list-item]
    [message] = (await sdk.beta.threads.messages.list(thread.id)).data
    assert wire(message)["content"] == [{"type": "image_file", "image_file": {"file_id": picture.id, "detail": "auto"}}]


async def test_a_store_is_made_with_an_assistant(sdk: openai.AsyncOpenAI) -> None:
    file_id, table = await text_file(sdk), await text_file(sdk, "a,b", "a.csv")
    helper: Any = {"file_ids": [file_id, table], "metadata": {"a": "b"}, "chunking_strategy": {"type": "auto"}}
    assistant = await new_assistant(sdk, tools=SEARCH, tool_resources={"file_search": {"vector_stores": [helper]}})
    resources = wire(assistant)["tool_resources"]
    assert resources == {"file_search": {"vector_store_ids": [resources["file_search"]["vector_store_ids"][0]]}}
    [store_id] = resources["file_search"]["vector_store_ids"]
    assert (await ingested(sdk, store_id, file_id)).status == "completed"
    store = await sdk.vector_stores.retrieve(store_id)
    assert (store.expires_after, store.metadata, store.file_counts.failed) == (None, {"a": "b"}, 1)
    assert await found(sdk, store_id, "whales") == [file_id]
    assert await listed(sdk, store_id) == [table, file_id]


@server_with(thread_store_expiry_days=3)
async def test_a_store_made_with_a_thread_expires(sdk: openai.AsyncOpenAI) -> None:
    file_id = await text_file(sdk)
    resources: Any = {"file_search": {"vector_stores": [{"file_ids": [file_id]}]}}
    assistant = await new_assistant(sdk)
    first = await sdk.beta.threads.create(tool_resources=resources)
    messages: Any = [saying("Hello", [])]
    runs = [
        await sdk.beta.threads.create_and_run(assistant_id=assistant.id, thread={"messages": messages, "tool_resources": resources}),
        await sdk.beta.threads.create_and_run(assistant_id=assistant.id, thread={"messages": messages}, tool_resources=resources),
    ]
    for thread_id in [first.id, *[run.thread_id for run in runs]]:
        store = await sdk.vector_stores.retrieve(await thread_store(sdk, thread_id))
        assert wire(store)["expires_after"] == {"anchor": "last_active_at", "days": 3}
        assert await listed(sdk, store.id) == [file_id]
    for run in runs:
        assert (await stopped(sdk, run)).status == "completed"


async def test_helpers_that_are_refused(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    store, thread = await sdk.vector_stores.create(), await sdk.beta.threads.create()
    both = {"file_search": {"vector_store_ids": [store.id], "vector_stores": [{}]}}
    two = {"file_search": {"vector_stores": [{}, {}]}}
    for path, body in (("/v1/assistants", {"model": MODEL}), ("/v1/threads", {})):
        assert (await refused(http, "POST", path, {**body, "tool_resources": both}))[::2] == (400, "tool_resources.file_search")
        assert (await refused(http, "POST", path, {**body, "tool_resources": two}))[3] == "array_above_max_length"
    # Only creations make stores.
    update = await refused(http, "POST", f"/v1/threads/{thread.id}", {"tool_resources": {"file_search": {"vector_stores": [{}]}}})
    assert update[2:] == ("tool_resources.file_search.vector_stores", "unknown_parameter")
    assert len((await sdk.vector_stores.list()).data) == 1


# --- attachments ----------------------------------------------------------------------------------------------------------------


async def test_an_attachment_to_search_gives_the_thread_a_store(sdk: openai.AsyncOpenAI) -> None:
    first, second, third = await text_files(sdk, 3)
    thread = await sdk.beta.threads.create()
    message = await sdk.beta.threads.messages.create(thread.id, role="user", content="Hello", attachments=attached(first, SEARCH))
    assert wire(message)["attachments"] == attached(first, SEARCH)
    store = await sdk.vector_stores.retrieve(await thread_store(sdk, thread.id))
    assert wire(store)["expires_after"] == {"anchor": "last_active_at", "days": 7}
    assert store.expires_at == (store.last_active_at or 0) + 7 * 86_400
    more: Any = [*attached(second, SEARCH), *attached(third, [*SEARCH, *CODE]), *attached(second, SEARCH)]
    await sdk.beta.threads.messages.create(thread.id, role="user", content="Hello", attachments=more)
    assert await thread_resources(sdk, thread.id) == {
        "code_interpreter": {"file_ids": [third]},
        "file_search": {"vector_store_ids": [store.id]},
    }
    assert set(await listed(sdk, store.id)) == {first, second, third}
    assert (await ingested(sdk, store.id, third)).status == "completed"


async def test_an_attachment_goes_into_the_store_that_the_thread_has(sdk: openai.AsyncOpenAI) -> None:
    first, second = await text_files(sdk, 2)
    store_id = await store_with(sdk, first)
    resources: Any = {"file_search": {"vector_store_ids": [store_id]}}
    thread = await sdk.beta.threads.create(tool_resources=resources, messages=[saying("Hello", attached(second, SEARCH))])  # type: ignore[list-item]
    assert wire(thread)["tool_resources"] == resources
    assert set(await listed(sdk, store_id)) == {first, second}
    # Of a store that is gone, the thread has the id alone: it gets another one.
    await sdk.vector_stores.delete(store_id)
    await sdk.beta.threads.messages.create(thread.id, role="user", content="Hello", attachments=attached(first, SEARCH))
    assert await thread_store(sdk, thread.id) != store_id
    assert await listed(sdk, await thread_store(sdk, thread.id)) == [first]


async def test_attachments_join_the_store_that_is_made_with_the_thread(sdk: openai.AsyncOpenAI) -> None:
    first, second = await text_files(sdk, 2)
    resources: Any = {"file_search": {"vector_stores": [{"file_ids": [first]}]}, "code_interpreter": {"file_ids": [first]}}
    messages: Any = [saying("Hello", attached(second, [*SEARCH, *CODE])), saying("Hello", attached(first, [*SEARCH, *CODE]))]
    thread = await sdk.beta.threads.create(tool_resources=resources, messages=messages)
    assert wire(thread)["tool_resources"]["code_interpreter"] == {"file_ids": [first, second]}
    assert set(await listed(sdk, await thread_store(sdk, thread.id))) == {first, second}
    assert len((await sdk.vector_stores.list()).data) == 1


async def test_messages_that_come_with_a_run_bring_their_files(sdk: openai.AsyncOpenAI) -> None:
    first, second = await text_files(sdk, 2)
    assistant = await new_assistant(sdk)
    messages: Any = [saying("Hello", attached(first, SEARCH))]
    run = await sdk.beta.threads.create_and_run(assistant_id=assistant.id, thread={"messages": messages})
    await stopped(sdk, run)
    store_id = await thread_store(sdk, run.thread_id)
    assert await listed(sdk, store_id) == [first]
    more: Any = [saying("And this", attached(second, [*SEARCH, *CODE]))]
    run = await sdk.beta.threads.runs.create(run.thread_id, assistant_id=assistant.id, additional_messages=more)
    assert (await stopped(sdk, run)).status == "completed"
    assert await listed(sdk, store_id) == [second, first]
    assert (await thread_resources(sdk, run.thread_id))["code_interpreter"] == {"file_ids": [second]}


async def test_what_is_refused_leaves_nothing_behind(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint
) -> None:
    file_id, table = await text_file(sdk), await text_file(sdk, "a,b", "a.csv")
    assistant, thread = await new_assistant(sdk), await sdk.beta.threads.create()
    unsupported = saying("Hello", [*attached(file_id, [*SEARCH, *CODE]), *attached(table, SEARCH)])
    for path, body in (
        ("/v1/threads", {"messages": [unsupported]}),
        (f"/v1/threads/{thread.id}/messages", unsupported),
        (f"/v1/threads/{thread.id}/runs", {"assistant_id": assistant.id, "additional_messages": [unsupported]}),
        ("/v1/threads/runs", {"assistant_id": assistant.id, "thread": {"messages": [unsupported]}}),
    ):
        assert (await refused(http, "POST", path, body))[::3] == (400, "unsupported_file")
    answer_with(endpoint, Stall())
    run = await sdk.beta.threads.create_and_run(assistant_id=assistant.id, thread={"messages": [{"role": "user", "content": "Hello"}]})
    busy = f"/v1/threads/{run.thread_id}"
    fine = saying("Hello", attached(file_id, [*SEARCH, *CODE]))
    assert "while a run" in (await refused(http, "POST", f"{busy}/messages", fine))[1]
    another = {"assistant_id": assistant.id, "additional_messages": [fine]}
    assert "already has an active run" in (await refused(http, "POST", f"{busy}/runs", another))[1]
    await sdk.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
    for thread_id in (thread.id, run.thread_id):
        assert await thread_resources(sdk, thread_id) == {}
    assert (await sdk.beta.threads.messages.list(thread.id)).data == []
    assert (await sdk.vector_stores.list()).data == []
    no_thread = "/v1/threads/thread_unknown/messages"
    assert (await refused(http, "POST", no_thread, fine))[:2] == (404, "No thread found with id 'thread_unknown'.")
    assert (await sdk.vector_stores.list()).data == []


async def test_a_table_is_fine_for_code(sdk: openai.AsyncOpenAI) -> None:
    table, thread = await text_file(sdk, "a,b", "a.csv"), await sdk.beta.threads.create()
    await sdk.beta.threads.messages.create(thread.id, role="user", content="Hello", attachments=attached(table, CODE))
    assert await thread_resources(sdk, thread.id) == {"code_interpreter": {"file_ids": [table]}}


async def test_a_thread_has_at_most_20_files_for_code(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    file_ids = await text_files(sdk, 21)
    thread = await sdk.beta.threads.create(tool_resources={"code_interpreter": {"file_ids": file_ids[:19]}})
    path = f"/v1/threads/{thread.id}/messages"
    both = saying("Hello", [*attached(file_ids[19], CODE), *attached(file_ids[20], CODE)])
    assert (await refused(http, "POST", path, both))[2:] == ("attachments", "array_above_max_length")
    for file_id in (file_ids[19], file_ids[0]):  # the second is there already
        await call(http, "POST", path, saying("Hello", attached(file_id, CODE)))
    assert (await thread_resources(sdk, thread.id))["code_interpreter"] == {"file_ids": file_ids[:20]}


async def test_messages_at_the_same_time_bring_all_their_files(sdk: openai.AsyncOpenAI) -> None:
    file_ids = await text_files(sdk, 8)
    thread = await sdk.beta.threads.create()

    async def say(file_id: str) -> None:
        await sdk.beta.threads.messages.create(thread.id, role="user", content="Hello", attachments=attached(file_id, [*SEARCH, *CODE]))

    await asyncio.gather(*[say(file_id) for file_id in file_ids])
    resources = await thread_resources(sdk, thread.id)
    assert set(resources["code_interpreter"]["file_ids"]) == set(file_ids)
    assert set(await listed(sdk, await thread_store(sdk, thread.id))) == set(file_ids)
    assert len((await sdk.vector_stores.list()).data) == 1
    assert len((await sdk.beta.threads.messages.list(thread.id)).data) == 8


# --- deletion -------------------------------------------------------------------------------------------------------------------


async def test_a_deleted_file_is_gone_from_every_list(sdk: openai.AsyncOpenAI) -> None:
    kept, gone = await text_file(sdk), await text_file(sdk, TOMATOES)
    resources: Any = {"code_interpreter": {"file_ids": [gone, kept]}}
    assistant = await new_assistant(sdk, tools=CODE, tool_resources=resources, metadata={"file": gone})
    threads: list[Thread] = [
        await sdk.beta.threads.create(tool_resources=resources),
        await sdk.beta.threads.create(messages=[saying("Hello", attached(gone, CODE))]),  # type: ignore[list-item]
        await sdk.beta.threads.create(),
    ]
    await sdk.beta.threads.messages.create(threads[2].id, role="user", content="Hello", attachments=attached(gone, CODE))
    deleted = await sdk.beta.threads.create(tool_resources=resources)
    await sdk.beta.threads.delete(deleted.id)
    await sdk.files.delete(gone)
    left = wire(await sdk.beta.assistants.retrieve(assistant.id))
    assert (left["tool_resources"]["code_interpreter"]["file_ids"], left["metadata"]) == ([kept], {"file": gone})
    lists = [(await thread_resources(sdk, thread.id))["code_interpreter"]["file_ids"] for thread in threads]
    assert lists == [[kept], [], []]
