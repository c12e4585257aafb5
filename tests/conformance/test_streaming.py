"""Event streams: which events come in which order, what the deltas hold, and how a stream ends."""

import asyncio
from typing import Any

import aiohttp
import openai

from mini_assistant.models.script import Refusal, Respond, Rule, Script, ScriptedCall, Stall, Step, Text, ToolCalls, Wait
from mini_assistant.models.scripted import ScriptedEndpoint
from tests.conformance.conversations import (
    CALL_BOTH,
    CALL_WEATHER,
    CLOCK,
    WEATHER,
    answer_turns,
    answer_with,
    finished_run,
    messages_of,
    new_assistant,
    pending_ids,
    steps_of,
    text_of,
    thread_saying,
)
from tests.conformance.raw_http import Frame, call, names, open_stream, read_stream
from tests.conformance.server_settings import server_with
from tests.conformance.strictness import wire

RUN_STARTS = ["thread.run.created", "thread.run.queued", "thread.run.in_progress"]
STEP_STARTS = ["thread.run.step.created", "thread.run.step.in_progress"]
MESSAGE_STARTS = [*STEP_STARTS, "thread.message.created", "thread.message.in_progress", "thread.message.delta"]
MESSAGE = [*MESSAGE_STARTS, "thread.message.completed", "thread.run.step.completed"]
CALLS = [*STEP_STARTS, "thread.run.step.delta"]
COMPLETED = ["thread.run.completed", "done"]
CONTINUED = ["thread.run.step.completed", "thread.run.queued", "thread.run.in_progress"]


async def prepared(sdk: openai.AsyncOpenAI, text: str = "Hello", *, tools: list[Any] | None = None) -> tuple[str, dict[str, Any]]:
    """The path that creates a run, and a body that asks for a stream."""
    assistant, thread = await new_assistant(sdk, tools=tools or []), await thread_saying(sdk, text)
    return f"/v1/threads/{thread.id}/runs", {"assistant_id": assistant.id, "stream": True}


def outputs_for(frames: list[Frame], *outputs: str) -> tuple[str, dict[str, Any]]:
    """The path and the body that answer the calls with which a stream has ended."""
    run = frames[-2].data
    calls = run["required_action"]["submit_tool_outputs"]["tool_calls"]
    given = [{"tool_call_id": waiting["id"], "output": output} for waiting, output in zip(calls, outputs, strict=True)]
    return f"/v1/threads/{run['thread_id']}/runs/{run['id']}/submit_tool_outputs", {"tool_outputs": given, "stream": True}


def told_text(frames: list[Frame]) -> str:
    """The text of all message deltas together."""
    return "".join(frame.data["delta"]["content"][0]["text"]["value"] for frame in frames if frame.name == "thread.message.delta")


async def test_a_text_answer(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    path, body = await prepared(sdk, "Hello there")
    frames = await read_stream(http, "POST", path, body)
    assert [frame.name for frame in frames] == [
        "thread.run.created",
        "thread.run.queued",
        "thread.run.in_progress",
        "thread.run.step.created",
        "thread.run.step.in_progress",
        "thread.message.created",
        "thread.message.in_progress",
        "thread.message.delta",
        "thread.message.delta",
        "thread.message.delta",
        "thread.message.delta",
        "thread.message.completed",
        "thread.run.step.completed",
        "thread.run.completed",
        "done",
    ]
    step, message, run = frames[3].data, frames[5].data, frames[13].data
    assert (step["status"], step["type"], step["usage"]) == ("in_progress", "message_creation", None)
    assert step["step_details"]["message_creation"]["message_id"] == message["id"]
    assert (message["status"], message["content"], message["run_id"], message["role"]) == ("in_progress", [], run["id"], "assistant")
    first, *later = [frame.data["delta"]["content"] for frame in frames[7:11]]
    assert first == [{"index": 0, "type": "text", "text": {"value": "You ", "annotations": []}}]
    assert [content[0]["text"] for content in later] == [{"value": "said: "}, {"value": "Hello "}, {"value": "there"}]
    assert told_text(frames) == frames[11].data["content"][0]["text"]["value"] == "You said: Hello there"
    assert frames[12].data["usage"] == run["usage"] != None  # noqa: E711  both, and not null
    assert all(frame.data["usage"] is None for frame in frames[:3])
    # What was told is what can be read afterwards.
    assert (await call(http, "GET", f"{path}/{run['id']}")).body == run
    assert (await call(http, "GET", f"{path}/{run['id']}/steps/{step['id']}")).body == frames[12].data
    assert (await call(http, "GET", f"/v1/threads/{run['thread_id']}/messages/{message['id']}")).body == frames[11].data


async def test_the_framing_is_exact(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    path, body = await prepared(sdk)
    async with http.post(path, json=body) as response:
        text = await response.text()
    assert text.startswith('event: thread.run.created\ndata: {"id":"run_')
    assert text.endswith("\n\nevent: done\ndata: [DONE]\n\n")
    frames = text.removesuffix("\n\n").split("\n\n")
    assert all([line.split(": ", 1)[0] for line in frame.split("\n")] == ["event", "data"] for frame in frames)


async def test_create_and_run_begins_with_the_thread(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    assistant = await new_assistant(sdk)
    said = {"messages": [{"role": "user", "content": "Hi"}], "metadata": {"a": "1"}}
    frames = await read_stream(http, "POST", "/v1/threads/runs", {"assistant_id": assistant.id, "thread": said, "stream": True})
    assert names(frames) == ["thread.created", *RUN_STARTS, *MESSAGE, *COMPLETED]
    assert frames[0].data == (await call(http, "GET", f"/v1/threads/{frames[0].data['id']}")).body
    assert frames[1].data["thread_id"] == frames[0].data["id"]


async def test_a_function_call_ends_the_stream_and_its_outputs_begin_another(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    path, body = await prepared(sdk, CALL_WEATHER, tools=[WEATHER])
    frames = await read_stream(http, "POST", path, body)
    assert names(frames) == [*RUN_STARTS, *CALLS, "thread.run.requires_action", "done"]
    step, run = frames[3].data, frames[-2].data
    assert (step["type"], step["step_details"]["tool_calls"]) == ("tool_calls", [])
    [pending] = run["required_action"]["submit_tool_outputs"]["tool_calls"]
    deltas = [frame.data["delta"]["step_details"] for frame in frames if frame.name == "thread.run.step.delta"]
    assert all(delta["type"] == "tool_calls" for delta in deltas)
    first, *later = [delta["tool_calls"][0] for delta in deltas]
    empty = {"name": "weather", "arguments": "", "output": None}
    assert first == {"index": 0, "id": pending["id"], "type": "function", "function": empty}
    assert len(later) > 1
    assert all(piece.keys() == {"index", "type", "function"} and piece["function"].keys() == {"arguments"} for piece in later)
    assert "".join(piece["function"]["arguments"] for piece in later) == pending["function"]["arguments"] == '{"city":"Oslo"}'
    assert run["usage"] is None

    continued = await read_stream(http, "POST", *outputs_for(frames, "sunny"))
    assert names(continued) == [*CONTINUED, *MESSAGE, *COMPLETED]
    ended = continued[0].data
    assert (ended["id"], ended["status"], ended["step_details"]["tool_calls"][0]["function"]["output"]) == (
        step["id"],
        "completed",
        "sunny",
    )
    assert ended["usage"]["total_tokens"] > 0
    assert continued[1].data["required_action"] is None
    assert continued[1].data["expires_at"] == run["expires_at"]
    assert told_text(continued) == "The tool returned: sunny"


async def test_parallel_calls_are_told_apart_by_their_index(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    path, body = await prepared(sdk, CALL_BOTH, tools=[WEATHER, CLOCK])
    frames = await read_stream(http, "POST", path, body)
    assert names(frames) == [*RUN_STARTS, *CALLS, "thread.run.requires_action", "done"]
    told: dict[int, dict[str, str]] = {0: {}, 1: {}}
    for frame in frames:
        if frame.name == "thread.run.step.delta":
            [piece] = frame.data["delta"]["step_details"]["tool_calls"]
            whole = told[piece["index"]]
            for field, value in (("id", piece.get("id", "")), *((name, text or "") for name, text in piece["function"].items())):
                whole[field] = whole.get(field, "") + value
    calls = frames[-2].data["required_action"]["submit_tool_outputs"]["tool_calls"]
    assert [(whole["id"], whole["name"], whole["arguments"]) for whole in told.values()] == [
        (waiting["id"], waiting["function"]["name"], waiting["function"]["arguments"]) for waiting in calls
    ]
    assert [waiting["function"]["name"] for waiting in calls] == ["weather", "clock"]


async def test_text_then_a_call_then_text_are_two_messages_one_after_the_other(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint
) -> None:
    answer_turns(endpoint, [Text("Let me look."), ToolCalls([ScriptedCall("clock")])], [Text("It is noon.")])
    path, body = await prepared(sdk, tools=[CLOCK])
    frames = await read_stream(http, "POST", path, body)
    assert names(frames) == [*RUN_STARTS, *MESSAGE, *CALLS, "thread.run.requires_action", "done"]
    continued = await read_stream(http, "POST", *outputs_for(frames, "12:00"))
    assert names(continued) == [*CONTINUED, *MESSAGE, *COMPLETED]
    assert (told_text(frames), told_text(continued)) == ("Let me look.", "It is noon.")


async def test_a_call_that_cannot_be_made_goes_on_in_the_same_stream(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint
) -> None:
    answer_turns(endpoint, [Text("Let me fly."), ToolCalls([ScriptedCall("fly")])], [Text("I cannot.")])
    path, body = await prepared(sdk, tools=[CLOCK])
    frames = await read_stream(http, "POST", path, body)
    assert names(frames) == [*RUN_STARTS, *MESSAGE, *CALLS, "thread.run.step.completed", *MESSAGE, *COMPLETED]


async def test_a_refusal_is_a_part_of_its_own(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint) -> None:
    answer_with(endpoint, Text("Well. "), Refusal("I will not."))
    path, body = await prepared(sdk)
    frames = await read_stream(http, "POST", path, body)
    assert names(frames) == [*RUN_STARTS, *MESSAGE, *COMPLETED]
    parts = [frame.data["delta"]["content"][0] for frame in frames if frame.name == "thread.message.delta"]
    assert [part["index"] for part in parts] == [0, 1, 1, 1]
    assert "".join(part["refusal"] for part in parts[1:]) == "I will not."
    [ended] = [frame.data for frame in frames if frame.name == "thread.message.completed"]
    assert [part["type"] for part in ended["content"]] == ["text", "refusal"]


async def test_a_model_that_fails_before_it_speaks(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint
) -> None:
    answer_with(endpoint, Respond(429, {"error": {"message": "Slow down"}}))
    path, body = await prepared(sdk)
    frames = await read_stream(http, "POST", path, body)
    assert names(frames) == [*RUN_STARTS, "thread.run.failed", "done"]
    assert frames[-2].data["last_error"]["code"] == "rate_limit_exceeded"


@server_with(model_chunk_timeout_seconds=0.3)
async def test_a_model_that_fails_in_the_middle(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint) -> None:
    answer_with(endpoint, Text("Once upon a time"), Stall())
    path, body = await prepared(sdk)
    frames = await read_stream(http, "POST", path, body)
    ends = ["thread.message.incomplete", "thread.run.step.failed", "thread.run.failed", "done"]
    assert names(frames) == [*RUN_STARTS, *MESSAGE_STARTS, *ends]
    message, step, run = (frame.data for frame in frames[-4:-1])
    assert (message["incomplete_details"], told_text(frames)) == ({"reason": "run_failed"}, message["content"][0]["text"]["value"])
    assert step["last_error"]["code"] == run["last_error"]["code"] == "server_error"


@server_with(model_chunk_timeout_seconds=0.3)
async def test_a_model_that_fails_inside_a_call(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint) -> None:
    answer_with(endpoint, Text("Let me look."), ToolCalls([ScriptedCall("clock", '{"zone":"UTC"}')]), Stall())
    path, body = await prepared(sdk, tools=[CLOCK])
    frames = await read_stream(http, "POST", path, body)
    assert names(frames) == [*RUN_STARTS, *MESSAGE, *CALLS, "thread.run.step.failed", "thread.run.failed", "done"]


async def test_an_answer_that_reaches_its_budget(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint) -> None:
    answer_with(endpoint, Text(["word "], repeat=300))
    path, body = await prepared(sdk)
    frames = await read_stream(http, "POST", path, {**body, "max_completion_tokens": 256})
    ends = ["thread.message.incomplete", "thread.run.step.completed", "thread.run.incomplete", "done"]
    assert names(frames) == [*RUN_STARTS, *MESSAGE_STARTS, *ends]
    message, step, run = (frame.data for frame in frames[-4:-1])
    assert (message["incomplete_details"], told_text(frames)) == ({"reason": "max_tokens"}, message["content"][0]["text"]["value"])
    assert step["usage"] == run["usage"]


async def test_cancelling_in_the_middle(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint) -> None:
    answer_with(endpoint, Text("As far as I know"), Stall())
    path, body = await prepared(sdk)
    frames: list[Frame] = []
    async with open_stream(http, "POST", path, body) as stream:
        async for frame in stream:
            frames.append(frame)
            if frame.name == "thread.message.delta" and told_text(frames) == "As far as I know":
                cancelled = await call(http, "POST", f"{path}/{frames[0].data['id']}/cancel")
                assert cancelled.body["status"] == "cancelling"
    ends = ["thread.run.cancelling", "thread.message.incomplete", "thread.run.step.cancelled", "thread.run.cancelled", "done"]
    assert names(frames) == [*RUN_STARTS, *MESSAGE_STARTS, *ends]
    message = frames[-4].data
    assert (message["incomplete_details"], message["content"][0]["text"]["value"]) == ({"reason": "run_cancelled"}, "As far as I know")


async def test_cancelling_before_the_model_has_spoken(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint
) -> None:
    answer_with(endpoint, Stall())
    path, body = await prepared(sdk)
    frames: list[Frame] = []
    async with open_stream(http, "POST", path, body) as stream:
        async for frame in stream:
            frames.append(frame)
            if frame.name == "thread.run.in_progress":
                await call(http, "POST", f"{path}/{frame.data['id']}/cancel")
    assert names(frames) == [*RUN_STARTS, "thread.run.cancelling", "thread.run.cancelled", "done"]


@server_with(run_expiry_seconds=1, sweep_interval_seconds=0.05)
async def test_expiring_in_the_middle(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint) -> None:
    answer_with(endpoint, Text("I am still thinking"), Stall())
    path, body = await prepared(sdk)
    frames = await read_stream(http, "POST", path, body)
    ends = ["thread.message.incomplete", "thread.run.step.expired", "thread.run.expired", "done"]
    assert names(frames) == [*RUN_STARTS, *MESSAGE_STARTS, *ends]
    assert frames[-4].data["incomplete_details"] == {"reason": "run_expired"}


async def test_a_wrong_request_is_answered_without_a_stream(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    path, body = await prepared(sdk, CALL_WEATHER, tools=[WEATHER])
    assert (await call(http, "POST", path, {**body, "max_prompt_tokens": 1})).status == 400
    assert (await call(http, "POST", path, {**body, "assistant_id": "asst_unknown"})).status == 404
    frames = await read_stream(http, "POST", path, body)
    assert (await call(http, "POST", path, body)).status == 400
    submit_path, outputs = outputs_for(frames, "sun")
    assert (await call(http, "POST", submit_path, {**outputs, "tool_outputs": []})).status == 400


async def test_every_stream_tells_the_same_whatever_the_size_of_the_pieces(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint
) -> None:
    text = 'Zoë said: "1 < 2 & 3"\n\tand 😀 — \\ and \u2028 end\x7f'
    for steps in ([Text([text])], [Text(list(text))], [Text(list(text[:9]), delay_seconds=0.002), Wait(0.01), Text([text[9:]])]):
        pieces: list[Step] = list(steps)
        endpoint.script = Script([Rule(pieces)])
        path, body = await prepared(sdk)
        frames = await read_stream(http, "POST", path, body)
        assert told_text(frames) == text
        [message] = [frame.data for frame in frames if frame.name == "thread.message.completed"]
        assert message["content"][0]["text"]["value"] == text


async def test_runs_that_stream_at_the_same_time_do_not_mix(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, endpoint: ScriptedEndpoint
) -> None:
    texts = {f"<{number}>": f"{number} " * 40 for number in range(8)}
    endpoint.script = Script([Rule([Text(text, delay_seconds=0.001)], contains=mark) for mark, text in texts.items()])
    prepared_runs = [await prepared(sdk, mark) for mark in texts]
    streams = await asyncio.gather(*(read_stream(http, "POST", path, body) for path, body in prepared_runs))
    assert [told_text(frames) for frames in streams] == list(texts.values())
    for frames in streams:
        run_id = frames[0].data["id"]
        assert names(frames) == [*RUN_STARTS, *MESSAGE, *COMPLETED]
        assert {frame.data["id"] for frame in frames if frame.name.count(".") == 2 and frame.name.startswith("thread.run.")} == {run_id}


async def test_a_stream_and_polling_lead_to_the_same_objects(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    polled = await finished_run(sdk, CALL_WEATHER, tools=[WEATHER])
    path, body = await prepared(sdk, CALL_WEATHER, tools=[WEATHER])
    frames = await read_stream(http, "POST", path, body)
    changing = {"id", "thread_id", "assistant_id", "created_at", "started_at", "expires_at", "required_action"}
    streamed = frames[-2].data
    assert {k: v for k, v in streamed.items() if k not in changing} == {k: v for k, v in wire(polled).items() if k not in changing}
    assert len(pending_ids(polled)) == 1
    [step] = await steps_of(sdk, polled)
    assert (step.status, await messages_of(sdk, polled)) == ("in_progress", [])
    assert text_of((await sdk.beta.threads.messages.list(polled.thread_id)).data[0]) == CALL_WEATHER
