"""Assistants: what is echoed, what is changed by an update, what is refused."""

import asyncio
from typing import Any

import aiohttp
import openai
import pytest

from tests.conformance.conversations import CLOCK, MODEL, WEATHER, finished_run, new_assistant, stopped, submit, thread_saying
from tests.conformance.raw_http import call, refused
from tests.conformance.strictness import wire

EMPTY_SCHEMA = {"type": "object", "properties": {}}


async def test_what_is_not_given_is_null_or_the_default(http: aiohttp.ClientSession) -> None:
    made = await call(http, "POST", "/v1/assistants", {"model": MODEL})
    assert {field: made.body[field] for field in made.body if field not in ("id", "created_at")} == {
        "object": "assistant",
        "name": None,
        "description": None,
        "model": MODEL,
        "instructions": None,
        "tools": [],
        "tool_resources": {},
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "reasoning_effort": None,
        "response_format": "auto",
    }
    assert (await call(http, "GET", f"/v1/assistants/{made.body['id']}")).body == made.body
    nulls = dict.fromkeys(("name", "description", "instructions", "tools", "tool_resources", "metadata", "temperature", "top_p"))
    explicit = await call(http, "POST", "/v1/assistants", {"model": MODEL, **nulls, "response_format": None, "reasoning_effort": None})
    assert {**explicit.body, "id": made.body["id"], "created_at": made.body["created_at"]} == made.body


async def test_everything_that_is_given_is_kept(sdk: openai.AsyncOpenAI) -> None:
    given: dict[str, Any] = {
        "name": "N",
        "description": "D",
        "instructions": "I",
        "metadata": {"a": "b"},
        "temperature": 0,
        "top_p": 0,
        "reasoning_effort": "high",
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}},
    }
    assistant = await new_assistant(sdk, **given)
    assert {field: wire(assistant)[field] for field in given} == given
    for form in ({"type": "text"}, {"type": "json_object"}, "auto"):
        assert wire(await new_assistant(sdk, response_format=form))["response_format"] == form


async def test_tools_are_echoed_with_their_defaults(sdk: openai.AsyncOpenAI) -> None:
    assistant = wire(await new_assistant(sdk, tools=[{"type": "code_interpreter"}, {"type": "file_search"}, CLOCK]))
    ranking = {"ranker": "default_2024_08_21", "score_threshold": 0.0, "hybrid_search": None}
    assert assistant["tools"] == [
        {"type": "code_interpreter"},
        {"type": "file_search", "file_search": {"ranking_options": ranking}},
        {"type": "function", "function": {"name": "clock", "parameters": EMPTY_SCHEMA, "strict": False}},
    ]
    assert assistant["tool_resources"]["code_interpreter"] == {"file_ids": []}
    searching = await new_assistant(sdk, tools=[{"type": "file_search", "file_search": {}}])
    assert wire(searching)["tools"] == assistant["tools"][1:2]
    [tool] = wire(await new_assistant(sdk, tools=[WEATHER]))["tools"]
    assert tool["function"] == {**WEATHER["function"], "strict": False}


async def test_an_assistant_has_at_most_128_tools(sdk: openai.AsyncOpenAI) -> None:
    tools: list[Any] = [{"type": "function", "function": {"name": f"f{number}"}} for number in range(129)]
    assert len((await new_assistant(sdk, tools=tools[:128])).tools) == 128
    with pytest.raises(openai.BadRequestError) as caught:
        await new_assistant(sdk, tools=tools)
    assert (caught.value.code, caught.value.param) == ("array_above_max_length", "tools")


async def test_tools_work_on_at_most_20_files_and_one_vector_store(http: aiohttp.ClientSession) -> None:
    files = {"code_interpreter": {"file_ids": [f"file-{number}" for number in range(21)]}}
    stores = {"file_search": {"vector_store_ids": ["vs_1", "vs_2"]}}
    for resources, param in ((files, "code_interpreter.file_ids"), (stores, "file_search.vector_store_ids")):
        for path, body in (("/v1/assistants", {"model": MODEL}), ("/v1/threads", {})):
            status, _, got, code = await refused(http, "POST", path, {**body, "tool_resources": resources})
            assert (status, got, code) == (400, f"tool_resources.{param}", "array_above_max_length")


async def test_an_unknown_file_or_vector_store_is_not_found_and_nothing_is_made(http: aiohttp.ClientSession) -> None:
    files = {"code_interpreter": {"file_ids": ["file-unknown"]}}
    stores = {"file_search": {"vector_store_ids": ["vs_unknown"]}}
    assistant_id = (await call(http, "POST", "/v1/assistants", {"model": MODEL})).body["id"]
    for path, body in (("/v1/assistants", {"model": MODEL}), (f"/v1/assistants/{assistant_id}", {}), ("/v1/threads", {})):
        reply = await refused(http, "POST", path, {**body, "tool_resources": files})
        assert reply == (404, "No such File object: file-unknown", "id", None)
        status, message, _, _ = await refused(http, "POST", path, {**body, "tool_resources": stores})
        assert (status, "vs_unknown" in message) == (404, True)
    [left] = (await call(http, "GET", "/v1/assistants")).body["data"]
    assert (left["id"], left["tool_resources"]) == (assistant_id, {})
    assert (await call(http, "GET", "/v1/threads")).body["data"] == []


async def test_an_update_changes_what_it_names_and_nothing_else(sdk: openai.AsyncOpenAI) -> None:
    before = wire(await new_assistant(sdk, name="old", instructions="I", tools=[WEATHER], metadata={"a": "1", "b": "2"}, temperature=0.5))
    after = wire(await sdk.beta.assistants.update(before["id"], name="new"))
    assert after == {**before, "name": "new"}
    after = wire(await sdk.beta.assistants.update(before["id"], metadata={"c": "3"}))
    assert after == {**before, "name": "new", "metadata": {"c": "3"}}
    assert wire(await sdk.beta.assistants.update(before["id"])) == after
    assert wire(await sdk.beta.assistants.retrieve(before["id"])) == after
    cleared = await sdk.beta.assistants.update(before["id"], name=None, instructions=None, temperature=None, tools=[], metadata=None)
    assert (cleared.name, cleared.instructions, cleared.temperature, cleared.tools, cleared.metadata) == (None, None, 1.0, [], {})


async def test_simultaneous_updates_are_all_kept(sdk: openai.AsyncOpenAI) -> None:
    assistant = await new_assistant(sdk)
    changes: list[dict[str, Any]] = [{"name": "n"}, {"description": "d"}, {"instructions": "i"}, {"metadata": {"m": "1"}}, {"top_p": 0.5}]
    await asyncio.gather(*(sdk.beta.assistants.update(assistant.id, **change) for change in changes))
    after = wire(await sdk.beta.assistants.retrieve(assistant.id))
    assert after == {**wire(assistant), **{field: value for change in changes for field, value in change.items()}}


async def test_a_deleted_assistant_is_gone(sdk: openai.AsyncOpenAI) -> None:
    assistant = await new_assistant(sdk)
    thread = await thread_saying(sdk, "Hello")
    deleted = await sdk.beta.assistants.delete(assistant.id)
    assert wire(deleted) == {"id": assistant.id, "object": "assistant.deleted", "deleted": True}
    text = f"No assistant found with id '{assistant.id}'."
    for attempt in (
        sdk.beta.assistants.retrieve(assistant.id),
        sdk.beta.assistants.update(assistant.id, name="x"),
        sdk.beta.assistants.delete(assistant.id),
        sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            await attempt
        assert caught.value.body == {"message": text, "type": "invalid_request_error", "param": None, "code": None}


async def test_a_run_goes_on_when_its_assistant_is_deleted(sdk: openai.AsyncOpenAI) -> None:
    waiting = await finished_run(sdk, 'call weather {"city": "Oslo"}', tools=[WEATHER])
    await sdk.beta.assistants.delete(waiting.assistant_id)
    done = await submit(sdk, waiting, "sun")
    assert (await stopped(sdk, done)).status == "completed"


async def test_habits_of_old_clients_are_refused_with_the_name_of_the_field(http: aiohttp.ClientSession) -> None:
    status, message, param, code = await refused(http, "POST", "/v1/assistants", {"model": MODEL, "tools": [{"type": "retrieval"}]})
    assert (status, param, code) == (400, "tools[0].type", "invalid_value")
    assert message.startswith("Invalid value: 'retrieval'. Supported values are: ")
    assert {"'code_interpreter'", "'function'", "'file_search'"} <= set(message.replace(",", " ").replace(".", " ").split())
    reply = await refused(http, "POST", "/v1/assistants", {"model": MODEL, "file_ids": []})
    assert reply == (400, "Unknown parameter: 'file_ids'.", "file_ids", "unknown_parameter")
    made = await call(http, "POST", "/v1/assistants", {"model": MODEL})
    assert (await refused(http, "GET", f"/v1/assistants/{made.body['id']}/files"))[0] == 404


async def test_a_value_out_of_range_is_named(http: aiohttp.ClientSession) -> None:
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
        ({"temperature": -0.1}, "temperature", "decimal_below_min_value"),
        ({"top_p": 1.1}, "top_p", "decimal_above_max_value"),
        ({"name": "n" * 257}, "name", "string_above_max_length"),
        ({"description": "d" * 513}, "description", "string_above_max_length"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "n" * 65}}]}, "tools[0].function.name", "string_above_max_length"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing_required_parameter"),
        ({"response_format": "json"}, "response_format", "invalid_value"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort", "invalid_value"),
    ]
    for fields, param, code in cases:
        status, _, got_param, got_code = await refused(http, "POST", "/v1/assistants", {"model": MODEL, **fields})
        assert (status, got_param, got_code) == (400, param, code)
