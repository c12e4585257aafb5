"""Scenarios of streams: what the helpers make of the events is compared with what the API then stores."""

from typing import Any

from tests.conformance.sdk_scenarios.client import Sdk, each, entered, plain, settled, text_of
from tests.conformance.sdk_scenarios.runs import started

TEXT_RUN_EVENTS = [
    "thread.run.created",
    "thread.run.queued",
    "thread.run.in_progress",
    "thread.run.step.created",
    "thread.run.step.in_progress",
    "thread.message.created",
    "thread.message.in_progress",
    "thread.message.delta",
    "thread.message.completed",
    "thread.run.step.completed",
    "thread.run.completed",
]
# The step's snapshot of the Python helper stays as it was created; only deltas change it.
STEP_END_FIELDS = ("status", "completed_at", "cancelled_at", "failed_at", "expires_at", "last_error", "usage")


def event_names(handler: Any) -> list[str]:
    """The events that a handler has met; neighbours of the same name count once."""
    names: list[str] = [arguments[0]["event"] for name, arguments in handler.calls if name == "on_event"]
    return [name for place, name in enumerate(names) if place == 0 or name != names[place - 1]]


def names_besides_deltas(handler: Any) -> list[str]:
    """The callbacks of a handler in their order, without those that come once for each event or piece."""
    return [name for name, _ in handler.calls if name != "on_event" and not name.endswith("_delta")]


async def assert_equal_to_stored(sdk: Sdk, handler: Any) -> None:
    """The final objects of a stream helper are what GET answers."""
    threads = sdk.client.beta.threads
    run = await settled(handler.get_final_run())
    assert plain(run) == plain(await settled(threads.runs.retrieve(run.id, thread_id=run.thread_id)))
    messages = [plain(message) async for message in each(threads.messages.list(run.thread_id, run_id=run.id, order="asc"))]
    assert [plain(message) for message in await settled(handler.get_final_messages())] == messages
    steps = [plain(step) async for step in each(threads.runs.steps.list(run.id, thread_id=run.thread_id, order="asc"))]
    assert [arguments[0] for name, arguments in handler.calls if name == "on_run_step_done"] == steps
    snapshots = [plain(step) for step in await settled(handler.get_final_run_steps())]
    assert [_as_created(step) for step in snapshots] == [_as_created(step) for step in steps]


def _as_created(step: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in step.items() if name not in STEP_END_FIELDS}


async def handler_meets_every_callback_of_a_text_answer(sdk: Sdk) -> None:
    assistant, thread = await started(sdk, "Grüße 🌍 \n done")
    handler = sdk.handler()
    runs = sdk.client.beta.threads.runs
    async with entered(runs.stream(thread_id=thread.id, assistant_id=assistant.id, event_handler=handler)) as stream:
        await settled(stream.until_done())
    assert event_names(handler) == TEXT_RUN_EVENTS
    assert names_besides_deltas(handler) == [
        "on_run_step_created",
        "on_message_created",
        "on_text_created",
        "on_text_done",
        "on_message_done",
        "on_run_step_done",
        "on_end",
    ]
    deltas = [arguments for name, arguments in handler.calls if name == "on_text_delta"]
    assert len(deltas) > 1
    assert "".join(delta["value"] for delta, _ in deltas) == "You said: Grüße 🌍 \n done"
    assert deltas[0][0]["annotations"] == []
    assert deltas[-1][1]["value"] == "You said: Grüße 🌍 \n done"
    await assert_equal_to_stored(sdk, handler)


async def text_deltas_are_iterated(sdk: Sdk) -> None:
    assistant, thread = await started(sdk, "one two three")
    stream_of = sdk.client.beta.threads.runs.stream
    async with entered(stream_of(thread_id=thread.id, assistant_id=assistant.id)) as stream:
        pieces = [piece async for piece in each(stream.text_deltas)]
    assert "".join(pieces) == "You said: one two three"


async def events_are_iterated_without_a_helper(sdk: Sdk) -> None:
    assistant, thread = await started(sdk, "Hi")
    events = await settled(sdk.client.beta.threads.runs.create(thread_id=thread.id, assistant_id=assistant.id, stream=True))
    names = [event.event async for event in each(events)]
    assert [name for name in names if name != "thread.message.delta"] == [
        name for name in TEXT_RUN_EVENTS if name != "thread.message.delta"
    ]


async def thread_and_run_are_created_and_streamed(sdk: Sdk) -> None:
    assistant = await settled(sdk.client.beta.assistants.create(model="scripted"))
    handler = sdk.handler()
    question = {"messages": [{"role": "user", "content": "Hi"}]}
    created = sdk.client.beta.threads.create_and_run_stream(assistant_id=assistant.id, thread=question, event_handler=handler)
    async with entered(created) as stream:
        await settled(stream.until_done())
    assert event_names(handler) == ["thread.created", *TEXT_RUN_EVENTS]
    await assert_equal_to_stored(sdk, handler)


async def run_is_cancelled_from_within_its_stream(sdk: Sdk) -> None:
    assistant, thread = await started(sdk, "Go", model="stalls")
    runs = sdk.client.beta.threads.runs
    handler = sdk.handler()
    async with entered(runs.stream(thread_id=thread.id, assistant_id=assistant.id, event_handler=handler)) as stream:
        async for event in each(stream):
            if event.event == "thread.message.delta":
                await settled(runs.cancel(handler.current_run.id, thread_id=thread.id))
    assert event_names(handler)[-4:] == [
        "thread.run.cancelling",
        "thread.message.incomplete",
        "thread.run.step.cancelled",
        "thread.run.cancelled",
    ]
    assert "on_exception" not in names_besides_deltas(handler)
    (message,) = await settled(handler.get_final_messages())
    assert (text_of(message), message.incomplete_details.reason) == ("Begun. ", "run_cancelled")
    await assert_equal_to_stored(sdk, handler)


async def failure_in_the_middle_ends_the_stream_in_order(sdk: Sdk) -> None:
    assistant, thread = await started(sdk, "Go", model="breaks")
    handler = sdk.handler()
    runs = sdk.client.beta.threads.runs
    async with entered(runs.stream(thread_id=thread.id, assistant_id=assistant.id, event_handler=handler)) as stream:
        await settled(stream.until_done())
    assert event_names(handler)[-3:] == ["thread.message.incomplete", "thread.run.step.failed", "thread.run.failed"]
    assert "on_exception" not in names_besides_deltas(handler)
    run = await settled(handler.get_final_run())
    assert (run.status, run.last_error.code) == ("failed", "server_error")
    (message,) = await settled(handler.get_final_messages())
    assert (text_of(message), message.incomplete_details.reason) == ("Half of ", "run_failed")
    await assert_equal_to_stored(sdk, handler)


async def incomplete_answer_is_streamed_to_its_cap(sdk: Sdk) -> None:
    assistant, thread = await started(sdk, "Go", model="wordy")
    handler = sdk.handler()
    stream_of = sdk.client.beta.threads.runs.stream
    async with entered(
        stream_of(thread_id=thread.id, assistant_id=assistant.id, max_completion_tokens=256, event_handler=handler)
    ) as stream:
        await settled(stream.until_done())
    assert event_names(handler)[-3:] == ["thread.message.incomplete", "thread.run.step.completed", "thread.run.incomplete"]
    await assert_equal_to_stored(sdk, handler)


async def heart_beats_fill_the_silence_of_a_model(sdk: Sdk) -> None:
    assistant, thread = await started(sdk, "Go", model="thinks")
    runs = sdk.client.beta.threads.runs
    raw = runs.with_streaming_response.create(thread_id=thread.id, assistant_id=assistant.id, stream=True)
    async with entered(raw) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = [line async for line in each(response.iter_lines())]
    assert lines.count(": ping") >= 2
    assert lines[-3:-1] == ["event: done", "data: [DONE]"]

    handler = sdk.handler()
    async with entered(runs.stream(thread_id=thread.id, assistant_id=assistant.id, event_handler=handler)) as stream:
        await settled(stream.until_done())
    assert event_names(handler) == TEXT_RUN_EVENTS
    await assert_equal_to_stored(sdk, handler)

    replay = sdk.handler()
    run = await settled(runs.create(thread_id=thread.id, assistant_id=assistant.id))
    async with entered(sdk.attached(thread.id, run.id, replay)) as stream:
        await settled(stream.until_done())
    assert event_names(replay) == TEXT_RUN_EVENTS
    await assert_equal_to_stored(sdk, replay)


async def run_outlives_its_reader_and_is_attached_to_again(sdk: Sdk) -> None:
    assistant, thread = await started(sdk, "Go", model="slow")
    runs = sdk.client.beta.threads.runs
    left = sdk.handler()
    async with entered(runs.stream(thread_id=thread.id, assistant_id=assistant.id, event_handler=left)) as stream:
        async for event in each(stream):
            if event.event == "thread.message.delta":
                break
    run_id = left.current_run.id
    again = sdk.handler()
    async with entered(sdk.attached(thread.id, run_id, again)) as stream:
        await settled(stream.until_done())
    assert event_names(again) == TEXT_RUN_EVENTS
    (message,) = await settled(again.get_final_messages())
    assert text_of(message) == "tok " * 40
    await assert_equal_to_stored(sdk, again)


SCENARIOS = [
    handler_meets_every_callback_of_a_text_answer,
    text_deltas_are_iterated,
    events_are_iterated_without_a_helper,
    thread_and_run_are_created_and_streamed,
    run_is_cancelled_from_within_its_stream,
    failure_in_the_middle_ends_the_stream_in_order,
    incomplete_answer_is_streamed_to_its_cap,
    heart_beats_fill_the_silence_of_a_model,
    run_outlives_its_reader_and_is_attached_to_again,
]
