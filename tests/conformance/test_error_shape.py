"""Errors: one envelope for all of them, and the literal messages that clients know."""

from typing import Any

import aiohttp
import openai
import pytest

from tests.conformance.conversations import CALL_BOTH, CLOCK, MODEL, WEATHER, finished_run, pending_ids, thread_saying
from tests.conformance.raw_http import refused
from tests.conformance.server_settings import server_with


async def test_the_envelope_is_indented_json_with_four_fields(http: aiohttp.ClientSession) -> None:
    async with http.get("/v1/threads/thread_x") as response:
        text = await response.text()
    assert text.startswith('{\n  "error": {\n    "message": "')
    assert (response.status, response.headers["x-should-retry"]) == (404, "false")


async def test_the_sdk_reads_every_field_of_an_error(sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.beta.threads.create(extra_body={"colour": "blue"})
    error = caught.value
    assert (error.param, error.code, error.type) == ("colour", "unknown_parameter", "invalid_request_error")
    assert error.request_id is not None
    assert "Unknown parameter: 'colour'." in str(error)


async def test_a_wrong_request_is_told_in_the_known_words(http: aiohttp.ClientSession) -> None:
    metadata = {"modified": True}
    cases: list[tuple[str, str, Any, tuple[int, str, str | None, str | None]]] = [
        (
            "POST",
            "/v1/assistants",
            {},
            (400, "Missing required parameter: 'model'.", "model", "missing_required_parameter"),
        ),
        (
            "POST",
            "/v1/assistants",
            {"model": MODEL, "colour": "blue"},
            (400, "Unknown parameter: 'colour'.", "colour", "unknown_parameter"),
        ),
        (
            "POST",
            "/v1/threads",
            {"metadata": metadata},
            (
                400,
                "Invalid type for 'metadata.modified': expected a string, but got a boolean instead.",
                "metadata.modified",
                "invalid_type",
            ),
        ),
        (
            "POST",
            "/v1/threads",
            {"messages": [{"role": "user"}]},
            (400, "Missing required parameter: 'messages[0].content'.", "messages[0].content", "missing_required_parameter"),
        ),
        (
            "POST",
            "/v1/threads",
            {"metadata": {str(number): "" for number in range(17)}},
            (
                400,
                "Invalid 'metadata': too many properties. "
                "Expected an object with at most 16 properties, but got an object with 17 properties instead.",
                "metadata",
                "object_above_max_properties",
            ),
        ),
        (
            "POST",
            "/v1/assistants",
            {"model": MODEL, "instructions": "x" * 256_001},
            (
                400,
                "Invalid 'instructions': string too long. "
                "Expected a string with maximum length 256000, but got a string with length 256001 instead.",
                "instructions",
                "string_above_max_length",
            ),
        ),
        (
            "GET",
            "/v1/assistants?limit=101",
            None,
            (
                400,
                "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead.",
                "limit",
                "integer_above_max_value",
            ),
        ),
        (
            "GET",
            "/v1/assistants/thread_x",
            None,
            (400, "Invalid 'assistant_id': 'thread_x'. Expected an ID that begins with 'asst'.", "assistant_id", "invalid_value"),
        ),
        (
            "POST",
            "/v1/threads/thread_x/runs",
            {"assistant_id": "x"},
            (400, "Invalid 'assistant_id': 'x'. Expected an ID that begins with 'asst'.", "assistant_id", "invalid_value"),
        ),
        ("GET", "/v1/nothing", None, (404, "Invalid URL (GET /v1/nothing)", None, None)),
        ("GET", "/v1/assistants/asst_x", None, (404, "No assistant found with id 'asst_x'.", None, None)),
        ("GET", "/v1/threads/thread_x", None, (404, "No thread found with id 'thread_x'.", None, None)),
    ]
    got = [await refused(http, method, path, body) for method, path, body, _ in cases]
    assert got == [expected for *_, expected in cases]


async def test_what_is_no_json_object_is_refused(http: aiohttp.ClientSession) -> None:
    for raw in (b"{", b"", b"\xff", b'{"model": NaN}', b"[" * 40_000):
        status, message, param, code = await refused(http, "POST", "/v1/assistants", raw)
        assert (status, param, code) == (400, None, None)
        assert message.startswith("We could not parse the JSON body of your request.")
    for raw in (b"[]", b'"text"', b"null"):
        status, _, _, code = await refused(http, "POST", "/v1/assistants", raw)
        assert (status, code) == (400, "invalid_type")


async def test_another_method_on_a_known_address_is_not_allowed(http: aiohttp.ClientSession) -> None:
    for method, path in (("PUT", "/v1/assistants"), ("PATCH", "/v1/threads/thread_x"), ("GET", "/v1/threads/thread_x/runs/run_x/cancel")):
        status, _, param, code = await refused(http, method, path)
        assert (status, param, code) == (405, None, "method_not_supported")


@server_with(body_bytes_max=2048)
async def test_a_body_that_is_too_large_is_refused(http: aiohttp.ClientSession) -> None:
    for body in (b"x" * 2049, b"x" * 500_000):
        status, _, _, code = await refused(http, "POST", "/v1/threads", body)
        assert (status, code) == (413, "body_too_large")


async def test_what_is_not_found_in_a_thread_is_named(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    run = await finished_run(sdk)
    thread = f"/v1/threads/{run.thread_id}"
    got = [
        await refused(http, method, path)
        for method, path in (
            ("GET", f"{thread}/messages/msg_x"),
            ("GET", f"{thread}/runs/run_x"),
            ("POST", f"{thread}/runs/run_x/cancel"),
            ("GET", f"{thread}/runs/run_x/steps"),
            ("GET", f"{thread}/runs/{run.id}/steps/step_x"),
        )
    ]
    assert got == [
        (404, "No message found with id 'msg_x'.", None, None),
        (404, "No run found with id 'run_x'.", None, None),
        (404, "No run found with id 'run_x'.", None, None),
        (404, "No run found with id 'run_x'.", None, None),
        (404, "No run step found with id 'step_x'.", None, None),
    ]


async def test_a_conflict_with_the_state_of_a_run_is_400_which_no_sdk_repeats(sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession) -> None:
    waiting = await finished_run(sdk, CALL_BOTH, tools=[WEATHER, CLOCK])
    ended = await finished_run(sdk)
    first, second = pending_ids(waiting)
    thread, other = f"/v1/threads/{waiting.thread_id}", f"/v1/threads/{ended.thread_id}"
    outputs = {"tool_outputs": [{"tool_call_id": first, "output": "sun"}]}
    empty = await thread_saying(sdk)
    start = {"assistant_id": waiting.assistant_id}
    got = [
        await refused(http, "POST", path, body)
        for path, body in (
            (f"{thread}/messages", {"role": "user", "content": "More"}),
            (f"{thread}/runs", start),
            (f"{thread}/runs/{waiting.id}/submit_tool_outputs", outputs),
            (f"{other}/runs/{ended.id}/submit_tool_outputs", outputs),
            (f"{other}/runs/{ended.id}/cancel", None),
            (f"/v1/threads/{empty.id}/runs", start),
        )
    ]
    assert got == [
        (400, f"Can't add messages to {waiting.thread_id} while a run {waiting.id} is active.", None, None),
        (400, f"Thread {waiting.thread_id} already has an active run {waiting.id}.", None, None),
        (400, f"Expected tool outputs for call_ids ['{first}', '{second}'], got ['{first}']", None, None),
        (400, 'Runs in status "completed" do not accept tool outputs.', None, None),
        (400, "Cannot cancel run with status 'completed'.", None, None),
        (400, "Run creation requires a Thread with a user message or an assistant with instructions.", None, "invalid_thread"),
    ]
