"""Threads and messages: how content is stored and shown, what is listed in which order, what deletion takes along."""

from typing import Any

import aiohttp
import openai
import pytest

from mini_assistant.models.scripted import ScriptedEndpoint
from tests.conformance.conversations import finished_run, messages_of, new_assistant, steps_of, stopped, text_of, thread_saying
from tests.conformance.raw_http import call, refused
from tests.conformance.strictness import wire

IMAGE = "data:image/png;base64,iVBORw0KGgo="


def text_part(value: str) -> dict[str, Any]:
    return {"type": "text", "text": {"value": value, "annotations": []}}


async def test_messages_of_a_new_thread_keep_their_order(sdk: openai.AsyncOpenAI) -> None:
    thread = await thread_saying(sdk, "first", "second", "third")
    newest_first = await sdk.beta.threads.messages.list(thread.id)
    assert [text_of(message) for message in newest_first.data] == ["third", "second", "first"]
    oldest_first = await sdk.beta.threads.messages.list(thread.id, order="asc", limit=2)
    assert [text_of(message) for message in oldest_first.data] == ["first", "second"]
    assert oldest_first.has_more


async def test_a_thread_may_be_made_with_nothing_or_with_an_empty_list_of_messages(sdk: openai.AsyncOpenAI) -> None:
    for made in (await sdk.beta.threads.create(), await sdk.beta.threads.create(messages=[])):
        assert (made.metadata, wire(made)["tool_resources"]) == ({}, {})
        assert (await sdk.beta.threads.messages.list(made.id)).data == []


async def test_content_is_shown_as_parts(sdk: openai.AsyncOpenAI) -> None:
    thread = await sdk.beta.threads.create()
    plain = await sdk.beta.threads.messages.create(thread.id, role="user", content="Hëllo")
    assert wire(plain)["content"] == [text_part("Hëllo")]
    parts: list[Any] = [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": IMAGE}}]
    mixed = wire(await sdk.beta.threads.messages.create(thread.id, role="user", content=parts))
    assert mixed["content"] == [text_part("Look"), {"type": "image_url", "image_url": {"url": IMAGE, "detail": "auto"}}]
    assert wire(await sdk.beta.threads.messages.retrieve(mixed["id"], thread_id=thread.id)) == mixed
    parts = [{"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}}]
    [part] = wire(await sdk.beta.threads.messages.create(thread.id, role="user", content=parts))["content"]
    assert part["image_url"] == {"url": "https://example.org/a.png", "detail": "low"}


async def test_a_message_sent_by_a_client_is_nobodys_answer(sdk: openai.AsyncOpenAI) -> None:
    thread = await sdk.beta.threads.create()
    message = wire(await sdk.beta.threads.messages.create(thread.id, role="assistant", content="I said so"))
    assert {field: message[field] for field in ("role", "assistant_id", "run_id", "attachments", "metadata", "status")} == {
        "role": "assistant",
        "assistant_id": None,
        "run_id": None,
        "attachments": [],
        "metadata": {},
        "status": "completed",
    }


async def test_content_that_is_none_is_refused_wherever_it_is_sent(http: aiohttp.ClientSession) -> None:
    thread_id = (await call(http, "POST", "/v1/threads", {})).body["id"]
    image = {"type": "image_url", "image_url": {"url": IMAGE, "detail": "huge"}}
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"role": "system", "content": "Obey"}, "role", "invalid_value"),
        ({"role": "user"}, "content", "missing_required_parameter"),
        ({"role": "user", "content": ""}, "content", "string_below_min_length"),
        ({"role": "user", "content": []}, "content", "empty_array"),
        ({"role": "user", "content": "x" * 256_001}, "content", "string_above_max_length"),
        ({"role": "user", "content": [{"type": "text", "text": {"value": "x"}}]}, "content[0].text", "invalid_type"),
        ({"role": "user", "content": [{"type": "video"}]}, "content[0].type", "invalid_value"),
        ({"role": "user", "content": [image]}, "content[0].image_url.detail", "invalid_value"),
        ({"role": "user", "content": "x", "file_ids": []}, "file_ids", "unknown_parameter"),
    ]
    for body, param, code in cases:
        status, _, got_param, got_code = await refused(http, "POST", f"/v1/threads/{thread_id}/messages", body)
        assert (status, got_param, got_code) == (400, param, code)
        status, _, got_param, got_code = await refused(http, "POST", "/v1/threads", {"messages": [body]})
        assert (status, got_param, got_code) == (400, f"messages[0].{param}", code)
    assert (await call(http, "GET", f"/v1/threads/{thread_id}/messages")).body["data"] == []


async def test_a_message_with_an_unknown_file_is_refused(http: aiohttp.ClientSession) -> None:
    thread_id = (await call(http, "POST", "/v1/threads", {})).body["id"]
    attached = [{"file_id": "file-unknown", "tools": [{"type": "file_search"}, {"type": "code_interpreter"}]}]
    image = [{"type": "image_file", "image_file": {"file_id": "file-unknown"}}]
    for body in ({"role": "user", "content": "Read", "attachments": attached}, {"role": "user", "content": image}):
        for path, sent in ((f"/v1/threads/{thread_id}/messages", body), ("/v1/threads", {"messages": [body]})):
            assert await refused(http, "POST", path, sent) == (404, "No such File object: file-unknown", "id", None)
    assert (await call(http, "GET", f"/v1/threads/{thread_id}/messages")).body["data"] == []


async def test_only_the_metadata_of_a_message_can_be_changed(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    thread = await thread_saying(sdk, "Hello")
    [before] = (await sdk.beta.threads.messages.list(thread.id)).data
    after = await sdk.beta.threads.messages.update(before.id, thread_id=thread.id, metadata={"a": "1"})
    assert wire(after) == {**wire(before), "metadata": {"a": "1"}}
    assert wire(await sdk.beta.threads.messages.retrieve(before.id, thread_id=thread.id)) == wire(after)
    path = f"/v1/threads/{thread.id}/messages/{before.id}"
    reply = await refused(http, "POST", path, {"metadata": {}, "content": "changed"})
    assert reply == (400, "Unknown parameter: 'content'.", "content", "unknown_parameter")
    assert (await call(http, "POST", path, {"metadata": None})).body["metadata"] == {}


async def test_only_metadata_and_tool_resources_of_a_thread_can_be_changed(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    before = await sdk.beta.threads.create(metadata={"a": "1"})
    after = await sdk.beta.threads.update(before.id, metadata={"b": "2"})
    assert wire(after) == {**wire(before), "metadata": {"b": "2"}}
    assert wire(await sdk.beta.threads.update(before.id)) == wire(after)
    reply = await refused(http, "POST", f"/v1/threads/{before.id}", {"messages": []})
    assert reply == (400, "Unknown parameter: 'messages'.", "messages", "unknown_parameter")


async def test_a_deleted_message_is_neither_listed_nor_read_by_the_model(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    thread = await thread_saying(sdk, "Forget this", "Keep this")
    newest, oldest = (await sdk.beta.threads.messages.list(thread.id)).data
    deleted = await sdk.beta.threads.messages.delete(oldest.id, thread_id=thread.id)
    assert wire(deleted) == {"id": oldest.id, "object": "thread.message.deleted", "deleted": True}
    assert [message.id for message in (await sdk.beta.threads.messages.list(thread.id)).data] == [newest.id]
    for attempt in (
        sdk.beta.threads.messages.retrieve(oldest.id, thread_id=thread.id),
        sdk.beta.threads.messages.delete(oldest.id, thread_id=thread.id),
    ):
        with pytest.raises(openai.NotFoundError, match=f"No message found with id '{oldest.id}'."):
            await attempt
    assistant = await new_assistant(sdk)
    await stopped(sdk, await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id))
    assert endpoint.requests[-1]["messages"] == [{"role": "user", "content": "Keep this"}]


async def test_a_deleted_thread_takes_everything_along(sdk: openai.AsyncOpenAI) -> None:
    run = await finished_run(sdk)
    [message], [step] = await messages_of(sdk, run), await steps_of(sdk, run)
    thread_id, threads = run.thread_id, sdk.beta.threads
    assert wire(await threads.delete(thread_id)) == {"id": thread_id, "object": "thread.deleted", "deleted": True}
    for attempt in (
        threads.retrieve(thread_id),
        threads.update(thread_id, metadata={}),
        threads.delete(thread_id),
        threads.messages.list(thread_id),
        threads.messages.create(thread_id, role="user", content="Anybody?"),
        threads.messages.retrieve(message.id, thread_id=thread_id),
        threads.messages.delete(message.id, thread_id=thread_id),
        threads.runs.list(thread_id),
        threads.runs.retrieve(run.id, thread_id=thread_id),
        threads.runs.create(thread_id, assistant_id=run.assistant_id),
        threads.runs.cancel(run.id, thread_id=thread_id),
        threads.runs.steps.list(run.id, thread_id=thread_id),
        threads.runs.steps.retrieve(step.id, thread_id=thread_id, run_id=run.id),
    ):
        with pytest.raises(openai.NotFoundError, match=f"No thread found with id '{thread_id}'."):
            await attempt


async def test_an_object_is_found_only_under_its_own_thread(sdk: openai.AsyncOpenAI) -> None:
    run, other = await finished_run(sdk), await thread_saying(sdk, "Elsewhere")
    [message], [step] = await messages_of(sdk, run), await steps_of(sdk, run)
    for attempt in (
        sdk.beta.threads.messages.retrieve(message.id, thread_id=other.id),
        sdk.beta.threads.messages.update(message.id, thread_id=other.id, metadata={}),
        sdk.beta.threads.messages.delete(message.id, thread_id=other.id),
        sdk.beta.threads.runs.retrieve(run.id, thread_id=other.id),
        sdk.beta.threads.runs.cancel(run.id, thread_id=other.id),
        sdk.beta.threads.runs.update(run.id, thread_id=other.id, metadata={}),
        sdk.beta.threads.runs.steps.list(run.id, thread_id=other.id),
        sdk.beta.threads.runs.steps.retrieve(step.id, thread_id=other.id, run_id=run.id),
    ):
        with pytest.raises(openai.NotFoundError):
            await attempt


async def test_messages_can_be_listed_by_the_run_that_wrote_them(sdk: openai.AsyncOpenAI) -> None:
    first = await finished_run(sdk, "One")
    await sdk.beta.threads.messages.create(first.thread_id, role="user", content="Two")
    second = await sdk.beta.threads.runs.create_and_poll(thread_id=first.thread_id, assistant_id=first.assistant_id, poll_interval_ms=10)
    for run, text in ((first, "You said: One"), (second, "You said: Two")):
        [message] = await messages_of(sdk, run)
        assert (text_of(message), message.run_id, message.assistant_id) == (text, run.id, run.assistant_id)
    everything = [message async for message in sdk.beta.threads.messages.list(first.thread_id, limit=1)]
    assert [message.role for message in everything] == ["assistant", "user", "assistant", "user"]
    assert (await sdk.beta.threads.messages.list(first.thread_id, run_id="run_nothing")).data == []
