"""Several tool calls in one turn: hosted ones run at the same time, in bounds, and none of them can spoil another.

The hosted tool is one whose calls do what a test says. Nothing is timed: calls wait for each other, so that a test whose calls do not
run as they should does not end.
"""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from mini_assistant.app import open_services
from mini_assistant.assistants import routes as assistant_routes
from mini_assistant.assistants.schema import CreateAssistant, FileSearchTool, FunctionDefinition, FunctionTool, RankingOptions
from mini_assistant.errors import ToolFailure
from mini_assistant.http.routing import Request
from mini_assistant.models.base import ToolDefinition
from mini_assistant.models.script import Finish, Frames, Rule, Script, ScriptedCall, Text, ToolCalls
from mini_assistant.models.script import Step as ScriptStep
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.runs import commands, store
from mini_assistant.runs.schema import CreateRun, FileSearchCall, FileSearchToolCall, Run, SubmitToolOutputs, ToolCallsDetails, ToolOutput
from mini_assistant.runs.worker import Worker
from mini_assistant.services import Services
from mini_assistant.settings import Settings
from mini_assistant.threads import routes as thread_routes
from mini_assistant.threads.schema import CreateMessage, CreateThread
from mini_assistant.tools.base import ToldOutputs, ToolResult, ToolUse
from tests.conformance.server_settings import server_with

PROJECT = "default"
STOPPED = {"completed", "incomplete", "failed", "cancelled", "expired", "requires_action"}


class ScriptedTool:
    """A tool whose calls do what `act` says with their query; the output is `found QUERY` unless it raises."""

    def __init__(self) -> None:
        self.act: Callable[[str], Awaitable[None]] = self.nothing
        self.running: list[str] = []
        self.most_running = 0
        self.begun: list[str] = []
        self.cancelled: list[str] = []

    async def nothing(self, query: str) -> None:
        """Return at once."""

    async def prepare(self, use: ToolUse, *, is_first_turn: bool) -> ToolDefinition | None:
        return ToolDefinition("file_search", {"type": "object", "properties": {"query": {"type": "string"}}})

    def started_call(self, call_id: str, run: Run, arguments: dict[str, Any]) -> FileSearchToolCall:
        return FileSearchToolCall(call_id, FileSearchCall(RankingOptions(0.0), []))

    async def call(self, use: ToolUse, call_id: str, number: int, arguments: dict[str, Any], told: ToldOutputs) -> ToolResult:
        query = str(arguments["query"])
        self.begun.append(query)
        self.running.append(query)
        self.most_running = max(self.most_running, len(self.running))
        try:
            await self.act(query)
        except asyncio.CancelledError:
            self.cancelled.append(query)
            raise
        finally:
            self.running.remove(query)
        return ToolResult(self.started_call(call_id, use.run, arguments), f"found {query}")


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    return dataclasses.replace(settings, **getattr(request, "param", {}))


@pytest.fixture
def tool() -> ScriptedTool:
    return ScriptedTool()


@pytest.fixture
async def services(settings: Settings, tool: ScriptedTool) -> AsyncIterator[Services]:
    """A server without its HTTP side, whose file_search is the scripted tool, with a worker."""
    async with open_services(settings) as opened:
        services = dataclasses.replace(opened, tools={"file_search": tool})
        worker = asyncio.create_task(Worker(services).run())
        yield services
        worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await worker


def request_of(services: Services, body: Any = None, **path: str) -> Request[Any, Any]:
    return Request(services, PROJECT, path, body, None)


async def start(services: Services, **fields: Any) -> Run:
    """A run with the tool and with a function `clock`."""
    tools = [FileSearchTool(), FunctionTool(FunctionDefinition("clock"))]
    created = await assistant_routes.create_assistant(request_of(services, CreateAssistant(model="scripted", tools=tools)))
    assistant_id = msgspec.json.decode(created)["id"]
    body = CreateThread(messages=[CreateMessage(role="user", content="Hello")])
    thread_id = msgspec.json.decode(await thread_routes.create_thread(request_of(services, body)))["id"]
    run = CreateRun(assistant_id=assistant_id, **fields)
    return (await commands.create_run(request_of(services, run, thread_id=thread_id))).run


async def stopped(services: Services, run: Run) -> Run:
    while True:
        record = await store.get_record_for_worker(services, run.id)
        if record.run.status in STOPPED:
            return record.run
        await asyncio.sleep(0.005)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - polled
        await asyncio.sleep(0.005)


def searches(*queries: str) -> ToolCalls:
    return ToolCalls([ScriptedCall("file_search", json.dumps({"query": query})) for query in queries])


def answer(endpoint: ScriptedEndpoint, *steps: ScriptStep) -> None:
    """The first request is answered with these steps, the others with a text."""
    endpoint.script = Script([Rule(list(steps), times=1), Rule([Text("Done.")])])


def results(endpoint: ScriptedEndpoint) -> list[str]:
    """The outputs that the model was given last."""
    return [message["content"] for message in endpoint.requests[-1]["messages"] if message["role"] == "tool"]


async def test_independent_calls_run_at_the_same_time_and_come_back_in_order(
    services: Services, endpoint: ScriptedEndpoint, tool: ScriptedTool
) -> None:
    """Each waits until all have begun, and then for the one after it."""
    all_begun, ended = asyncio.Barrier(4), {name: asyncio.Event() for name in "abcd"}

    async def act(query: str) -> None:
        await all_begun.wait()
        if query != "d":
            await ended[chr(ord(query) + 1)].wait()
        ended[query].set()

    tool.act = act
    answer(endpoint, searches("a", "b", "c", "d"))
    run = await stopped(services, await start(services))
    assert run.status == "completed"
    assert results(endpoint) == ["found a", "found b", "found c", "found d"]
    [asked] = [message for message in endpoint.requests[-1]["messages"] if message.get("tool_calls")]
    given = [message["tool_call_id"] for message in endpoint.requests[-1]["messages"] if message["role"] == "tool"]
    assert given == [call["id"] for call in asked["tool_calls"]]
    details = (await store.get_steps(services, run.id))[0].step.step_details
    assert isinstance(details, ToolCallsDetails)
    assert [call.id for call in details.tool_calls] == given


@server_with(tool_timeout_seconds=0.2)
async def test_calls_that_go_wrong_do_not_spoil_the_others(services: Services, endpoint: ScriptedEndpoint, tool: ScriptedTool) -> None:
    """The good ones end last."""
    others_failed = asyncio.Event()

    async def act(query: str) -> None:
        if query == "fails":
            raise ToolFailure("not_found", "There is nothing.")
        if query == "crashes":
            raise RuntimeError("a bug")
        if query == "loses":
            raise asyncio.CancelledError  # as when what it waits for is cancelled by somebody else
        if query == "hangs":
            try:
                await asyncio.Event().wait()
            finally:
                others_failed.set()
        if query == "good":
            await asyncio.sleep(0)

    tool.act = act
    wrong = ScriptedCall("file_search", "[")
    answer(endpoint, ToolCalls([*searches("fails", "crashes", "loses", "hangs", "good").calls, wrong, *searches("good").calls]))
    run = await stopped(services, await start(services))
    assert run.status == "completed"
    assert others_failed.is_set()
    assert [result[:24] for result in results(endpoint)] == [
        "Error (not_found): There",
        "Error (failed): The tool",
        "Error (cancelled): The t",
        "Error (timeout): The too",
        "found good",
        "Error (bad_arguments): T",
        "found good",
    ]
    assert "a bug" not in str(results(endpoint))


async def test_a_turn_may_have_calls_for_the_server_and_for_the_client(
    services: Services, endpoint: ScriptedEndpoint, tool: ScriptedTool
) -> None:
    answer(endpoint, ToolCalls([*searches("a").calls, ScriptedCall("clock"), *searches("b").calls]))
    run = await stopped(services, await start(services))
    assert run.status == "requires_action"
    assert run.required_action is not None
    [pending] = run.required_action.submit_tool_outputs.tool_calls
    body = SubmitToolOutputs([ToolOutput(pending.id, "noon")])
    await commands.submit_tool_outputs(request_of(services, body, thread_id=run.thread_id, run_id=run.id))
    assert (await stopped(services, run)).status == "completed"
    assert results(endpoint) == ["found a", "noon", "found b"]
    assert tool.begun == ["a", "b"], "none ran twice"


INTERLEAVED = [
    (0, {"name": "file_search", "arguments": ""}),
    (1, {"name": "file_search", "arguments": '{"query"'}),
    (0, {"arguments": '{"query":'}),
    (1, {"arguments": ':"second"}'}),
    (0, {"arguments": '"first"}'}),
    (2, {"name": "clock", "arguments": "{}"}),
]


def interleaved() -> list[ScriptStep]:
    """Pieces of three calls in turns, as some providers send them."""
    deltas = [
        {"index": index, "function": function, **({"id": f"call_{index}", "type": "function"} if "name" in function else {})}
        for index, function in INTERLEAVED
    ]
    frames = [{"choices": [{"index": 0, "delta": {"tool_calls": [delta]}}]} for delta in deltas]
    return [Frames(frames), Finish("tool_calls")]


async def test_pieces_of_several_calls_may_come_in_turns(services: Services, endpoint: ScriptedEndpoint, tool: ScriptedTool) -> None:
    answer(endpoint, *interleaved())
    run = await stopped(services, await start(services))
    assert run.status == "requires_action"
    assert sorted(tool.begun) == ["first", "second"]


@pytest.mark.parametrize("is_interleaved", [False, True], ids=["one after another", "in turns"])
async def test_without_parallel_calls_only_the_first_one_is_made(
    services: Services, endpoint: ScriptedEndpoint, tool: ScriptedTool, is_interleaved: bool
) -> None:
    steps: list[ScriptStep] = [ToolCalls([*searches("first", "second").calls, ScriptedCall("clock")])]
    answer(endpoint, *(interleaved() if is_interleaved else steps))
    run = await stopped(services, await start(services, parallel_tool_calls=False))
    assert run.status == "completed"
    assert tool.begun == ["first"]
    assert endpoint.requests[0]["parallel_tool_calls"] is False
    assert results(endpoint) == ["found first"]
    details = (await store.get_steps(services, run.id))[0].step.step_details
    assert isinstance(details, ToolCallsDetails)
    assert len(details.tool_calls) == 1


async def test_cancelling_a_run_cancels_all_of_its_calls(services: Services, endpoint: ScriptedEndpoint, tool: ScriptedTool) -> None:
    never = asyncio.Event()

    async def act(_query: str) -> None:
        await never.wait()

    tool.act = act
    answer(endpoint, searches(*"abcdefghij"))
    run = await start(services)
    await until(lambda: len(tool.running) == 8)
    await commands.cancel_run(request_of(services, thread_id=run.thread_id, run_id=run.id))
    assert (await stopped(services, run)).status == "cancelled"
    assert tool.running == []
    assert sorted(tool.cancelled) == list("abcdefgh"), "those that had not begun never do"
    assert sorted(tool.begun) == list("abcdefgh")


@server_with(tool_calls_parallel_max=2)
async def test_no_more_calls_run_at_a_time_than_are_allowed(services: Services, endpoint: ScriptedEndpoint, tool: ScriptedTool) -> None:
    """They go two by two: each pair waits for its second one."""
    pair = asyncio.Barrier(2)

    async def act(_query: str) -> None:
        await pair.wait()

    tool.act = act
    answer(endpoint, searches(*"abcdef"))
    assert (await stopped(services, await start(services))).status == "completed"
    assert tool.most_running == 2
    assert results(endpoint) == [f"found {query}" for query in "abcdef"]


@server_with(tool_calls_per_turn_max=3)
async def test_too_many_calls_in_one_turn_fail_the_run(services: Services, endpoint: ScriptedEndpoint, tool: ScriptedTool) -> None:
    answer(endpoint, searches("a", "b", "c"))
    assert (await stopped(services, await start(services))).status == "completed"
    answer(endpoint, searches("d", "e", "f", "g"))
    run = await stopped(services, await start(services))
    assert run.status == "failed"
    assert run.last_error is not None
    assert (run.last_error.code, run.last_error.message) == ("server_error", "The model wanted more than 3 tool calls in one turn.")
    assert sorted(tool.begun) == ["a", "b", "c"], "none of them was made"


@server_with(tool_calls_per_turn_max=1)
async def test_calls_that_are_left_out_are_not_too_many(services: Services, endpoint: ScriptedEndpoint) -> None:
    answer(endpoint, searches("a", "b", "c"))
    assert (await stopped(services, await start(services, parallel_tool_calls=False))).status == "completed"


async def test_a_strict_function_that_is_called_wrongly_again_stops_the_turn_before_anything_runs(
    services: Services, endpoint: ScriptedEndpoint, tool: ScriptedTool
) -> None:
    strict = FunctionDefinition("seats", parameters={"type": "object", "required": ["row"]}, strict=True)
    wrong = ToolCalls([*searches("a").calls, ScriptedCall("seats")])
    endpoint.script = Script([Rule([wrong], times=2), Rule([Text("Never asked.")])])
    run = await stopped(services, await start(services, tools=[FileSearchTool(), FunctionTool(strict)]))
    assert run.status == "failed"
    assert run.last_error is not None
    assert "'seats'" in run.last_error.message
    assert tool.begun == ["a"], "once, in the turn before"
