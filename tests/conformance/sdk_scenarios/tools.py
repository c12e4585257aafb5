"""Scenarios of function tools: the pause for outputs, and the two helpers that go on from it."""

from typing import Any

import openai

from tests.conformance.sdk_scenarios.client import Sdk, each, entered, plain, refusal, settled, text_of
from tests.conformance.sdk_scenarios.runs import started
from tests.conformance.sdk_scenarios.streams import event_names, names_besides_deltas

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time"}}
BOTH = 'Please call get_weather {"city": "Oslo"} and call get_time {}'


async def outputs_are_submitted_and_polled(sdk: Sdk) -> None:
    assistant, thread = await started(sdk, BOTH, tools=[WEATHER, CLOCK])
    runs = sdk.client.beta.threads.runs
    run = await settled(runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id))
    assert (run.status, run.required_action.type, run.usage) == ("requires_action", "submit_tool_outputs", None)
    calls = run.required_action.submit_tool_outputs.tool_calls
    assert [(call.type, call.function.name, call.function.arguments) for call in calls] == [
        ("function", "get_weather", '{"city": "Oslo"}'),
        ("function", "get_time", "{}"),
    ]

    ids = [call.id for call in calls]
    one = [{"tool_call_id": ids[0], "output": "sunny"}]
    error = await refusal(lambda: runs.submit_tool_outputs(run.id, thread_id=thread.id, tool_outputs=one), openai.BadRequestError)
    assert error.body["message"] == f"Expected tool outputs for call_ids {ids}, got {ids[:1]}"
    both = [*one, {"tool_call_id": ids[1], "output": "noon"}]
    run = await settled(runs.submit_tool_outputs_and_poll(run_id=run.id, thread_id=thread.id, tool_outputs=both))
    assert (run.status, run.required_action) == ("completed", None)
    message = (await settled(sdk.client.beta.threads.messages.list(thread.id))).data[0]
    assert text_of(message) == "The tool returned: noon"

    steps = [step async for step in each(runs.steps.list(run.id, thread_id=thread.id, order="asc"))]
    assert [(step.type, step.status) for step in steps] == [("tool_calls", "completed"), ("message_creation", "completed")]
    assert [(call.id, call.function.output) for call in steps[0].step_details.tool_calls] == [(ids[0], "sunny"), (ids[1], "noon")]
    assert run.usage.total_tokens == sum(step.usage.total_tokens for step in steps)
    error = await refusal(lambda: runs.submit_tool_outputs(run.id, thread_id=thread.id, tool_outputs=both), openai.BadRequestError)
    assert error.body["message"] == 'Runs in status "completed" do not accept tool outputs.'


async def outputs_are_submitted_and_streamed(sdk: Sdk) -> None:
    assistant, thread = await started(sdk, BOTH, tools=[WEATHER, CLOCK])
    runs = sdk.client.beta.threads.runs
    asking = sdk.handler()
    async with entered(runs.stream(thread_id=thread.id, assistant_id=assistant.id, event_handler=asking)) as stream:
        await settled(stream.until_done())
    run = await settled(asking.get_final_run())
    assert plain(run) == plain(await settled(runs.retrieve(run.id, thread_id=thread.id)))
    assert event_names(asking)[-2:] == ["thread.run.step.delta", "thread.run.requires_action"]
    assert names_besides_deltas(asking) == [
        "on_run_step_created",
        "on_tool_call_created",
        "on_tool_call_done",
        "on_tool_call_created",
        "on_tool_call_done",
        "on_end",
    ]
    assert _joined_arguments(asking) == ['{"city": "Oslo"}', "{}"]
    calls = run.required_action.submit_tool_outputs.tool_calls
    (step,) = await settled(asking.get_final_run_steps())
    streamed = [plain(call) for call in step.step_details.tool_calls]
    for index, (call, wanted) in enumerate(zip(streamed, calls, strict=True)):
        function = {**plain(wanted.function), "output": None}
        assert call == {"index": index, "id": wanted.id, "type": "function", "function": function}

    answering = sdk.handler()
    outputs = [{"tool_call_id": call.id, "output": call.function.name} for call in calls]
    submitted = runs.submit_tool_outputs_stream(run_id=run.id, thread_id=thread.id, tool_outputs=outputs, event_handler=answering)
    async with entered(submitted) as stream:
        await settled(stream.until_done())
    assert event_names(answering)[:3] == ["thread.run.step.completed", "thread.run.queued", "thread.run.in_progress"]
    done = [arguments[0] for name, arguments in answering.calls if name == "on_run_step_done"]
    stored = [plain(step) async for step in each(runs.steps.list(run.id, thread_id=thread.id, order="asc"))]
    assert done == stored
    assert plain(await settled(answering.get_final_run())) == plain(await settled(runs.retrieve(run.id, thread_id=thread.id)))
    (message,) = await settled(answering.get_final_messages())
    assert text_of(message) == "The tool returned: get_time"


async def run_calls_tools_in_two_rounds_with_words_between(sdk: Sdk) -> None:
    assistant, thread = await started(sdk, "Go", model="two-rounds", tools=[WEATHER, CLOCK])
    runs = sdk.client.beta.threads.runs
    handler = sdk.handler()
    async with entered(runs.stream(thread_id=thread.id, assistant_id=assistant.id, event_handler=handler)) as stream:
        await settled(stream.until_done())
    said = [text_of(message) for message in await settled(handler.get_final_messages())]
    assert said == ["Let me look. "]

    rounds = 0
    run = await settled(handler.get_final_run())
    while run.status == "requires_action":
        rounds += 1
        handler = sdk.handler()
        outputs = [{"tool_call_id": call.id, "output": "fine"} for call in run.required_action.submit_tool_outputs.tool_calls]
        submitted = runs.submit_tool_outputs_stream(run_id=run.id, thread_id=thread.id, tool_outputs=outputs, event_handler=handler)
        async with entered(submitted) as stream:
            await settled(stream.until_done())
        run = await settled(handler.get_final_run())
    assert (rounds, run.status) == (2, "completed")

    steps = [step.type async for step in each(runs.steps.list(run.id, thread_id=thread.id, order="asc"))]
    assert steps == ["message_creation", "tool_calls", "tool_calls", "message_creation"]
    replay = sdk.handler()
    async with entered(sdk.attached(thread.id, run.id, replay)) as stream:
        await settled(stream.until_done())
    assert plain(await settled(replay.get_final_run())) == plain(run)
    texts = [text_of(message) for message in await settled(replay.get_final_messages())]
    assert texts == ["Let me look. ", "The tool returned: fine"]


async def waiting_run_can_be_cancelled(sdk: Sdk) -> None:
    assistant, thread = await started(sdk, BOTH, tools=[WEATHER, CLOCK])
    runs = sdk.client.beta.threads.runs
    run = await settled(runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id))
    assert run.status == "requires_action"
    assert (await settled(runs.cancel(run.id, thread_id=thread.id))).status == "cancelling"
    assert (await settled(runs.poll(run.id, thread_id=thread.id))).status == "cancelled"
    (step,) = (await settled(runs.steps.list(run.id, thread_id=thread.id))).data
    assert step.status == "cancelled"


def _joined_arguments(handler: Any) -> list[str]:
    """What the deltas of each call add up to."""
    joined: dict[int, str] = {}
    for name, arguments in handler.calls:
        if name == "on_run_step_delta":
            for call in arguments[0]["step_details"]["tool_calls"]:
                joined[call["index"]] = joined.get(call["index"], "") + call["function"]["arguments"]
    return [joined[index] for index in sorted(joined)]


SCENARIOS = [
    outputs_are_submitted_and_polled,
    outputs_are_submitted_and_streamed,
    run_calls_tools_in_two_rounds_with_words_between,
    waiting_run_can_be_cancelled,
]
