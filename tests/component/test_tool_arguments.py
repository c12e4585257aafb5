"""Arguments of function calls on their way to the client: one repair by the model, what is strict, and turns with good and bad calls."""

from typing import Any

import openai
import pytest

from mini_assistant.app import running_server
from mini_assistant.models.script import Rule, Script, ScriptedCall, Stall, Step, Text, ToolCalls
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.settings import Settings
from tests.conformance.conversations import (
    CLOCK,
    WEATHER,
    answer_turns,
    finished_run,
    messages_of,
    pending_ids,
    run_after,
    start_run,
    steps_of,
    stopped,
    submit,
    text_of,
)
from tests.conformance.strictness import wire

STRICT: Any = {
    "type": "function",
    "function": {
        "name": "ticket",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"seats": {"type": "integer"}},
            "required": ["seats"],
            "additionalProperties": False,
        },
    },
}
WRONG = '{"city":7}'
RIGHT = '{"city":"Oslo"}'
NO_OBJECT = '["Oslo"]'
BAD = "Error (bad_arguments): "


def calling(*calls: tuple[str, str]) -> list[Step]:
    return [ToolCalls([ScriptedCall(name, arguments) for name, arguments in calls])]


async def shown_calls(sdk: openai.AsyncOpenAI, run: Any) -> list[dict[str, Any]]:
    """The function calls of the run's steps, as they are on the wire."""
    details = [wire(step)["step_details"] for step in await steps_of(sdk, run)]
    return [call["function"] for detail in details for call in detail.get("tool_calls", [])]


def pending(run: Any) -> list[tuple[str, str]]:
    calls = run.required_action.submit_tool_outputs.tool_calls
    return [(call.function.name, call.function.arguments) for call in calls]


async def test_the_model_is_told_once_what_is_wrong_and_can_mend_it(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_turns(endpoint, calling(("weather", WRONG)), calling(("weather", RIGHT)), [Text("Sunny.")])
    run = await finished_run(sdk, tools=[WEATHER])
    assert pending(run) == [("weather", RIGHT)]
    told = endpoint.requests[-1]["messages"][-1]
    assert told["role"] == "tool"
    assert told["content"].startswith(BAD)
    assert "'weather'" in told["content"]
    assert "At 'city': the value is not of type \"string\"." in told["content"]
    run = await stopped(sdk, await submit(sdk, run, "sun"))
    assert run.status == "completed"
    wrong, right = await shown_calls(sdk, run)
    assert wrong == {"name": "weather", "arguments": WRONG, "output": told["content"]}
    assert right == {"name": "weather", "arguments": RIGHT, "output": "sun"}


async def test_a_model_that_does_not_mend_them_leaves_them_to_the_client(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_turns(endpoint, calling(("weather", WRONG)), calling(("weather", '{"city":8}')), calling(("weather", WRONG)), [Text("Sunny.")])
    run = await finished_run(sdk, tools=[WEATHER])
    assert pending(run) == [("weather", '{"city":8}')]
    run = await stopped(sdk, await submit(sdk, run, "which city?"))
    assert pending(run) == [("weather", WRONG)], "told once in a run, not once a turn"
    assert (await stopped(sdk, await submit(sdk, run, "sun"))).status == "completed"


async def test_what_is_no_object_never_goes_to_the_client(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_turns(endpoint, calling(("weather", NO_OBJECT)), calling(("weather", NO_OBJECT)), [Text("I cannot.")])
    run = await finished_run(sdk, tools=[WEATHER])
    assert run.status == "completed"
    assert [call["output"].startswith(BAD) for call in await shown_calls(sdk, run)] == [True, True]


@pytest.mark.parametrize("wrong", ['{"seats":"two"}', "{}", '{"seats":2,"row":1}', "[]", '{"seats":'])
async def test_a_strict_function_that_is_called_wrongly_again_fails_the_run(
    sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, wrong: str
) -> None:
    answer_turns(endpoint, calling(("ticket", wrong)), calling(("clock", "{}"), ("ticket", wrong)), [Text("Never asked.")])
    run = await finished_run(sdk, tools=[STRICT, CLOCK])
    assert run.status == "failed"
    assert run.last_error is not None
    assert run.last_error.code == "server_error"
    assert "'ticket'" in run.last_error.message
    assert "strict" in run.last_error.message
    assert any(word in run.last_error.message for word in ("seats", "row", "JSON object"))
    assert [step.status for step in await steps_of(sdk, run)] == ["completed", "failed"]
    assert len(endpoint.requests) == 2


async def test_a_strict_function_that_is_called_rightly_the_second_time_is_called(
    sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint
) -> None:
    answer_turns(endpoint, calling(("ticket", "{}"), ("ticket", "[]")), calling(("ticket", '{"seats":2}')))
    run = await finished_run(sdk, tools=[STRICT])
    assert pending(run) == [("ticket", '{"seats":2}')]
    assert [(call["output"] or "")[: len(BAD)] for call in await shown_calls(sdk, run)] == [BAD, BAD, ""]


async def test_each_function_has_its_own_repair(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_turns(endpoint, calling(("weather", WRONG)), calling(("ticket", "{}")), calling(("ticket", '{"seats":2}')))
    run = await finished_run(sdk, tools=[STRICT, WEATHER])
    assert pending(run) == [("ticket", '{"seats":2}')]


async def test_in_a_turn_with_good_and_bad_calls_the_client_answers_the_good_ones(
    sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint
) -> None:
    calls = calling(("weather", WRONG), ("clock", "{}"), ("weather", RIGHT), ("ticket", "{}"))
    answer_turns(endpoint, calls, [Text("Done.")])
    run = await finished_run(sdk, tools=[STRICT, WEATHER, CLOCK])
    assert pending(run) == [("clock", "{}"), ("weather", RIGHT)]
    [open_step] = await steps_of(sdk, run)
    ids = [call["id"] for call in wire(open_step)["step_details"]["tool_calls"]]
    assert pending_ids(run) == [ids[1], ids[2]]
    outputs: Any = [{"tool_call_id": call_id, "output": "x"} for call_id in ids]
    with pytest.raises(openai.BadRequestError, match="Expected tool outputs for call_ids"):
        await sdk.beta.threads.runs.submit_tool_outputs(run.id, thread_id=run.thread_id, tool_outputs=outputs)
    run = await stopped(sdk, await submit(sdk, run, "noon", "sun"))
    assert run.status == "completed"
    asked, *results = endpoint.requests[-1]["messages"][-5:]
    assert [call["function"]["arguments"] for call in asked["tool_calls"]] == [WRONG, "{}", RIGHT, "{}"]
    assert [result["tool_call_id"] for result in results] == [call["id"] for call in asked["tool_calls"]]
    assert [result["content"][: len(BAD)] for result in results] == [BAD, "noon", "sun", BAD]
    assert [text_of(message) for message in await messages_of(sdk, run)] == ["Done."]


async def test_the_same_over_a_stream(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_turns(endpoint, calling(("weather", WRONG), ("clock", "{}")), [Text("Done.")])
    assistant = await sdk.beta.assistants.create(model="scripted", tools=[WEATHER, CLOCK])
    thread = await sdk.beta.threads.create(messages=[{"role": "user", "content": "Hello"}])
    async with sdk.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        await stream.until_done()
        run = stream.current_run
        assert run is not None
    assert pending(run) == [("clock", "{}")]
    outputs: Any = [{"tool_call_id": pending_ids(run)[0], "output": "noon"}]
    async with sdk.beta.threads.runs.submit_tool_outputs_stream(run_id=run.id, thread_id=thread.id, tool_outputs=outputs) as stream:
        [message] = await stream.get_final_messages()
    assert text_of(message) == "Done."


async def test_arguments_that_are_left_out_are_an_empty_object(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    answer_turns(endpoint, calling(("clock", ""), ("clock", " ")))
    assistant = await sdk.beta.assistants.create(model="scripted", tools=[CLOCK])
    thread = await sdk.beta.threads.create(messages=[{"role": "user", "content": "Hello"}])
    told: dict[int, str] = {}
    stream = await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id, stream=True)
    run = None
    async for event in stream:
        if event.event == "thread.run.step.delta" and event.data.delta.step_details is not None:
            for call in getattr(event.data.delta.step_details, "tool_calls", None) or []:
                told[call.index] = told.get(call.index, "") + (call.function.arguments or "")
        elif event.event == "thread.run.requires_action":
            run = event.data
    assert run is not None
    assert pending(run) == [("clock", "{}"), ("clock", " {}")]
    assert told == {0: "{}", 1: " {}"}


async def test_schemas_that_cannot_be_checked_do_no_harm(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint) -> None:
    for schema in (
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"type": "text"},
        {"$ref": "#"},
        {"properties": {"city": {"pattern": "(?=x)x"}}},
    ):
        answer_turns(endpoint, calling(("weather", WRONG)))
        run = await finished_run(sdk, tools=[{"type": "function", "function": {"name": "weather", "parameters": schema, "strict": True}}])
        assert pending(run) == [("weather", WRONG)]


async def test_what_the_model_was_told_is_known_to_another_worker(settings: Settings, endpoint: ScriptedEndpoint) -> None:
    endpoint.script = Script(
        [
            Rule(calling(("ticket", "{}")), times=1),
            Rule([Stall()], times=1),
            Rule(calling(("ticket", "{}")), times=1),
            Rule([Text("Never asked.")]),
        ]
    )
    async with running_server(settings) as address, client_of(address) as sdk:
        run = await start_run(sdk, tools=[STRICT])
        while len(endpoint.requests) < 2:
            run = await sdk.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id)
            assert run.status in ("queued", "in_progress")
    async with running_server(settings) as address, client_of(address) as sdk:
        run = await run_after(sdk, await sdk.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id), "in_progress")
        assert run.status == "failed"
        assert run.last_error is not None
        assert "'ticket'" in run.last_error.message


def client_of(address: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="test-key", max_retries=0, timeout=20)
