"""Runs from queued to their end: the thread's lock, function calls, cancelling, expiry, failures of the model, and what steps tell."""

import asyncio
import json
from typing import Any

import aiohttp
import openai
import pytest
from openai.types.beta.threads import Run

from mini_assistant.models.script import (
    Cut,
    ErrorFrame,
    Finish,
    Frames,
    Raw,
    Respond,
    Rule,
    Script,
    ScriptedCall,
    Stall,
    Step,
    Text,
    ToolCalls,
    Wait,
)
from mini_assistant.models.scripted import ScriptedEndpoint
from tests.conformance.conversations import (
    CALL_BOTH,
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
    run_after,
    start_run,
    steps_of,
    stopped,
    submit,
    text_of,
    thread_saying,
)
from tests.conformance.raw_http import call, refused
from tests.conformance.server_settings import server_with
from tests.conformance.strictness import wire

WAIT_SECONDS = 10


async def until_model_is_asked(endpoint: ScriptedEndpoint, runs: int = 1) -> None:
    """Wait until so many runs are in the middle of an answer."""
    async with asyncio.timeout(WAIT_SECONDS):
        await endpoint.wait_for_streams(runs)


async def assert_unlocked(sdk: openai.AsyncOpenAI, run: Run) -> None:
    """The thread takes a message, and another run which completes."""
    await sdk.beta.threads.messages.create(run.thread_id, role="user", content="And now?")
    another = await sdk.beta.threads.runs.create(run.thread_id, assistant_id=run.assistant_id)
    assert (await stopped(sdk, another)).status == "completed"


async def test_a_new_run_is_queued_and_expires_after_ten_minutes(sdk: openai.AsyncOpenAI) -> None:
    run = wire(await start_run(sdk))
    assert run["expires_at"] - run["created_at"] == 600
    del run["id"], run["created_at"], run["expires_at"], run["assistant_id"], run["thread_id"]
    assert run == {
        "object": "thread.run",
        "status": "queued",
        "started_at": None,
        "cancelled_at": None,
        "failed_at": None,
        "completed_at": None,
        "required_action": None,
        "last_error": None,
        "model": MODEL,
        "instructions": None,
        "tools": [],
        "tool_resources": {},
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "reasoning_effort": None,
        "max_completion_tokens": None,
        "max_prompt_tokens": None,
        "truncation_strategy": {"type": "auto", "last_messages": None},
        "incomplete_details": None,
        "usage": None,
        "response_format": "auto",
        "tool_choice": "auto",
        "parallel_tool_calls": True,
    }


async def test_a_completed_run_has_its_answer_its_step_and_its_usage(sdk: openai.AsyncOpenAI) -> None:
    run = await finished_run(sdk, "Hello there")
    assert (run.status, run.expires_at, run.last_error, run.incomplete_details) == ("completed", None, None, None)
    assert run.started_at is not None
    assert run.completed_at is not None
    assert run.created_at <= run.started_at <= run.completed_at
    [message], [step] = await messages_of(sdk, run), await steps_of(sdk, run)
    assert (text_of(message), message.role, message.status) == ("You said: Hello there", "assistant", "completed")
    assert (message.assistant_id, message.run_id) == (run.assistant_id, run.id)
    assert wire(step)["step_details"] == {"type": "message_creation", "message_creation": {"message_id": message.id}}
    assert (step.type, step.status, wire(step)["expires_at"]) == ("message_creation", "completed", None)
    assert step.completed_at is not None
    assert wire(run)["usage"] == wire(step)["usage"]
    assert run.usage is not None
    assert (run.usage.prompt_tokens, run.usage.completion_tokens, run.usage.total_tokens) == (2, 4, 6)


async def test_a_run_needs_a_message_of_the_user_or_instructions(sdk: openai.AsyncOpenAI) -> None:
    empty, silent = await thread_saying(sdk), await new_assistant(sdk)
    for attempt in (
        sdk.beta.threads.runs.create(empty.id, assistant_id=silent.id),
        sdk.beta.threads.create_and_run(assistant_id=silent.id),
        sdk.beta.threads.create_and_run(assistant_id=silent.id, thread={"messages": [{"role": "assistant", "content": "Hi"}]}),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            await attempt
        assert caught.value.code == "invalid_thread"
    instructed = await new_assistant(sdk, instructions="Say hello.")
    assert (await stopped(sdk, await sdk.beta.threads.runs.create(empty.id, assistant_id=instructed.id))).status == "completed"
    assert (await stopped(sdk, await sdk.beta.threads.create_and_run(assistant_id=instructed.id))).status == "completed"


async def test_a_refused_create_and_run_leaves_no_thread_behind(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    assistant = await new_assistant(sdk)
    with pytest.raises(openai.BadRequestError):
        await sdk.beta.threads.create_and_run(assistant_id=assistant.id)
    with pytest.raises(openai.NotFoundError):
        await sdk.beta.threads.create_and_run(assistant_id="asst_unknown", thread={"messages": [{"role": "user", "content": "Hi"}]})
    assert (await call(http, "GET", "/v1/threads")).body["data"] == []


async def test_create_and_run_makes_the_thread_with_its_messages(sdk: openai.AsyncOpenAI) -> None:
    assistant = await new_assistant(sdk)
    said: Any = {"messages": [{"role": "user", "content": "Hi"}], "metadata": {"a": "1"}}
    run = await stopped(sdk, await sdk.beta.threads.create_and_run(assistant_id=assistant.id, thread=said))
    assert (await sdk.beta.threads.retrieve(run.thread_id)).metadata == {"a": "1"}
    messages = (await sdk.beta.threads.messages.list(run.thread_id, order="asc")).data
    assert [text_of(message) for message in messages] == ["Hi", "You said: Hi"]


async def test_an_active_run_locks_its_thread(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_with(endpoint, Text("Let me think"), Stall())
    run = await start_run(sdk)
    await until_model_is_asked(endpoint)
    threads = sdk.beta.threads
    with pytest.raises(openai.BadRequestError, match=f"Can't add messages to {run.thread_id} while a run {run.id} is active."):
        await threads.messages.create(run.thread_id, role="user", content="Hurry")
    with pytest.raises(openai.BadRequestError, match=f"Thread {run.thread_id} already has an active run {run.id}."):
        await threads.runs.create(
            run.thread_id, assistant_id=run.assistant_id, additional_messages=[{"role": "user", "content": "Left behind"}]
        )
    # What does not write to the conversation is still allowed.
    assert (await threads.update(run.thread_id, metadata={"a": "1"})).metadata == {"a": "1"}
    answer, question = (await threads.messages.list(run.thread_id)).data
    assert (answer.run_id, answer.status) == (run.id, "in_progress")
    assert (await threads.messages.update(question.id, thread_id=run.thread_id, metadata={"b": "2"})).metadata == {"b": "2"}
    endpoint.script = Script()
    await threads.runs.cancel(run.id, thread_id=run.thread_id)
    assert (await stopped(sdk, run)).status == "cancelled"
    await assert_unlocked(sdk, run)
    texts = [text_of(message) async for message in threads.messages.list(run.thread_id, order="asc")]
    assert texts == ["Hello", "Let me think", "And now?", "You said: And now?"]


async def test_of_simultaneous_runs_on_one_thread_exactly_one_is_made(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_with(endpoint, Stall())
    assistant, thread = await new_assistant(sdk), await thread_saying(sdk, "Hello")
    attempts = [sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id) for _ in range(6)]
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    [made] = [outcome for outcome in outcomes if isinstance(outcome, Run)]
    refusals = [outcome for outcome in outcomes if isinstance(outcome, openai.BadRequestError)]
    assert len(refusals) == 5
    assert all(f"Thread {thread.id} already has an active run {made.id}." in str(refusal) for refusal in refusals)
    assert [run.id for run in (await sdk.beta.threads.runs.list(thread.id)).data] == [made.id]


async def test_a_function_call_waits_for_the_client(sdk: openai.AsyncOpenAI) -> None:
    run = await finished_run(sdk, CALL_WEATHER, tools=[WEATHER])
    assert (run.status, run.usage, run.completed_at) == ("requires_action", None, None)
    assert run.expires_at == run.created_at + 600
    assert run.required_action is not None
    [pending] = run.required_action.submit_tool_outputs.tool_calls
    assert (pending.type, pending.function.name, json.loads(pending.function.arguments)) == ("function", "weather", {"city": "Oslo"})
    assert pending.id.startswith("call_")
    [step] = await steps_of(sdk, run)
    assert (step.type, step.status, step.usage, wire(step)["expires_at"]) == ("tool_calls", "in_progress", None, run.expires_at)
    function = {"name": "weather", "arguments": pending.function.arguments, "output": None}
    assert wire(step)["step_details"]["tool_calls"] == [{"id": pending.id, "type": "function", "function": function}]


async def test_outputs_of_a_function_lead_to_an_answer(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    waiting = await finished_run(sdk, CALL_WEATHER, tools=[WEATHER])
    queued = await submit(sdk, waiting, "sunny")
    assert (queued.status, queued.required_action, queued.usage) == ("queued", None, None)
    assert (queued.expires_at, queued.started_at) == (waiting.expires_at, waiting.started_at)
    tool_step = (await steps_of(sdk, waiting))[0]
    assert tool_step.status == "completed"
    assert wire(tool_step)["step_details"]["tool_calls"][0]["function"]["output"] == "sunny"

    run = await stopped(sdk, queued)
    tool_step, message_step = await steps_of(sdk, run)
    [message] = await messages_of(sdk, run)
    assert text_of(message) == "The tool returned: sunny"
    assert (run.status, message_step.type) == ("completed", "message_creation")
    assert run.usage is not None
    assert tool_step.usage is not None
    assert message_step.usage is not None
    for field in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert getattr(run.usage, field) == getattr(tool_step.usage, field) + getattr(message_step.usage, field) > 0
    [called, result] = endpoint.requests[-1]["messages"][-2:]
    assert called["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city":"Oslo"}'}
    assert result == {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": "sunny"}
    # The next run of the thread reads the conversation, not the calls.
    await assert_unlocked(sdk, run)
    assert [message["role"] for message in endpoint.requests[-1]["messages"]] == ["user", "assistant", "user"]


async def test_outputs_must_be_those_that_are_asked_for(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    run = await finished_run(sdk, CALL_BOTH, tools=[WEATHER, CLOCK])
    first, second = pending_ids(run)
    path = f"/v1/threads/{run.thread_id}/runs/{run.id}"
    for given in ([], [first], [first, first], [first, second, "call_other"], [first, second, second]):
        outputs = [{"tool_call_id": name, "output": ""} for name in given]
        status, message, _, _ = await refused(http, "POST", f"{path}/submit_tool_outputs", {"tool_outputs": outputs})
        assert (status, message) == (400, f"Expected tool outputs for call_ids ['{first}', '{second}'], got {given}")
    assert (await call(http, "GET", path)).body == wire(run)
    # In any order, and an output may be empty or left out.
    outputs = [{"tool_call_id": second}, {"tool_call_id": first, "output": ""}]
    assert (await call(http, "POST", f"{path}/submit_tool_outputs", {"tool_outputs": outputs})).body["status"] == "queued"
    assert (await stopped(sdk, run)).status == "completed"


async def test_of_simultaneous_submissions_one_is_taken(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    run = await finished_run(sdk, CALL_WEATHER, tools=[WEATHER])
    outcomes = await asyncio.gather(*(submit(sdk, run, f"answer {number}") for number in range(4)), return_exceptions=True)
    assert sum(isinstance(outcome, Run) for outcome in outcomes) == 1
    refusals = [outcome for outcome in outcomes if not isinstance(outcome, Run)]
    assert all(isinstance(refusal, openai.BadRequestError) and "do not accept tool outputs." in str(refusal) for refusal in refusals)
    assert (await stopped(sdk, run)).status == "completed"
    assert len(endpoint.requests) == 2


async def test_a_function_can_be_called_again_in_the_same_run(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    ask: Step = ToolCalls([ScriptedCall("weather", '{"city":"Oslo"}')])
    answer_turns(endpoint, [ask], [ask], [Text("Both are sunny.")])
    run = await finished_run(sdk, tools=[WEATHER])
    first_ids = pending_ids(run)
    run = await stopped(sdk, await submit(sdk, run, "sun"))
    assert run.status == "requires_action"
    assert pending_ids(run) != first_ids
    run = await stopped(sdk, await submit(sdk, run, "more sun"))
    steps = await steps_of(sdk, run)
    assert [(step.type, step.status) for step in steps] == [("tool_calls", "completed")] * 2 + [("message_creation", "completed")]
    assert [message["content"] for message in endpoint.requests[-1]["messages"] if message["role"] == "tool"] == ["sun", "more sun"]


async def test_text_before_a_call_is_a_message_of_its_own(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_turns(endpoint, [Text("Let me look."), ToolCalls([ScriptedCall("clock")])], [Text("It is noon.")])
    run = await stopped(sdk, await submit(sdk, await finished_run(sdk, tools=[CLOCK]), "12:00"))
    steps = await steps_of(sdk, run)
    assert [step.type for step in steps] == ["message_creation", "tool_calls", "message_creation"]
    assert [text_of(message) for message in await messages_of(sdk, run)] == ["Let me look.", "It is noon."]
    assert run.usage is not None
    assert run.usage.total_tokens == sum(step.usage.total_tokens for step in steps if step.usage is not None)
    spoken, result = endpoint.requests[-1]["messages"][-2:]
    assert (spoken["content"], len(spoken["tool_calls"]), result["content"]) == ("Let me look.", 1, "12:00")


async def test_a_call_that_cannot_be_made_is_answered_to_the_model(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    for wrong, kind in ((ScriptedCall("fly"), "not_found"), (ScriptedCall("weather", '{"city":'), "bad_arguments")):
        answer_turns(endpoint, [ToolCalls([wrong])], [Text("I cannot.")])
        run = await finished_run(sdk, tools=[WEATHER])
        assert run.status == "completed"
        tool_step, _ = await steps_of(sdk, run)
        [shown] = wire(tool_step)["step_details"]["tool_calls"]
        assert shown["function"]["output"].startswith(f"Error ({kind})")
        assert endpoint.requests[-1]["messages"][-1]["content"] == shown["function"]["output"]
        assert [text_of(message) for message in await messages_of(sdk, run)] == ["I cannot."]


async def test_only_calls_that_can_be_made_are_asked_of_the_client(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_turns(endpoint, [ToolCalls([ScriptedCall("fly"), ScriptedCall("clock")])], [Text("Done.")])
    run = await finished_run(sdk, tools=[CLOCK])
    assert len(pending_ids(run)) == 1
    run = await stopped(sdk, await submit(sdk, run, "noon"))
    failed, answered = wire((await steps_of(sdk, run))[0])["step_details"]["tool_calls"]
    assert failed["function"]["output"].startswith("Error (not_found)")
    assert answered["function"] == {"name": "clock", "arguments": "{}", "output": "noon"}
    assert [message["role"] for message in endpoint.requests[-1]["messages"]][-3:] == ["assistant", "tool", "tool"]


@server_with(run_concurrency_max=1)
async def test_a_queued_run_can_be_cancelled(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_with(endpoint, Stall())
    busy = await start_run(sdk)
    await until_model_is_asked(endpoint)
    waiting = await start_run(sdk)
    cancelling = await sdk.beta.threads.runs.cancel(waiting.id, thread_id=waiting.thread_id)
    assert (cancelling.status, cancelling.started_at, cancelling.expires_at) == ("cancelling", None, waiting.expires_at)
    await sdk.beta.threads.runs.cancel(busy.id, thread_id=busy.thread_id)
    cancelled = await stopped(sdk, waiting)
    assert (cancelled.status, cancelled.started_at, await steps_of(sdk, waiting)) == ("cancelled", None, [])
    assert len(endpoint.requests) == 1
    endpoint.script = Script()
    await assert_unlocked(sdk, waiting)


async def test_a_run_in_progress_can_be_cancelled_and_keeps_what_it_said(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_with(endpoint, Text("As far as I"), Stall())
    assistant, thread = await new_assistant(sdk), await thread_saying(sdk, "Hello")
    run: Run | None = None
    async for event in await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id, stream=True):
        if event.event == "thread.run.in_progress":
            run = event.data
        elif event.event == "thread.message.delta" and '"I"' in event.data.to_json():
            break
    assert run is not None
    cancelling = await sdk.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
    assert (cancelling.status, cancelling.cancelled_at, cancelling.expires_at) == ("cancelling", None, run.expires_at)
    cancelled = await stopped(sdk, run)
    assert (cancelled.status, cancelled.expires_at, cancelled.completed_at) == ("cancelled", None, None)
    assert cancelled.cancelled_at is not None
    await until_model_is_asked(endpoint, runs=0)
    [message], [step] = await messages_of(sdk, run), await steps_of(sdk, run)
    assert (message.status, message.completed_at) == ("incomplete", None)
    assert message.incomplete_details is not None
    assert message.incomplete_details.reason == "run_cancelled"
    assert message.incomplete_at is not None
    assert text_of(message) == "As far as I"
    assert (step.status, step.completed_at) == ("cancelled", None)
    assert step.cancelled_at is not None


async def test_a_run_that_waits_for_outputs_can_be_cancelled(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    run = await finished_run(sdk, CALL_WEATHER, tools=[WEATHER])
    assert (await sdk.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)).status == "cancelling"
    cancelled = await stopped(sdk, run)
    assert (cancelled.status, cancelled.required_action) == ("cancelled", None)
    [step] = await steps_of(sdk, run)
    assert step.status == "cancelled"
    with pytest.raises(openai.BadRequestError, match=r'Runs in status "cancelled" do not accept tool outputs\.'):
        await submit(sdk, run, "too late")
    await assert_unlocked(sdk, run)


async def test_a_run_that_has_ended_takes_neither_cancelling_nor_outputs(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    broken = Respond(500, {"error": {"message": "Broken"}})
    endpoint.script = Script([Rule([broken], contains="fail"), Rule([Text(["x "], repeat=300)], contains="much")])
    ended = [await finished_run(sdk), await finished_run(sdk, "fail"), await finished_run(sdk, "much", max_completion_tokens=256)]
    assert [run.status for run in ended] == ["completed", "failed", "incomplete"]
    outputs: list[Any] = [{"tool_call_id": "call_x", "output": ""}]
    for run in ended:
        with pytest.raises(openai.BadRequestError, match=f"Cannot cancel run with status '{run.status}'."):
            await sdk.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
        with pytest.raises(openai.BadRequestError, match=f'Runs in status "{run.status}" do not accept tool outputs.'):
            await sdk.beta.threads.runs.submit_tool_outputs(run.id, thread_id=run.thread_id, tool_outputs=outputs)
        assert wire(await sdk.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id)) == wire(run)


async def test_a_run_that_is_being_computed_takes_no_outputs_and_no_metadata(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_with(endpoint, Stall())
    run = await start_run(sdk)
    await until_model_is_asked(endpoint)
    outputs: list[Any] = [{"tool_call_id": "call_x", "output": ""}]
    with pytest.raises(openai.BadRequestError, match=r'Runs in status "in_progress" do not accept tool outputs\.'):
        await sdk.beta.threads.runs.submit_tool_outputs(run.id, thread_id=run.thread_id, tool_outputs=outputs)
    with pytest.raises(openai.BadRequestError, match=r"Cannot update run with status 'in_progress'\."):
        await sdk.beta.threads.runs.update(run.id, thread_id=run.thread_id, metadata={"a": "1"})


async def test_metadata_of_a_run_can_be_changed_while_it_waits_and_after_it_has_ended(sdk: openai.AsyncOpenAI) -> None:
    waiting = await finished_run(sdk, CALL_WEATHER, tools=[WEATHER], metadata={"a": "1"})
    assert waiting.metadata == {"a": "1"}
    changed = await sdk.beta.threads.runs.update(waiting.id, thread_id=waiting.thread_id, metadata={"b": "2"})
    assert wire(changed) == {**wire(waiting), "metadata": {"b": "2"}}
    ended = await stopped(sdk, await submit(sdk, waiting, "sun"))
    assert (ended.status, ended.metadata) == ("completed", {"b": "2"})
    changed = await sdk.beta.threads.runs.update(ended.id, thread_id=ended.thread_id, metadata={})
    assert wire(changed) == {**wire(ended), "metadata": {}}


@server_with(run_expiry_seconds=1, sweep_interval_seconds=0.05)
async def test_a_run_that_is_not_answered_in_time_expires(sdk: openai.AsyncOpenAI) -> None:
    run = await finished_run(sdk, CALL_WEATHER, tools=[WEATHER])
    expired = await run_after(sdk, run, "requires_action")
    assert (expired.status, expired.required_action, expired.expires_at) == ("expired", None, run.created_at + 1)
    [step] = await steps_of(sdk, run)
    assert (step.status, step.expired_at is None) == ("expired", False)
    with pytest.raises(openai.BadRequestError, match=r'Runs in status "expired" do not accept tool outputs\.'):
        await submit(sdk, run, "too late")
    with pytest.raises(openai.BadRequestError, match=r"Cannot cancel run with status 'expired'\."):
        await sdk.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
    await sdk.beta.threads.messages.create(run.thread_id, role="user", content="The thread is free")


@server_with(run_expiry_seconds=1, sweep_interval_seconds=0.05)
async def test_a_run_whose_model_does_not_end_in_time_expires(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_with(endpoint, Text("I am still"), Stall())
    expired = await finished_run(sdk)
    assert (expired.status, expired.last_error, expired.failed_at) == ("expired", None, None)
    [message], [step] = await messages_of(sdk, expired), await steps_of(sdk, expired)
    assert (message.status, text_of(message), step.status) == ("incomplete", "I am still", "expired")
    assert message.incomplete_details is not None
    assert message.incomplete_details.reason == "run_expired"
    await until_model_is_asked(endpoint, runs=0)


FAILURES: dict[str, tuple[list[Step], str]] = {
    "rate limit": ([Respond(429, {"error": {"message": "Slow down"}})], "rate_limit_exceeded"),
    "overload": ([Respond(500, {"error": {"message": "Broken"}})], "server_error"),
    "wrong key": ([Respond(401, {"error": {"message": "Who are you?"}})], "server_error"),
    "refused prompt": ([Respond(400, {"error": {"message": "Too long"}})], "invalid_prompt"),
    "html": ([Respond(200, "<html>Welcome</html>", content_type="text/html")], "server_error"),
    "html in a stream": ([Raw("<html>Welcome</html>\n\n"), Finish(None)], "server_error"),
    "silence": ([Stall()], "server_error"),
    "no end": ([Finish(None)], "server_error"),
    "error frame": ([ErrorFrame("Too many requests", "rate_limit_exceeded")], "rate_limit_exceeded"),
}
FAILURES_IN_THE_MIDDLE: dict[str, tuple[list[Step], str]] = {
    "cut": ([Text(" time"), Cut()], "server_error"),
    "stall": ([Stall()], "server_error"),
    "nonsense": ([Raw("data: {nonsense\n\n")], "server_error"),
    "wrong types": ([Frames([{"choices": "none"}])], "server_error"),
    "error frame": ([ErrorFrame("Overloaded", "server_error")], "server_error"),
}


@server_with(model_first_token_timeout_seconds=0.5, model_chunk_timeout_seconds=0.5)
async def test_a_failing_model_fails_the_run_and_nothing_else(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    endpoint.script = Script([Rule(steps, contains=f"<{name}>") for name, (steps, _) in FAILURES.items()])
    runs = await asyncio.gather(*(finished_run(sdk, f"<{name}>") for name in FAILURES))
    for run, (name, (_, code)) in zip(runs, FAILURES.items(), strict=True):
        assert run.last_error is not None, name
        assert (name, run.status, run.last_error.code) == (name, "failed", code)
        assert run.last_error.message
        assert run.failed_at is not None
        assert (run.expires_at, run.completed_at) == (None, None)
        assert await messages_of(sdk, run) == []
    assert (await finished_run(sdk)).status == "completed"


@server_with(model_chunk_timeout_seconds=0.5)
async def test_what_was_said_before_a_failure_is_kept_as_incomplete(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    # The pause lets the first words arrive by themselves: what comes together with a failure may be lost in it.
    said = (Text("Once upon a"), Wait(0.1))
    answers = [Rule([*said, *steps], contains=f"<{name}>") for name, (steps, _) in FAILURES_IN_THE_MIDDLE.items()]
    endpoint.script = Script(answers)
    runs = await asyncio.gather(*(finished_run(sdk, f"<{name}>") for name in FAILURES_IN_THE_MIDDLE))
    for run, (name, (_, code)) in zip(runs, FAILURES_IN_THE_MIDDLE.items(), strict=True):
        assert run.last_error is not None, name
        assert (name, run.status, run.last_error.code) == (name, "failed", code)
        [message], [step] = await messages_of(sdk, run), await steps_of(sdk, run)
        assert (message.status, text_of(message).startswith("Once upon a")) == ("incomplete", True)
        assert message.incomplete_details is not None
        assert message.incomplete_details.reason == "run_failed"
        assert step.last_error is not None
        assert (step.status, step.last_error.code, step.last_error.message) == ("failed", code, run.last_error.message)
        assert step.failed_at is not None
    await assert_unlocked(sdk, runs[0])


@server_with(model_retries_max=2)
async def test_a_model_that_recovers_is_asked_again_before_it_has_spoken(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    endpoint.script = Script([Rule([Respond(503, headers={"Retry-After": "0"})], times=2)])
    assert (await finished_run(sdk)).status == "completed"
    assert len(endpoint.requests) == 3


async def test_steps_are_listed_newest_first_and_read_one_by_one(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    run = await stopped(sdk, await submit(sdk, await finished_run(sdk, CALL_WEATHER, tools=[WEATHER]), "sun"))
    newest_first = (await sdk.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id)).data
    assert [step.type for step in newest_first] == ["message_creation", "tool_calls"]
    for step in newest_first:
        retrieved = await sdk.beta.threads.runs.steps.retrieve(step.id, thread_id=run.thread_id, run_id=run.id)
        assert wire(retrieved) == wire(step)
    with pytest.raises(openai.NotFoundError, match=r"No run step found with id 'step_x'\."):
        await sdk.beta.threads.runs.steps.retrieve("step_x", thread_id=run.thread_id, run_id=run.id)
    path = f"/v1/threads/{run.thread_id}/runs/{run.id}/steps"
    plain = await call(http, "GET", path)
    value = "step_details.tool_calls[*].file_search.results[*].content"
    for query in (f"include[]={value}", f"include={value}", f"include%5B%5D={value.replace('[*]', '%5B%2A%5D')}"):
        assert (await call(http, "GET", f"{path}?{query}")).body == plain.body
    status, _, param, code = await refused(http, "GET", f"{path}?include[]=everything")
    assert (status, param, code) == (400, "include[0]", "invalid_value")


async def test_runs_are_listed_newest_first(sdk: openai.AsyncOpenAI) -> None:
    first = await finished_run(sdk)
    second = await stopped(sdk, await sdk.beta.threads.runs.create(first.thread_id, assistant_id=first.assistant_id))
    assert [wire(run) async for run in sdk.beta.threads.runs.list(first.thread_id, limit=1)] == [wire(second), wire(first)]


async def test_a_run_can_be_created_with_the_include_parameter_of_other_clients(sdk: openai.AsyncOpenAI) -> None:
    include: list[Any] = ["step_details.tool_calls[*].file_search.results[*].content"]
    assert (await stopped(sdk, await start_run(sdk, include=include))).status == "completed"
