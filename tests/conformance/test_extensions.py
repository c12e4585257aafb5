"""What this server adds: listing threads, attaching to a run again, and requests that may be repeated (`Idempotency-Key`)."""

import asyncio
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncAssistantEventHandler, AsyncStream
from openai.lib.streaming import AsyncAssistantStreamManager
from openai.types.beta import AssistantStreamEvent
from openai.types.beta.threads import Run

from mini_assistant.models.script import ScriptedCall, Stall, Text, ToolCalls, Wait
from mini_assistant.models.scripted import ScriptedEndpoint
from tests.conformance.conversations import (
    CALL_WEATHER,
    CLOCK,
    MODEL,
    WEATHER,
    answer_turns,
    answer_with,
    finished_run,
    messages_of,
    new_assistant,
    pending_ids,
    start_run,
    steps_of,
    stopped,
    submit,
    thread_saying,
)
from tests.conformance.raw_http import Frame, Reply, call, names, open_stream, read_stream, refused
from tests.conformance.server_settings import server_with
from tests.conformance.strictness import assert_same


def events_path(run: Run) -> str:
    return f"/v1/threads/{run.thread_id}/runs/{run.id}/events"


async def attach(http: aiohttp.ClientSession, run: Run, last_event_id: str | None = None) -> list[Frame]:
    """All that a run tells after an event, until it stops."""
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    return await read_stream(http, "GET", events_path(run), headers=headers)


def without_ids(frames: list[Frame]) -> list[tuple[str, Any]]:
    return [(frame.name, frame.data) for frame in frames]


async def test_threads_can_be_listed(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    made = [(await sdk.beta.threads.create(metadata={"number": str(number)})).id for number in range(3)]
    page = (await call(http, "GET", "/v1/threads?limit=2")).body
    assert ([thread["id"] for thread in page["data"]], page["has_more"]) == ([made[2], made[1]], True)
    page = (await call(http, "GET", f"/v1/threads?limit=2&after={page['last_id']}")).body
    assert ([thread["id"] for thread in page["data"]], page["has_more"]) == ([made[0]], False)
    assert page["data"][0] == (await call(http, "GET", f"/v1/threads/{made[0]}")).body


async def test_a_run_that_has_ended_can_be_told_again_from_any_event(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint
) -> None:
    answer_turns(endpoint, [Text("Let me fly."), ToolCalls([ScriptedCall("fly", '{"to":"Oslo"}')])], [Text("I cannot.")])
    assistant, thread = await new_assistant(sdk, tools=[CLOCK]), await thread_saying(sdk, "Fly!")
    path = f"/v1/threads/{thread.id}/runs"
    original = await read_stream(http, "POST", path, {"assistant_id": assistant.id, "stream": True})
    run = await sdk.beta.threads.runs.retrieve(original[0].data["id"], thread_id=thread.id)
    whole = await attach(http, run)
    assert without_ids(whole) == without_ids(original)
    ids = [frame.id for frame in whole[:-1]]
    assert len(set(ids)) == len(ids)
    for place, event_id in enumerate(ids[:-1], start=1):
        assert await attach(http, run, event_id) == whole[place:]


async def test_a_reader_can_come_back_in_the_middle_of_an_answer(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint
) -> None:
    answer_with(endpoint, Text("one two three ", delay_seconds=0.02), Wait(0.2), Text("four five six", delay_seconds=0.02))
    run = await start_run(sdk)
    read: list[Frame] = []
    last_event_id: str | None = None
    while not read or read[-1].name != "done":
        # Take one event, or a few, and go away.
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        async with open_stream(http, "GET", events_path(run), headers=headers) as stream:
            async for frame in stream:
                read.append(frame)
                if frame.name.endswith((".delta", ".created")):
                    last_event_id = frame.id
                    break
    assert read == await attach(http, run)
    assert sum(frame.name == "thread.message.delta" for frame in read) == 6


async def test_any_number_of_readers_get_the_same_events(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint
) -> None:
    answer_with(endpoint, Text("one two three four", delay_seconds=0.02))
    assistant, thread = await new_assistant(sdk), await thread_saying(sdk, "Count")
    path = f"/v1/threads/{thread.id}/runs"
    async with open_stream(http, "POST", path, {"assistant_id": assistant.id, "stream": True}) as stream:
        first: list[Frame] = []
        others: list[asyncio.Task[list[Frame]]] = []
        async for frame in stream:
            first.append(frame)
            if frame.name == "thread.message.delta":
                others.append(asyncio.create_task(read_stream(http, "GET", f"{path}/{first[0].data['id']}/events")))
        assert len(others) == 4
        for other in others:
            assert without_ids(await other) == without_ids(first)


async def test_attaching_while_a_run_waits_and_after_it_was_continued(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    waiting = await finished_run(sdk, CALL_WEATHER, tools=[WEATHER])
    told = await attach(http, waiting)
    assert names(told)[-2:] == ["thread.run.requires_action", "done"]
    assert told[-2].data["required_action"]["submit_tool_outputs"]["tool_calls"][0]["id"] == pending_ids(waiting)[0]
    run = await stopped(sdk, await submit(sdk, waiting, "sun"))
    whole = await attach(http, run)
    assert whole[: len(told) - 1] == told[:-1]
    assert await attach(http, run, told[-2].id) == whole[len(told) - 1 :]
    assert [names(whole)[-2], whole[len(told) - 1].name] == ["thread.run.completed", "thread.run.step.completed"]


async def test_a_reader_that_missed_only_the_end_is_told_that_this_was_all(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    run = await finished_run(sdk)
    last = (await attach(http, run))[-2]
    async with asyncio.timeout(2):
        assert names(await attach(http, run, last.id)) == ["done"]


async def test_an_attached_reader_sees_a_run_being_cancelled(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint
) -> None:
    answer_with(endpoint, Text("As far as"), Stall())
    run = await start_run(sdk)
    frames: list[Frame] = []
    async with open_stream(http, "GET", events_path(run)) as stream:
        async for frame in stream:
            frames.append(frame)
            if frame.name == "thread.message.in_progress":
                await sdk.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
    assert names(frames)[-5:] == [
        "thread.run.cancelling",
        "thread.message.incomplete",
        "thread.run.step.cancelled",
        "thread.run.cancelled",
        "done",
    ]
    assert frames == await attach(http, run)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="kept in memory"),
        pytest.param({"event_memory_bytes_max": 0, "sweep_interval_seconds": 0.05}, id="told from rows"),
    ],
    indirect=True,
)
async def test_the_helper_of_the_sdk_rebuilds_everything_from_an_attached_stream(
    sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint
) -> None:
    answer_turns(
        endpoint,
        [Text("Let me fly."), ToolCalls([ScriptedCall("fly"), ScriptedCall("clock")])],
        [Text("I cannot, and it is noon.")],
    )
    run = await stopped(sdk, await submit(sdk, await finished_run(sdk, tools=[CLOCK]), "12:00"))
    stream = sdk.get(events_path(run).removeprefix("/v1"), cast_to=object, stream=True, stream_cls=AsyncStream[AssistantStreamEvent])
    async with AsyncAssistantStreamManager(stream, event_handler=AsyncAssistantEventHandler()) as helper:
        final, steps, messages = await helper.get_final_run(), await helper.get_final_run_steps(), await helper.get_final_messages()
    assert_same([final], [run])
    assert_same(messages, await messages_of(sdk, run))
    retrieved = await steps_of(sdk, run)
    assert [step.id for step in steps] == [step.id for step in retrieved]
    for step, expected in zip(steps, retrieved, strict=True):
        if step.step_details.type == "tool_calls":
            assert expected.step_details.type == "tool_calls"
            for told, known in zip(step.step_details.tool_calls, expected.step_details.tool_calls, strict=True):
                assert told.type == known.type == "function"
                assert (told.id, told.function.name, told.function.arguments) == (known.id, known.function.name, known.function.arguments)


@server_with(event_retention_seconds=0, sweep_interval_seconds=0.05)
async def test_events_that_are_no_longer_kept_are_refused_and_not_waited_for(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    run = await finished_run(sdk)
    for _ in range(200):
        if await _status_of_attaching(http, run) == 400:
            break
        await asyncio.sleep(0.05)
    status, _, param, code = await refused(http, "GET", events_path(run))
    assert (status, param, code) == (400, "Last-Event-ID", "events_gone")


async def _status_of_attaching(http: aiohttp.ClientSession, run: Run) -> int:
    async with http.get(events_path(run)) as response:
        return response.status


async def test_an_event_id_that_was_never_sent_is_refused(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    run = await finished_run(sdk)
    for wrong in ("1", "one-two", "1-99", "1-2.x", "-1-1", "9" * 40):
        status, _, param, code = await refused(http, "GET", events_path(run), headers={"Last-Event-ID": wrong})
        assert (status, param, code) == (400, "Last-Event-ID", "invalid_value")
    unknown = events_path(run).replace(run.id, "run_unknown")
    assert (await refused(http, "GET", unknown))[:2] == (404, "No run found with id 'run_unknown'.")


async def test_a_repeated_request_gets_the_first_answer(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    assistant, thread = await new_assistant(sdk), await thread_saying(sdk)
    said = {"role": "user", "content": "Hello"}
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/v1/assistants", {"model": MODEL}),
        ("/v1/threads", {"messages": [said]}),
        (f"/v1/threads/{thread.id}/messages", said),
        (f"/v1/threads/{thread.id}/runs", {"assistant_id": assistant.id}),
        ("/v1/threads/runs", {"assistant_id": assistant.id, "thread": {"messages": [said]}}),
    ]
    for number, (path, body) in enumerate(requests):
        headers = {"Idempotency-Key": f"key-{number}"}
        first = await call(http, "POST", path, body, headers=headers)
        assert first.status == 200
        for _ in range(2):
            assert (await call(http, "POST", path, body, headers=headers)).body == first.body
        status, _, param, code = await refused(http, "POST", path, {**body, "metadata": {"a": "1"}}, headers=headers)
        assert (status, param, code) == (400, "Idempotency-Key", "idempotency_key_reused")
    assert len((await call(http, "GET", "/v1/assistants")).body["data"]) == 2
    assert len((await call(http, "GET", "/v1/threads")).body["data"]) == 3
    # The SDK can send the key too.
    options: Any = {"extra_headers": {"Idempotency-Key": "of the sdk"}}
    assert (await sdk.beta.threads.create(**options)).id == (await sdk.beta.threads.create(**options)).id


async def test_a_key_belongs_to_one_address_and_has_1_to_255_characters(http: aiohttp.ClientSession) -> None:
    await call(http, "POST", "/v1/threads", {}, headers={"Idempotency-Key": "k"})
    status, _, _, code = await refused(http, "POST", "/v1/assistants", {"model": MODEL}, headers={"Idempotency-Key": "k"})
    assert (status, code) == (400, "idempotency_key_reused")
    for key in ("", "k" * 256):
        status, _, param, code = await refused(http, "POST", "/v1/threads", {}, headers={"Idempotency-Key": key})
        assert (status, param, code) == (400, "Idempotency-Key", "invalid_value")
    assert (await call(http, "POST", "/v1/threads", {}, headers={"Idempotency-Key": "k" * 255})).status == 200


async def test_a_refused_request_may_be_sent_again_with_its_key(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    assistant, thread = await new_assistant(sdk), await thread_saying(sdk)
    path, headers = f"/v1/threads/{thread.id}/runs", {"Idempotency-Key": "k"}
    body = {"assistant_id": assistant.id}
    assert (await call(http, "POST", path, body, headers=headers)).status == 400
    await sdk.beta.threads.messages.create(thread.id, role="user", content="Now there is something to answer")
    assert (await call(http, "POST", path, body, headers=headers)).status == 200


async def repeated(http: aiohttp.ClientSession, path: str, body: Any = None) -> list[Reply]:
    """Six requests at the same time with one key."""
    return await asyncio.gather(*(call(http, "POST", path, body, headers={"Idempotency-Key": path}) for _ in range(6)))


async def test_simultaneous_repeats_make_one_object(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint
) -> None:
    answer_with(endpoint, Stall())
    assistant, thread = await new_assistant(sdk), await thread_saying(sdk, "Hello")
    said = {"messages": [{"role": "user", "content": "Hello"}]}
    for path, body in (
        ("/v1/assistants", {"model": MODEL}),
        ("/v1/threads", {}),
        (f"/v1/threads/{thread.id}/messages", {"role": "user", "content": "Again"}),
        ("/v1/threads/runs", {"assistant_id": assistant.id, "thread": said}),
    ):
        replies = await repeated(http, path, body)
        assert [(reply.status, reply.body) for reply in replies] == [(200, replies[0].body)] * 6
    assert len((await call(http, "GET", "/v1/assistants")).body["data"]) == 2
    assert len((await call(http, "GET", "/v1/threads")).body["data"]) == 3
    assert len((await call(http, "GET", f"/v1/threads/{thread.id}/messages")).body["data"]) == 2


async def test_simultaneous_repeats_start_continue_and_cancel_a_run_once(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint
) -> None:
    assistant, thread = await new_assistant(sdk, tools=[WEATHER]), await thread_saying(sdk, CALL_WEATHER)
    path = f"/v1/threads/{thread.id}/runs"
    replies = await repeated(http, path, {"assistant_id": assistant.id})
    assert [(reply.status, reply.body) for reply in replies] == [(200, replies[0].body)] * 6
    run = await stopped(sdk, await sdk.beta.threads.runs.retrieve(replies[0].body["id"], thread_id=thread.id))
    answer_with(endpoint, Stall())
    outputs = [{"tool_call_id": name, "output": "sun"} for name in pending_ids(run)]
    replies = await repeated(http, f"{path}/{run.id}/submit_tool_outputs", {"tool_outputs": outputs})
    assert [(reply.status, reply.body) for reply in replies] == [(200, replies[0].body)] * 6
    replies = await repeated(http, f"{path}/{run.id}/cancel")
    assert [(reply.status, reply.body) for reply in replies] == [(200, replies[0].body)] * 6
    assert (await stopped(sdk, run)).status == "cancelled"


async def test_a_repeated_stream_tells_the_same_from_its_beginning(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    assistant, thread = await new_assistant(sdk, tools=[WEATHER]), await thread_saying(sdk, CALL_WEATHER)
    path = f"/v1/threads/{thread.id}/runs"
    created = {"assistant_id": assistant.id, "stream": True}
    first = await read_stream(http, "POST", path, created, headers={"Idempotency-Key": "create"})
    run = first[-2].data
    outputs = [{"tool_call_id": run["required_action"]["submit_tool_outputs"]["tool_calls"][0]["id"], "output": "sun"}]
    submitted = {"tool_outputs": outputs, "stream": True}
    submit_path = f"{path}/{run['id']}/submit_tool_outputs"
    second = await read_stream(http, "POST", submit_path, submitted, headers={"Idempotency-Key": "submit"})
    assert names(second)[-2:] == ["thread.run.completed", "done"]
    assert await read_stream(http, "POST", submit_path, submitted, headers={"Idempotency-Key": "submit"}) == second
    assert await read_stream(http, "POST", path, created, headers={"Idempotency-Key": "create"}) == first
    assert len((await sdk.beta.threads.runs.list(thread.id)).data) == 1


async def test_a_repeated_stream_of_create_and_run_begins_with_the_thread(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    assistant = await new_assistant(sdk)
    body = {"assistant_id": assistant.id, "thread": {"messages": [{"role": "user", "content": "Hi"}]}, "stream": True}
    first = await read_stream(http, "POST", "/v1/threads/runs", body, headers={"Idempotency-Key": "k"})
    assert await read_stream(http, "POST", "/v1/threads/runs", body, headers={"Idempotency-Key": "k"}) == first
