"""What a run may use and what the model is asked, as its endpoint sees it: overrides, budgets, truncation, tool choice, formats."""

from typing import Any

import aiohttp
import openai
import pytest

from mini_assistant.models.script import Finish, Rule, Script, ScriptedCall, Stall, Text, ToolCalls
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.runs.schema import CreateRun
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


async def test_a_run_takes_over_what_the_assistant_has(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    own: dict[str, Any] = {
        "instructions": "Be brief.",
        "tools": [WEATHER],
        "temperature": 0,
        "top_p": 0,
        "reasoning_effort": "low",
        "response_format": schema,
    }
    assistant, thread = await new_assistant(sdk, **own), await thread_saying(sdk, "Hello")
    run = wire(await stopped(sdk, await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id)))
    assert {field: run[field] for field in own} == {field: wire(assistant)[field] for field in own}
    asked = endpoint.requests[-1]
    assert asked["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert {field: asked[field] for field in ("model", "temperature", "top_p", "reasoning_effort", "response_format")} == {
        "model": MODEL,
        "temperature": 0,
        "top_p": 0,
        "reasoning_effort": "low",
        "response_format": schema,
    }
    assert [tool["function"]["name"] for tool in asked["tools"]] == ["weather"]


async def test_what_a_run_gives_wins_and_leaves_the_assistant_as_it_was(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    assistant = await new_assistant(sdk, instructions="Old", tools=[WEATHER], temperature=1.5, top_p=0.5, reasoning_effort="low")
    thread = await thread_saying(sdk, "Hello")
    given: dict[str, Any] = {
        "model": "another",
        "instructions": "New",
        "tools": [],
        "temperature": 0,
        "top_p": 0,
        "reasoning_effort": "high",
        "response_format": {"type": "json_object"},
        "metadata": {"a": "1"},
    }
    run = await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id, **given)
    assert {field: wire(run)[field] for field in given} == given
    await stopped(sdk, run)
    asked = endpoint.requests[-1]
    for field in ("model", "temperature", "top_p", "reasoning_effort", "response_format"):
        assert asked[field] == given[field]
    assert (asked["messages"][0]["content"], "tools" in asked) == ("New", False)
    assert wire(await sdk.beta.assistants.retrieve(assistant.id)) == wire(assistant)


async def test_null_in_a_run_means_as_the_assistant_has_it(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    assistant = await new_assistant(sdk, instructions="Own", tools=[WEATHER], temperature=0.5)
    thread = await thread_saying(sdk, "Hello")
    nulls = dict.fromkeys(field for field in CreateRun.__struct_fields__ if field != "assistant_id")
    made = await call(http, "POST", f"/v1/threads/{thread.id}/runs", {"assistant_id": assistant.id, **nulls})
    run = made.body
    assert (run["model"], run["instructions"], run["temperature"], len(run["tools"])) == (MODEL, "Own", 0.5, 1)
    assert (run["tool_choice"], run["parallel_tool_calls"], run["truncation_strategy"]["type"]) == ("auto", True, "auto")


async def test_additional_instructions_follow_the_effective_ones(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    assistant = await new_assistant(sdk, instructions="Own.")
    for given, expected in (
        ({"additional_instructions": "More."}, "Own.\n\nMore."),
        ({"instructions": "Other.", "additional_instructions": "More."}, "Other.\n\nMore."),
        ({"instructions": "", "additional_instructions": "More."}, "More."),
    ):
        thread = await thread_saying(sdk, "Hello")
        run = await stopped(sdk, await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id, **given))
        assert run.instructions == expected
        assert endpoint.requests[-1]["messages"][0] == {"role": "system", "content": expected}


async def test_additional_messages_come_before_the_answer(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    more: list[Any] = [{"role": "assistant", "content": "two"}, {"role": "user", "content": "three", "metadata": {"a": "1"}}]
    run = await finished_run(sdk, "one", additional_messages=more)
    messages = (await sdk.beta.threads.messages.list(run.thread_id, order="asc")).data
    assert [text_of(message) for message in messages] == ["one", "two", "three", "You said: three"]
    assert (messages[2].metadata, messages[2].run_id) == ({"a": "1"}, None)
    assert [message["content"] for message in endpoint.requests[-1]["messages"]] == ["one", "two", "three"]


async def test_images_reach_the_model(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    url = "data:image/png;base64,iVBORw0KGgo="
    parts: list[Any] = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
    ]
    assistant = await new_assistant(sdk)
    run = await sdk.beta.threads.create_and_run(assistant_id=assistant.id, thread={"messages": [{"role": "user", "content": parts}]})
    assert (await stopped(sdk, run)).status == "completed"
    assert endpoint.requests[-1]["messages"][0]["content"] == [
        parts[0],
        parts[1],
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "auto"}},
    ]


async def test_a_run_has_at_most_20_tools_and_budgets_of_at_least_256(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    assistant, thread = await new_assistant(sdk), await thread_saying(sdk, "Hello")
    tools = [{"type": "function", "function": {"name": f"f{number}"}} for number in range(21)]
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"tools": tools}, "tools", "array_above_max_length"),
        ({"max_completion_tokens": 255}, "max_completion_tokens", "integer_below_min_value"),
        ({"max_prompt_tokens": 255}, "max_prompt_tokens", "integer_below_min_value"),
        ({"temperature": 3}, "temperature", "decimal_above_max_value"),
        ({"truncation_strategy": {"type": "oldest"}}, "truncation_strategy.type", "invalid_value"),
        (
            {"truncation_strategy": {"type": "last_messages", "last_messages": 0}},
            "truncation_strategy.last_messages",
            "integer_below_min_value",
        ),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function", "missing_required_parameter"),
        ({"tool_choice": "always"}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "function", "function": {"name": "unknown"}}}, "tool_choice", "invalid_value"),
        ({"additional_messages": [{"role": "system", "content": "x"}]}, "additional_messages[0].role", "invalid_value"),
        ({"file_ids": []}, "file_ids", "unknown_parameter"),
    ]
    for fields, param, code in cases:
        for stream in (False, True):  # with a stream too, the answer to a wrong request is JSON
            body = {"assistant_id": assistant.id, **fields, "stream": stream}
            status, _, got_param, got_code = await refused(http, "POST", f"/v1/threads/{thread.id}/runs", body)
            assert (status, got_param, got_code) == (400, param, code)
    assert (await sdk.beta.threads.runs.list(thread.id)).data == []
    assert len((await stopped(sdk, await start_run(sdk, tools=tools[:20]))).tools) == 20


async def test_an_answer_that_reaches_the_budget_is_incomplete(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_with(endpoint, Text(["word "], repeat=500))
    run = await finished_run(sdk, max_completion_tokens=256)
    assert endpoint.requests[-1]["max_completion_tokens"] == 256
    assert run.incomplete_details is not None
    assert (run.status, run.incomplete_details.reason) == ("incomplete", "max_completion_tokens")
    assert (run.expires_at, run.last_error, run.completed_at) == (None, None, None)
    assert run.usage is not None
    assert run.usage.completion_tokens == 256
    [message], [step] = await messages_of(sdk, run), await steps_of(sdk, run)
    assert message.incomplete_details is not None
    assert (message.status, message.incomplete_details.reason) == ("incomplete", "max_tokens")
    assert text_of(message) == "word " * 256
    assert step.status == "completed"
    # What was said stays in the conversation.
    answer_with(endpoint, Text("Go on."))
    await sdk.beta.threads.messages.create(run.thread_id, role="user", content="And?")
    await stopped(sdk, await sdk.beta.threads.runs.create(run.thread_id, assistant_id=run.assistant_id))
    assert endpoint.requests[-1]["messages"][1] == {"role": "assistant", "content": "word " * 256}


async def test_the_budget_of_completion_tokens_is_one_for_all_turns(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    ask = ToolCalls([ScriptedCall("weather", '{"city": "%s"}' % ("x" * 400))], pieces=200)
    answer_turns(endpoint, [ask], [Text(["word "], repeat=500)])
    waiting = await finished_run(sdk, tools=[WEATHER], max_completion_tokens=300)
    run = await stopped(sdk, await submit(sdk, waiting, "sun"))
    first, second = await steps_of(sdk, run)
    assert first.usage is not None
    assert second.usage is not None
    assert run.usage is not None
    left = 300 - first.usage.completion_tokens
    assert 0 < left < 300
    assert [asked["max_completion_tokens"] for asked in endpoint.requests] == [300, left]
    assert (run.status, second.usage.completion_tokens, run.usage.completion_tokens) == ("incomplete", left, 300)


async def test_a_turn_is_not_begun_when_no_completion_tokens_are_left(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    ask = ToolCalls([ScriptedCall("weather", '{"city": "%s"}' % ("x" * 600))], pieces=400)
    answer_turns(endpoint, [ask], [Text("Never asked.")])
    run = await stopped(sdk, await submit(sdk, await finished_run(sdk, tools=[WEATHER], max_completion_tokens=256), "sun"))
    assert run.incomplete_details is not None
    assert (run.status, run.incomplete_details.reason) == ("incomplete", "max_completion_tokens")
    assert (len(endpoint.requests), await messages_of(sdk, run)) == (1, [])
    assert [(step.type, step.status) for step in await steps_of(sdk, run)] == [("tool_calls", "completed")]


async def test_a_prompt_that_cannot_be_cut_to_its_budget_ends_the_run(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    run = await finished_run(sdk, "word " * 400, max_prompt_tokens=256)
    assert run.incomplete_details is not None
    assert (run.status, run.incomplete_details.reason, len(endpoint.requests)) == ("incomplete", "max_prompt_tokens", 0)
    assert (await messages_of(sdk, run), await steps_of(sdk, run)) == ([], [])


async def test_the_budget_of_prompt_tokens_is_one_for_all_turns(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    # The scripted endpoint counts words: after the first turn 40 of 256 are used, and with the output the second turn would need more.
    waiting = await finished_run(sdk, CALL_WEATHER + " now" * 37, tools=[WEATHER], max_prompt_tokens=256)
    run = await stopped(sdk, await submit(sdk, waiting, "sunny " * 300))
    assert run.incomplete_details is not None
    assert (run.status, run.incomplete_details.reason, len(endpoint.requests)) == ("incomplete", "max_prompt_tokens", 1)
    assert run.usage is not None
    assert run.usage.prompt_tokens == 40


async def test_a_prompt_is_cut_in_the_middle_of_the_thread(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    texts = ["the first", *[f"{number} " + "word " * 60 for number in range(8)], "the newest"]
    assistant, thread = await new_assistant(sdk, instructions="Always kept."), await thread_saying(sdk, *texts)
    run = await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id, max_prompt_tokens=256)
    assert (await stopped(sdk, run)).status == "completed"
    seen = [message["content"] for message in endpoint.requests[-1]["messages"]]
    assert seen[:2] == ["Always kept.", "the first"]
    kept = seen[2:]
    assert 1 < len(kept) < len(texts) - 1
    assert kept == texts[-len(kept) :]


async def test_a_run_may_show_the_model_only_the_newest_messages(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    for count in (1, 2, 100):
        assistant, thread = await new_assistant(sdk, instructions="I"), await thread_saying(sdk, "a", "b", "c")
        strategy: Any = {"type": "last_messages", "last_messages": count}
        run = await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id, truncation_strategy=strategy)
        assert wire(await stopped(sdk, run))["truncation_strategy"] == strategy
        assert [message["content"] for message in endpoint.requests[-1]["messages"]] == ["I", *["a", "b", "c"][-count:]]


async def test_cutting_never_parts_a_call_from_its_output(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    strategy = {"type": "last_messages", "last_messages": 1}
    waiting = await finished_run(sdk, CALL_WEATHER, tools=[WEATHER], truncation_strategy=strategy)
    run = await stopped(sdk, await submit(sdk, waiting, "sun"))
    assert run.status == "completed"  # the endpoint refuses a call without its output
    assert [message["role"] for message in endpoint.requests[-1]["messages"]] == ["user", "assistant", "tool"]


async def test_tool_choice_none_means_no_call(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    run = await finished_run(sdk, CALL_WEATHER, tools=[WEATHER], tool_choice="none")
    assert (run.status, run.tool_choice) == ("completed", "none")
    assert [step.type for step in await steps_of(sdk, run)] == ["message_creation"]
    assert endpoint.requests[-1]["tool_choice"] == "none"


async def test_a_demanded_call_is_demanded_once(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    named: Any = {"type": "function", "function": {"name": "clock"}}
    for choice, expected, offered in (("required", "weather", ["weather", "clock"]), (named, "clock", ["clock"])):
        endpoint.requests.clear()
        waiting = await finished_run(sdk, "Hello", tools=[WEATHER, CLOCK], tool_choice=choice)
        assert wire(waiting)["tool_choice"] == choice
        assert waiting.required_action is not None
        assert [pending.function.name for pending in waiting.required_action.submit_tool_outputs.tool_calls] == [expected]
        assert (await stopped(sdk, await submit(sdk, waiting, "done"))).status == "completed"
        # A demand that stayed would never let the run end.
        assert [asked.get("tool_choice", "auto") for asked in endpoint.requests] == ["required", "auto"]
        # A named tool is demanded by offering no other: every server knows that form.
        assert [tool["function"]["name"] for tool in endpoint.requests[0]["tools"]] == offered


async def test_without_parallel_calls_there_is_one_call_a_turn(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    waiting = await finished_run(sdk, CALL_BOTH, tools=[WEATHER, CLOCK])
    assert (len(pending_ids(waiting)), endpoint.requests[-1]["parallel_tool_calls"]) == (2, True)
    waiting = await finished_run(sdk, CALL_BOTH, tools=[WEATHER, CLOCK], parallel_tool_calls=False)
    assert (len(pending_ids(waiting)), endpoint.requests[-1]["parallel_tool_calls"]) == (1, False)
    # Whatever the model sends: one that ignores the wish is held to it.
    answer_turns(endpoint, [ToolCalls([ScriptedCall("weather", '{"city":"Oslo"}'), ScriptedCall("clock")])], [Text("Done.")])
    waiting = await finished_run(sdk, tools=[WEATHER, CLOCK], parallel_tool_calls=False)
    assert len(pending_ids(waiting)) == 1
    run = await stopped(sdk, await submit(sdk, waiting, "sun"))
    assert (run.status, run.parallel_tool_calls) == ("completed", False)
    [called] = [message for message in endpoint.requests[-1]["messages"] if "tool_calls" in message]
    assert len(called["tool_calls"]) == 1


@server_with(run_turns_max=3)
async def test_a_model_that_never_stops_calling_is_stopped(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_with(endpoint, ToolCalls([ScriptedCall("unknown")]))
    run = await finished_run(sdk, tools=[CLOCK])
    assert run.last_error is not None
    assert (run.status, run.last_error.code, len(endpoint.requests)) == ("failed", "server_error", 3)


@server_with(answer_characters_max=2048)
async def test_an_answer_without_an_end_is_stopped(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_with(endpoint, Text(["x" * 100], repeat=100), Stall())
    run = await finished_run(sdk)
    assert run.last_error is not None
    assert (run.status, run.last_error.code) == ("failed", "server_error")


@server_with(tool_output_bytes_max=1024)
async def test_an_output_that_is_too_large_is_refused_and_the_run_waits_on(sdk: openai.AsyncOpenAI) -> None:
    waiting = await finished_run(sdk, CALL_WEATHER, tools=[WEATHER])
    with pytest.raises(openai.APIStatusError) as caught:
        await submit(sdk, waiting, "x" * 1025)
    assert caught.value.status_code == 413
    assert (await stopped(sdk, await submit(sdk, waiting, "x" * 1024))).status == "completed"


async def test_a_run_that_is_finished_by_a_content_filter_says_so(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    endpoint.script = Script([Rule([Text("Well, "), Finish("content_filter")])])
    run = await finished_run(sdk)
    [message] = await messages_of(sdk, run)
    assert message.incomplete_details is not None
    assert (message.status, message.incomplete_details.reason, text_of(message)) == ("incomplete", "content_filter", "Well, ")
    assert run.status == "completed"
