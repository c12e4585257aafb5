"""Tools of MCP servers in runs, against a real MCP server process; the client is the official SDK."""

import asyncio
import contextlib
import dataclasses
import logging
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from openai.types.beta.threads import Run

from mini_assistant.app import running_server
from mini_assistant.assistants.schema import McpApproval, McpTool, McpToolNames
from mini_assistant.errors import ToolFailure
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.settings import Settings
from mini_assistant.tools.mcp import needs_approval, offered_name
from mini_assistant.tools.mcp_connection import McpConnection
from tests.mcp_process import mcp_server_process

WAIT_SECONDS = 15.0
SECRET = "Bearer a-secret"


@pytest.fixture(scope="module")
def shared_url() -> Iterator[str]:
    with mcp_server_process() as url:
        yield url


@pytest.fixture
def own_url() -> Iterator[str]:
    """A server that nobody else uses, for tests that look at what it has seen."""
    with mcp_server_process() as url:
        yield url


@pytest.fixture
def settings(tmp_path: Path, endpoint: ScriptedEndpoint) -> Settings:
    return Settings(
        port=0,
        data_dir=tmp_path / "data",
        openai_base_url=endpoint.base_url,
        model_retries_max=0,
        sandbox="none",
        private_addresses=True,
        mcp_timeout_seconds=3.0,
        mcp_connect_timeout_seconds=5.0,
        mcp_output_characters_max=1000,
    )


@contextlib.asynccontextmanager
async def client_of(settings: Settings) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        running_server(settings) as address,
        openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="test-key", max_retries=0, timeout=20) as sdk,
    ):
        yield sdk


def mcp_tool(url: str, approval: Any = "never", **more: Any) -> Any:
    return {"type": "mcp", "server_label": "docs", "server_url": url, "require_approval": approval, **more}


async def new_run(sdk: openai.AsyncOpenAI, text: str, *tools: Any) -> Run:
    assistant = await sdk.beta.assistants.create(model="scripted", tools=tools)
    thread = await sdk.beta.threads.create(messages=[{"role": "user", "content": text}])
    return await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id)


async def stopped(sdk: openai.AsyncOpenAI, run: Run) -> Run:
    async with asyncio.timeout(WAIT_SECONDS):
        while run.status in ("queued", "in_progress", "cancelling"):
            await asyncio.sleep(0.02)
            run = await sdk.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id)
    return run


async def run_of(sdk: openai.AsyncOpenAI, text: str, *tools: Any) -> Run:
    return await stopped(sdk, await new_run(sdk, text, *tools))


async def calls_of(sdk: openai.AsyncOpenAI, run: Run) -> list[dict[str, Any]]:
    """The functions of the calls in all steps, in their order."""
    steps = await sdk.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id, order="asc")
    shown = [step.model_dump() for step in steps.data]
    calls = [call for step in shown if step["type"] == "tool_calls" for call in step["step_details"]["tool_calls"]]
    assert all(call["type"] == "function" for call in calls)
    return [call["function"] for call in calls]


async def output_of(sdk: openai.AsyncOpenAI, run: Run) -> str:
    """The output of the one call of a run that is completed."""
    assert run.status == "completed", run.last_error
    [call] = await calls_of(sdk, run)
    return call["output"]


async def answer_of(sdk: openai.AsyncOpenAI, run: Run) -> str:
    messages = await sdk.beta.threads.messages.list(run.thread_id, run_id=run.id)
    return "".join(part.text.value for message in messages.data for part in message.content if part.type == "text")


def pending(run: Run) -> list[tuple[str, str]]:
    assert run.status == "requires_action", run.last_error
    assert run.required_action is not None
    return [(call.id, call.function.name) for call in run.required_action.submit_tool_outputs.tool_calls]


async def submit(sdk: openai.AsyncOpenAI, run: Run, *outputs: str) -> Run:
    """Answer the pending calls in their order."""
    given: Any = [{"tool_call_id": call_id, "output": output} for (call_id, _), output in zip(pending(run), outputs, strict=True)]
    return await sdk.beta.threads.runs.submit_tool_outputs(run.id, thread_id=run.thread_id, tool_outputs=given)


async def seen_by(url: str) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.get(url.replace("/mcp", "/seen")) as response:
        return await response.json()


async def until_seen(url: str, name: str, value: Any) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while (await seen_by(url))[name] != value:  # noqa: ASYNC110 - polled
            await asyncio.sleep(0.02)


# ---- calls -------------------------------------------------------------------------------------------------------------------------


async def test_tools_are_offered_and_called(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, shared_url: str) -> None:
    run = await run_of(sdk, 'call docs__add {"a": 2, "b": 3}', mcp_tool(shared_url))

    assert run.status == "completed", run.last_error
    assert await calls_of(sdk, run) == [{"name": "docs__add", "arguments": '{"a": 2, "b": 3}', "output": "5"}]
    assert await answer_of(sdk, run) == "The tool returned: 5"
    offered = {tool["function"]["name"]: tool["function"] for tool in endpoint.requests[-1]["tools"]}
    assert offered["docs__add"]["description"] == "Adds two numbers."
    assert offered["docs__add"]["parameters"]["required"] == ["a", "b"]
    assert {"docs__fail", "docs__sleep", "docs__write", "docs__show"} < set(offered)


@pytest.mark.parametrize("option", ["--handshake", "--plain-json"])
async def test_servers_of_other_versions_and_forms_are_understood(sdk: openai.AsyncOpenAI, option: str) -> None:
    with mcp_server_process(option) as url:
        run = await run_of(sdk, 'call docs__add {"a": 2, "b": 3}', mcp_tool(url))

        assert await output_of(sdk, run) == "5"
        await until_seen(url, "connections", 1)
        assert (await seen_by(url))["deleted"] == (1 if option == "--handshake" else 0), "its session is ended"


async def test_calls_run_side_by_side_and_come_back_in_order(sdk: openai.AsyncOpenAI, shared_url: str) -> None:
    text = 'call docs__sleep {"seconds": 0.5} call docs__add {"a": 1, "b": 1} call docs__fail {} call docs__unknown {}'
    run = await run_of(sdk, text, mcp_tool(shared_url))

    assert run.status == "completed", run.last_error
    calls = await calls_of(sdk, run)
    assert [call["output"] for call in calls] == ["slept", "2", "Error (failed): Error executing tool fail"]


async def test_only_allowed_tools_are_offered(sdk: openai.AsyncOpenAI, endpoint: ScriptedEndpoint, shared_url: str) -> None:
    run = await run_of(sdk, "Hello", mcp_tool(shared_url, allowed_tools=["add", "with.dots", "unknown"]))

    assert run.status == "completed", run.last_error
    offered = [tool["function"]["name"] for tool in endpoint.requests[-1]["tools"]]
    assert offered == ["docs__add", offered_name("docs", "with.dots", ())]


async def test_a_server_can_be_named_on_a_run_and_twice_under_two_labels(sdk: openai.AsyncOpenAI, shared_url: str) -> None:
    assistant = await sdk.beta.assistants.create(model="scripted")
    tools: Any = [mcp_tool(shared_url), {**mcp_tool(shared_url), "server_label": "more"}]
    text = 'call docs__add {"a": 1, "b": 1} call more__add {"a": 2, "b": 2}'
    run = await sdk.beta.threads.create_and_run(
        assistant_id=assistant.id, tools=tools, thread={"messages": [{"role": "user", "content": text}]}
    )
    run = await stopped(sdk, run)

    assert [(call["name"], call["output"]) for call in await calls_of(sdk, run)] == [("docs__add", "2"), ("more__add", "4")]


async def test_a_tool_can_be_demanded(sdk: openai.AsyncOpenAI, shared_url: str) -> None:
    assistant = await sdk.beta.assistants.create(model="scripted", tools=[mcp_tool(shared_url)])
    thread = await sdk.beta.threads.create(messages=[{"role": "user", "content": "Hello"}])
    choice: Any = {"type": "function", "function": {"name": "docs__show"}}
    run = await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id, tool_choice=choice)
    run = await stopped(sdk, run)

    output = await output_of(sdk, run)
    assert output == "Look:\n[An image (image/png), which cannot be shown here.]\n[The resource docs://page]"


@pytest.mark.parametrize(
    ("call", "output"),
    [
        ("docs__fail {}", "Error (failed): Error executing tool fail"),
        ("docs__say_error {}", "Error (failed): no such page"),
        ('docs__sleep {"seconds": 60}', "Error (timeout): The tool took longer than 3 seconds."),
        ("docs__add 5", "Error (failed): Error executing tool add"),
        ('docs__write {"characters": 1500}', "x" * 1000 + "\n[Cut off here: the output has 1500 characters.]"),
        ('docs__write {"characters": 9000000}', "Error (failed): It "),
    ],
)
async def test_what_goes_wrong_is_read_by_the_model(sdk: openai.AsyncOpenAI, shared_url: str, call: str, output: str) -> None:
    run = await run_of(sdk, f"call {call}", mcp_tool(shared_url))

    assert (await output_of(sdk, run)).startswith(output)


async def test_a_lost_server_is_told_to_the_model(sdk: openai.AsyncOpenAI) -> None:
    with mcp_server_process() as url:
        run = await new_run(sdk, "call docs__sleep_first {}", mcp_tool(url))
        await until_seen(url, "calls", ["sleep_first"])
    run = await stopped(sdk, run)

    assert (await output_of(sdk, run)).startswith("Error (")


# ---- approvals ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["approve", ' {"approve": true, "by": "me"}'])
async def test_an_approved_call_is_made(sdk: openai.AsyncOpenAI, shared_url: str, word: str) -> None:
    made = (await seen_by(shared_url))["calls"]
    run = await run_of(sdk, 'call docs__add {"a": 2, "b": 3}', mcp_tool(shared_url, "always"))

    assert [name for _, name in pending(run)] == ["docs__add"]
    assert [call["output"] for call in await calls_of(sdk, run)] == [None]
    assert (await seen_by(shared_url))["calls"] == made
    run = await stopped(sdk, await submit(sdk, run, word))

    assert await output_of(sdk, run) == "5"
    assert await answer_of(sdk, run) == "The tool returned: 5"
    assert (await seen_by(shared_url))["calls"] == [*made, "add"]


@pytest.mark.parametrize("text", ["", "no", '{"approve": false}', '{"approve": "yes"}', "approved", "[" * 5000])
async def test_anything_else_is_a_refusal(sdk: openai.AsyncOpenAI, shared_url: str, text: str) -> None:
    made = (await seen_by(shared_url))["calls"]
    run = await run_of(sdk, 'call docs__add {"a": 2, "b": 3}', mcp_tool(shared_url, "always"))
    run = await stopped(sdk, await submit(sdk, run, text))

    assert await output_of(sdk, run) == f"The user did not approve this call. {text}".rstrip()
    assert (await seen_by(shared_url))["calls"] == made


async def test_approvals_and_functions_wait_together(sdk: openai.AsyncOpenAI, shared_url: str) -> None:
    function = {"type": "function", "function": {"name": "f"}}
    tool = mcp_tool(shared_url, {"never": {"tool_names": ["show"]}})
    text = 'call docs__add {"a": 1, "b": 1} call f {} call docs__show {} call docs__add {"a": 2, "b": 2} call docs__add {}'
    run = await run_of(sdk, text, tool, function)

    assert [name for _, name in pending(run)] == ["docs__add", "f", "docs__add", "docs__add"]
    run = await stopped(sdk, await submit(sdk, run, "approve", "approve", "not that", "approve"))

    assert run.status == "completed", run.last_error
    outputs = [call["output"] for call in await calls_of(sdk, run)]
    assert [outputs[0], outputs[1], outputs[3]] == ["2", "approve", "The user did not approve this call. not that"]
    assert outputs[2].startswith("Look:")
    assert outputs[4].startswith("Error (failed): ")


async def test_streams_show_calls_as_functions(sdk: openai.AsyncOpenAI, shared_url: str) -> None:
    assistant = await sdk.beta.assistants.create(model="scripted", tools=[mcp_tool(shared_url, "always")])
    thread = await sdk.beta.threads.create(messages=[{"role": "user", "content": 'call docs__add {"a": 2, "b": 3}'}])
    async with sdk.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        events = [event async for event in stream]
        [tool_step] = await stream.get_final_run_steps()
    assert events[-1].event == "thread.run.requires_action"
    deltas = [event.data.delta.step_details for event in events if event.event == "thread.run.step.delta"]
    assert deltas
    run = events[-1].data
    [(call_id, _)] = pending(run)
    async with sdk.beta.threads.runs.submit_tool_outputs_stream(
        run_id=run.id, thread_id=thread.id, tool_outputs=[{"tool_call_id": call_id, "output": "approve"}]
    ) as stream:
        events = [event async for event in stream]
    names = [event.event for event in events]
    completed: Any = next(event.data for event in events if event.event == "thread.run.step.completed")

    calls = tool_step.model_dump()["step_details"]["tool_calls"]
    assert [(call["type"], call["function"]["name"], call["function"]["arguments"]) for call in calls] == [
        ("function", "docs__add", '{"a": 2, "b": 3}')
    ]
    assert names.index("thread.run.in_progress") < names.index("thread.run.step.completed") < names.index("thread.message.created")
    assert names[-1] == "thread.run.completed"
    assert completed.step_details.tool_calls[0].function.output == "5"


async def test_an_approved_call_is_made_by_the_next_worker_when_the_first_is_lost(settings: Settings, own_url: str) -> None:
    slow = dataclasses.replace(settings, mcp_timeout_seconds=60.0)
    async with client_of(slow) as sdk:
        run = await run_of(sdk, "call docs__sleep_first {}", mcp_tool(own_url, "always"))
        await submit(sdk, run, "approve")
        await until_seen(own_url, "calls", ["sleep_first"])
    async with client_of(slow) as sdk:
        run = await stopped(sdk, await sdk.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id))

        assert await output_of(sdk, run) == "awake"
        assert await answer_of(sdk, run) == "The tool returned: awake"
        assert (await seen_by(own_url))["calls"] == ["sleep_first", "sleep_first"]


async def test_a_run_that_waits_for_an_approval_can_be_cancelled(sdk: openai.AsyncOpenAI, shared_url: str) -> None:
    run = await run_of(sdk, "call docs__add {}", mcp_tool(shared_url, "always"))
    run = await stopped(sdk, await sdk.beta.threads.runs.cancel(run.id, thread_id=run.thread_id))

    assert run.status == "cancelled"


# ---- connections -------------------------------------------------------------------------------------------------------------------


async def test_headers_are_sent_and_nothing_is_logged(sdk: openai.AsyncOpenAI, own_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    tool = mcp_tool(own_url + "?key=in-the-address", headers={"Authorization": SECRET, "X-Team": "a"})
    run = await run_of(sdk, 'call docs__add {"a": 2, "b": 3} call docs__fail {}', tool)
    assert run.status == "completed", run.last_error

    headers = (await seen_by(own_url))["headers"]
    assert (headers["authorization"], headers["x-team"]) == (SECRET, "a")
    own = [record for record in caplog.records if not record.name.startswith(("openai", "httpx", "httpcore"))]
    assert not [record for record in own if SECRET in record.getMessage() or "in-the-address" in record.getMessage()]
    assert not [record for record in caplog.records if record.name.startswith(("mcp", "httpx2", "httpcore2"))]


async def test_nothing_is_left_open(sdk: openai.AsyncOpenAI, own_url: str) -> None:
    """Neither by runs that end, nor by ones that wait, are cancelled, or fail."""
    assert (await run_of(sdk, "call docs__add {}", mcp_tool(own_url))).status == "completed"
    before = asyncio.all_tasks()
    assert (await run_of(sdk, "call docs__add {}", mcp_tool(own_url))).status == "completed"
    assert (await run_of(sdk, "call docs__add {}", mcp_tool(own_url, "always"))).status == "requires_action"
    other = {**mcp_tool("http://127.0.0.1:9/mcp"), "server_label": "down"}
    assert (await run_of(sdk, "call docs__add {}", mcp_tool(own_url), other)).status == "failed"
    run = await new_run(sdk, "call docs__sleep_first {}", mcp_tool(own_url))
    await until_seen(own_url, "calls", ["sleep_first"])
    run = await sdk.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
    assert (await stopped(sdk, run)).status == "cancelled"

    await until_seen(own_url, "connections", 1)
    async with asyncio.timeout(WAIT_SECONDS):
        while [task for task in asyncio.all_tasks() - before if "mcp" in repr(task.get_coro())]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9/mcp", "It cannot be reached."),
        ("http://nowhere.invalid/mcp", "This server does not connect to it: the host 'nowhere.invalid' has no public address."),
        ("{shared}/not-here", "It answers: Not Found"),
    ],
)
async def test_a_server_that_cannot_be_used_fails_the_run(sdk: openai.AsyncOpenAI, shared_url: str, url: str, reason: str) -> None:
    run = await run_of(sdk, "Hello", mcp_tool(url.format(shared=shared_url), headers={"Authorization": SECRET}))

    assert (run.status, run.last_error and run.last_error.code) == ("failed", "server_error")
    assert run.last_error is not None
    assert run.last_error.message == f"The MCP server 'docs' cannot be used: {reason}"


async def test_a_server_that_does_not_answer_is_given_up(settings: Settings) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(hold, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}/mcp"
    async with silent, client_of(dataclasses.replace(settings, mcp_connect_timeout_seconds=0.3)) as sdk:
        run = await run_of(sdk, "Hello", mcp_tool(url))

    assert run.last_error is not None
    assert run.last_error.message.startswith("The MCP server 'docs' cannot be used: It did")


async def test_private_addresses_are_refused_by_default(settings: Settings, own_url: str) -> None:
    async with client_of(dataclasses.replace(settings, private_addresses=False)) as sdk:
        run = await run_of(sdk, "Hello", mcp_tool(own_url))

    assert run.status == "failed"
    assert run.last_error is not None
    assert "This server does not connect to it" in run.last_error.message
    assert (await seen_by(own_url))["headers"] == {}


async def test_redirects_to_elsewhere_are_not_followed(sdk: openai.AsyncOpenAI, shared_url: str) -> None:
    run = await run_of(sdk, "Hello", mcp_tool(shared_url.replace("/mcp", "/elsewhere")))

    assert run.last_error is not None
    assert "not followed" in run.last_error.message


def test_a_server_without_mcp_tools_does_not_load_the_package() -> None:
    code = "import sys, mini_assistant.app; print(sorted({'mcp', 'httpx2', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout == "[]\n"


# ---- servers that keep to nothing --------------------------------------------------------------------------------------------------

HANDSHAKE = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "x", "version": "1"}}
EMPTY_TOOL = {"inputSchema": {"type": "object"}}


class BadServer:
    """An MCP server that shakes hands and then answers `tools/list` in one of several bad ways."""

    def __init__(self, way: str) -> None:
        self._way = way

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.method != "POST":
            return web.Response(status=405)
        asked = await request.json()
        if asked.get("method") == "tools/list":
            return await self._list(request, asked["id"])
        if asked.get("method") == "initialize":
            return web.json_response({"jsonrpc": "2.0", "id": asked["id"], "result": HANDSHAKE})
        return web.Response(status=404 if asked.get("method") == "server/discover" else 202)

    async def _list(self, request: web.Request, asked_id: Any) -> web.StreamResponse:
        match self._way:
            case "garbage":
                return web.Response(body=b"\xff\xfe<html>", content_type="application/json")
            case "page":
                return web.Response(text="<html>", content_type="text/html")
            case "packed":
                body, headers = zlib.compress(b" " * 20_000_000), {"Content-Encoding": "deflate"}
                return web.Response(body=body, content_type="application/json", headers=headers)
            case "deep":
                return web.Response(body=b'{"jsonrpc": "2.0", "id": 1, "result": ' + b"[" * 100_000, content_type="application/json")
            case "cut":
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            case "endless":
                response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
                await response.prepare(request)
                with contextlib.suppress(ConnectionError):
                    while True:
                        await response.write(b": ping\n\n" * 10_000)
                return response
            case "pages":
                return web.json_response({"jsonrpc": "2.0", "id": asked_id, "result": {"tools": [], "nextCursor": "again"}})
            case "many":
                tools = [{"name": f"tool{number}", **EMPTY_TOOL} for number in range(1000)]
                return web.json_response({"jsonrpc": "2.0", "id": asked_id, "result": {"tools": tools}})
            case _:
                tools = [{"name": name, **EMPTY_TOOL} for name in ("", "x" * 300)]
                large = {"name": "large", "inputSchema": {"type": "object", "title": "x" * 70_000}}
                return web.json_response({"jsonrpc": "2.0", "id": asked_id, "result": {"tools": [*tools, large]}})


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("garbage", "It breaks the protocol: Failed to parse JSON response"),
        ("page", "It answers: Unexpected content type: text/html"),
        ("packed", "It breaks the protocol: its answer is compressed"),
        ("deep", "It breaks the protocol: Failed to parse JSON response"),
        ("cut", "It "),
        ("endless", "It answers: SSE stream ended"),
        ("pages", ""),
        ("many", ""),
        ("unusable", ""),
    ],
)
async def test_servers_that_keep_to_nothing_do_no_harm(settings: Settings, way: str, reason: str) -> None:
    app = web.Application()
    app.router.add_route("*", "/mcp", BadServer(way).answer)
    server = TestServer(app)
    await server.start_server()
    before = asyncio.all_tasks()
    connection = McpConnection(McpTool("docs", str(server.make_url("/mcp"))), settings)
    try:
        listed = await connection.list_tools(None)
        assert (reason, len(listed)) == ("", {"many": settings.mcp_tools_max}.get(way, 0))
    except ToolFailure as failure:
        assert reason
        assert failure.message.startswith(reason)  # noqa: PT017 - the others have none
    finally:
        await connection.close()
    assert not [task for task in asyncio.all_tasks() - before if "mcp" in repr(task.get_coro())]
    await server.close()


# ---- definitions -------------------------------------------------------------------------------------------------------------------


async def test_definitions_are_kept_as_they_were_sent(http: aiohttp.ClientSession) -> None:
    tool = mcp_tool("https://example.com:8443/mcp?x=1", {"always": {"tool_names": ["a"]}}, allowed_tools=["a", "b"])
    least = {"type": "mcp", "server_label": "x", "server_url": "http://[::1]/"}
    async with http.post("/v1/assistants", json={"model": "m", "tools": [tool, least]}) as response:
        created = await response.json()
    async with http.get(f"/v1/assistants/{created['id']}") as response:
        read = await response.json()

    assert read == created
    assert created["tools"] == [
        {**tool, "headers": None},
        {**least, "headers": None, "allowed_tools": None, "require_approval": "always"},
    ]


def test_names_are_names_of_functions_and_stay_the_same() -> None:
    assert offered_name("docs", "add", ()) == "docs__add"
    assert offered_name("docs", "add", {"docs__add"}) == offered_name("docs", "add", {"docs__add", "other"}) != "docs__add"
    names = [offered_name("d" * 64, "add", ()), offered_name("docs", "with.dots", ()), offered_name("docs", "with dots", ())]
    assert len(set(names)) == 3
    assert all(len(name) <= 64 and name.replace("_", "").replace("-", "").isalnum() and name.isascii() for name in names)


def test_what_is_not_said_to_need_no_approval_needs_one() -> None:
    def tool(approval: Any) -> McpTool:
        return McpTool("docs", "https://example.com", require_approval=approval)

    both = McpApproval(always=McpToolNames(["a"]), never=McpToolNames(["a", "b"]))
    assert [needs_approval(tool(both), name) for name in "abc"] == [True, False, True]
    assert [needs_approval(tool(approval), "a") for approval in ("always", "never", McpApproval())] == [True, False, True]
    assert needs_approval(McpTool("docs", "https://example.com"), "a")
