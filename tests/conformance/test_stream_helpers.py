"""The official SDK's stream helpers: what they rebuild from events is what can be read afterwards."""

from typing import Any

import openai
from openai import AsyncAssistantEventHandler
from openai.types.beta import AssistantStreamEvent
from openai.types.beta.threads import Message, Run, Text, TextDelta
from openai.types.beta.threads.runs import RunStep, ToolCall
from typing_extensions import override

from mini_assistant.models.script import ErrorFrame, Refusal, Respond, Rule, Script, ScriptedCall, Stall, ToolCalls, Wait
from mini_assistant.models.script import Text as ScriptedText
from mini_assistant.models.scripted import ScriptedEndpoint
from tests.conformance.conversations import (
    CALL_BOTH,
    CALL_WEATHER,
    CLOCK,
    WEATHER,
    answer_turns,
    answer_with,
    messages_of,
    new_assistant,
    pending_ids,
    steps_of,
    stopped,
    thread_saying,
)
from tests.conformance.server_settings import server_with
from tests.conformance.strictness import assert_same, check_event, wire


class Listener(AsyncAssistantEventHandler):
    """Notes which callbacks were called, and checks each event strictly."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.tool_calls: list[ToolCall] = []
        self.text = ""

    @override
    async def on_event(self, event: AssistantStreamEvent) -> None:
        check_event(event.event, event.data.model_dump_json(by_alias=True, exclude_unset=True))

    @override
    async def on_message_created(self, message: Message) -> None:
        self.calls.append("message created")

    @override
    async def on_text_created(self, text: Text) -> None:
        self.calls.append("text created")

    @override
    async def on_text_delta(self, delta: TextDelta, snapshot: Text) -> None:
        self.text += delta.value or ""

    @override
    async def on_text_done(self, text: Text) -> None:
        self.calls.append(f"text done: {text.value}")

    @override
    async def on_message_done(self, message: Message) -> None:
        self.calls.append(f"message {message.status}")

    @override
    async def on_tool_call_created(self, tool_call: ToolCall) -> None:
        self.calls.append("tool call created")

    @override
    async def on_tool_call_done(self, tool_call: ToolCall) -> None:
        self.tool_calls.append(tool_call)

    @override
    async def on_run_step_done(self, run_step: RunStep) -> None:
        self.calls.append(f"{run_step.type} {run_step.status}")

    @override
    async def on_exception(self, exception: Exception) -> None:
        self.calls.append(f"exception {exception!r}")

    @override
    async def on_end(self) -> None:
        self.calls.append("end")


async def start(sdk: openai.AsyncOpenAI, text: str = "Hello", tools: list[Any] | None = None) -> dict[str, str]:
    """What `runs.stream` needs: an assistant and a thread with a message."""
    assistant, thread = await new_assistant(sdk, tools=tools or []), await thread_saying(sdk, text)
    return {"assistant_id": assistant.id, "thread_id": thread.id}


async def retrieved(sdk: openai.AsyncOpenAI, run: Run) -> Run:
    return await sdk.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id)


async def test_the_helper_rebuilds_a_text_answer(sdk: openai.AsyncOpenAI) -> None:
    listener = Listener()
    async with sdk.beta.threads.runs.stream(**await start(sdk, "Hello there"), event_handler=listener) as stream:
        assert "".join([piece async for piece in stream.text_deltas]) == "You said: Hello there"
        run, steps, messages = await stream.get_final_run(), await stream.get_final_run_steps(), await stream.get_final_messages()
    assert run.status == "completed"
    assert_same([run], [await retrieved(sdk, run)])
    assert_same(messages, await messages_of(sdk, run))
    assert [(step.id, step.type) for step in steps] == [(step.id, step.type) for step in await steps_of(sdk, run)]
    assert listener.text == "You said: Hello there"
    assert listener.calls[:-1] == [
        "message created",
        "text created",
        "text done: You said: Hello there",
        "message completed",
        "message_creation completed",
    ]
    assert set(listener.calls[5:]) == {"end"}


async def test_plain_iteration_gives_every_event(sdk: openai.AsyncOpenAI) -> None:
    begun = await start(sdk)
    events = [event async for event in await sdk.beta.threads.runs.create(**begun, stream=True)]
    for event in events:
        check_event(event.event, event.data.model_dump_json(by_alias=True, exclude_unset=True))
    assert [events[0].event, events[-1].event] == ["thread.run.created", "thread.run.completed"]


async def test_the_helper_of_create_and_run(sdk: openai.AsyncOpenAI) -> None:
    assistant = await new_assistant(sdk, instructions="Greet.")
    async with sdk.beta.threads.create_and_run_stream(assistant_id=assistant.id) as stream:
        run, messages = await stream.get_final_run(), await stream.get_final_messages()
    assert run.status == "completed"
    assert_same(messages, await messages_of(sdk, run))


async def test_the_helper_rebuilds_parallel_calls_and_the_continuation(sdk: openai.AsyncOpenAI) -> None:
    listener = Listener()
    async with sdk.beta.threads.runs.stream(**await start(sdk, CALL_BOTH, [WEATHER, CLOCK]), event_handler=listener) as stream:
        waiting, [step] = await stream.get_final_run(), await stream.get_final_run_steps()
    assert waiting.status == "requires_action"
    assert_same([waiting], [await retrieved(sdk, waiting)])
    assert step.step_details.type == "tool_calls"
    assert waiting.required_action is not None
    asked = [
        (pending.id, pending.function.name, pending.function.arguments)
        for pending in waiting.required_action.submit_tool_outputs.tool_calls
    ]
    for calls in (step.step_details.tool_calls, listener.tool_calls):
        assert [
            (known.id, known.function.name, known.function.arguments, known.function.output) for known in calls if known.type == "function"
        ] == [(*known, None) for known in asked]
    assert listener.calls.count("tool call created") == 2

    listener = Listener()
    outputs: list[Any] = [{"tool_call_id": name, "output": "fine"} for name in pending_ids(waiting)]
    async with sdk.beta.threads.runs.submit_tool_outputs_stream(
        run_id=waiting.id, thread_id=waiting.thread_id, tool_outputs=outputs, event_handler=listener
    ) as stream:
        run, messages = await stream.get_final_run(), await stream.get_final_messages()
    assert (run.status, listener.calls[0]) == ("completed", "tool_calls completed")
    assert_same([run], [await retrieved(sdk, run)])
    assert_same(messages, await messages_of(sdk, run))


async def test_the_helper_rebuilds_two_messages_of_one_run(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_turns(endpoint, [ScriptedText("Let me fly."), ToolCalls([ScriptedCall("fly")])], [ScriptedText("I cannot.")])
    listener = Listener()
    async with sdk.beta.threads.runs.stream(**await start(sdk, tools=[CLOCK]), event_handler=listener) as stream:
        run, messages = await stream.get_final_run(), await stream.get_final_messages()
    assert_same(messages, await messages_of(sdk, run))
    texts = [done for done in listener.calls if done.startswith("text done")]
    assert texts == ["text done: Let me fly.", "text done: I cannot."]


async def test_the_helper_rebuilds_a_refusal(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_with(endpoint, ScriptedText("Well. "), Refusal("I will not."))
    async with sdk.beta.threads.runs.stream(**await start(sdk)) as stream:
        run, messages = await stream.get_final_run(), await stream.get_final_messages()
    assert_same(messages, await messages_of(sdk, run))
    assert [part["type"] for part in wire(messages[0])["content"]] == ["text", "refusal"]


async def test_cancelling_raises_nothing_in_the_helper(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_with(endpoint, ScriptedText("As far as"), Stall())
    listener = Listener()
    async with sdk.beta.threads.runs.stream(**await start(sdk), event_handler=listener) as stream:
        async for event in stream:
            if event.event == "thread.message.delta" and listener.text == "As far as":
                assert stream.current_run is not None
                await sdk.beta.threads.runs.cancel(stream.current_run.id, thread_id=stream.current_run.thread_id)
        run, messages = await stream.get_final_run(), await stream.get_final_messages()
    assert run.status == "cancelled"
    assert_same([run], [await retrieved(sdk, run)])
    assert_same(messages, await messages_of(sdk, run))
    assert listener.calls[2:5] == ["text done: As far as", "message incomplete", "message_creation cancelled"]
    assert not [noted for noted in listener.calls if noted.startswith("exception")]


async def test_failures_raise_nothing_in_the_helper(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    endpoint.script = Script(
        [
            Rule([Respond(500, {"error": {"message": "Broken"}})], contains="<at once>"),
            Rule([ScriptedText("Once upon"), Wait(0.1), ErrorFrame("Overloaded")], contains="<in the middle>"),
        ]
    )
    for text, count in (("<at once>", 0), ("<in the middle>", 1)):
        async with sdk.beta.threads.runs.stream(**await start(sdk, text)) as stream:
            run = await stream.get_final_run()
            messages = await stream.get_final_messages() if count else []
        assert run.status == "failed"
        assert_same([run], [await retrieved(sdk, run)])
        assert_same(messages, await messages_of(sdk, run))
        assert len(messages) == count


async def test_the_helpers_that_poll_come_to_an_end(sdk: openai.AsyncOpenAI) -> None:
    begun = await start(sdk, CALL_WEATHER, [WEATHER])
    waiting = await sdk.beta.threads.runs.create_and_poll(**begun, poll_interval_ms=10)
    assert waiting.status == "requires_action"
    outputs: list[Any] = [{"tool_call_id": name, "output": "sun"} for name in pending_ids(waiting)]
    run = await sdk.beta.threads.runs.submit_tool_outputs_and_poll(
        run_id=waiting.id, thread_id=waiting.thread_id, tool_outputs=outputs, poll_interval_ms=10
    )
    assert run.status == "completed"
    assistant = await new_assistant(sdk, instructions="Greet.")
    assert (await sdk.beta.threads.create_and_run_poll(assistant_id=assistant.id, poll_interval_ms=10)).status == "completed"


async def test_an_answer_says_in_milliseconds_when_to_poll_again(sdk: openai.AsyncOpenAI) -> None:
    run = await stopped(sdk, await sdk.beta.threads.runs.create(**await start(sdk)))
    raw = await sdk.beta.threads.runs.with_raw_response.retrieve(run.id, thread_id=run.thread_id)
    assert 0 < int(raw.headers["openai-poll-after-ms"]) <= 5000


@server_with(stream_ping_interval_seconds=0.05)
async def test_heart_beats_do_not_disturb_the_helper(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_with(endpoint, Wait(0.3), ScriptedText("slow answer", delay_seconds=0.2))
    async with sdk.beta.threads.runs.stream(**await start(sdk)) as stream:
        run, messages = await stream.get_final_run(), await stream.get_final_messages()
    assert run.status == "completed"
    assert_same(messages, await messages_of(sdk, run))
