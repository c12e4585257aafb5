"""Where a run's tool calls happen.

The model asks for calls (`RequestedCall`); hosted tools are run here, concurrently and each within a time limit, while calls of the
client's functions wait for `submit_tool_outputs`. A call that goes wrong becomes output that the model reads: the one place where a
ToolFailure is translated.
"""

import asyncio
import functools
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mini_assistant.errors import ToolFailure, ToolFailureKind
from mini_assistant.ids import new_id
from mini_assistant.runs.changes import TurnCost
from mini_assistant.runs.code_input import CodeInput
from mini_assistant.runs.observed import observed_call
from mini_assistant.runs.schema import (
    CalledFunction,
    CodeCall,
    CodeInterpreterToolCall,
    CodeOutput,
    FunctionToolCall,
    RequiredToolCall,
    Run,
    ToolCall,
    ToolCallsDetails,
)
from mini_assistant.runs.store import RunRecord, StepRecord
from mini_assistant.services import Services
from mini_assistant.tools import function
from mini_assistant.tools.base import HostedTool, ToldOutputs, ToolUse
from mini_assistant.tools.mcp import McpServers

log = logging.getLogger("mini_assistant.runs")

_TOLD_WRONG = "Error (bad_arguments)"


@dataclass(slots=True)
class RequestedCall:
    """A call as the model writes it, piece by piece. `arguments` is JSON text when the model has done well.

    code: what a call of code_interpreter runs, None for any other call.
    """

    id: str
    name: str
    code: CodeInput | None = None
    pieces: list[str] = field(default_factory=list[str])

    @property
    def arguments(self) -> str:
        return "".join(self.pieces)


@dataclass(slots=True)
class FinishedCall:
    """A call after it was run. output: what the model reads; None while the client has to give it.

    awaits_approval: the client has to approve the call, and this server then makes it. failure: None when there was none.
    """

    call: ToolCall
    output: str | None
    awaits_approval: bool = False
    failure: ToolFailureKind | None = None


def hosted_tool_or_none(services: Services, run: Run, name: str) -> HostedTool | None:
    """The server's own tool that a model calls by this name; None when the run has none, so that it can only be a function."""
    tool = services.tools.get(name)
    return tool if tool is not None and name in tool_types(run) else None


def new_requested_call(services: Services, run: Run, name: str) -> RequestedCall:
    """A call that the model begins to write."""
    runs_code = name == "code_interpreter" and hosted_tool_or_none(services, run, name) is not None
    return RequestedCall(new_id("call"), name, CodeInput() if runs_code else None)


def tool_types(run: Run) -> list[str]:
    """The types of a run's tools, each once."""
    return list(dict.fromkeys(str(type(tool).__struct_config__.tag) for tool in run.tools))


CallOutputTeller = Callable[[int, int, CodeOutput], None]
"""As the `tell` of `ToldOutputs`, with the place of the call in its turn before the place of the output."""


async def run_tool_calls(
    services: Services,
    record: RunRecord,
    requested: Sequence[RequestedCall],
    servers: McpServers,
    first_number: int,
    tell: CallOutputTeller,
    *,
    told_wrong: Collection[str],
    cost: TurnCost,
) -> list[FinishedCall]:
    """Run the calls of one turn and give back all of them in their order; those that wait for the client without an output.

    first_number: the place of the first call's output in the context of the run. tell: told what code puts out while it runs.
    told_wrong: see `functions_told_wrong`. cost: grows with the calls, also with those that are broken off.
    Raises ModelError, before anything runs, when a call of a `strict` function is wrong again.
    """

    def is_hosted(call: RequestedCall) -> bool:
        return servers.offers(call.name) or hosted_tool_or_none(services, record.run, call.name) is not None

    functions = {place: _function_call(record, call, told_wrong) for place, call in enumerate(requested) if not is_hosted(call)}
    slots = asyncio.Semaphore(services.settings.tool_calls_parallel_max)

    async def finished(place: int, call: RequestedCall) -> FinishedCall:
        if place in functions:
            return functions[place]
        async with slots:
            if servers.offers(call.name):
                return await _run_mcp_call(servers, call)
            told = ToldOutputs(functools.partial(tell, place))
            with observed_call(call.name, call.name, call.id, call.arguments) as observed:
                try:
                    done = await _run_call(services, record, call, first_number + place, told)
                finally:
                    cost.sandbox_seconds += told.sandbox_seconds
                observed.end(done.output, done.failure)
                return done

    return list(await asyncio.gather(*(finished(place, call) for place, call in enumerate(requested))))


def functions_told_wrong(steps: Sequence[StepRecord]) -> set[str]:
    """The functions of which a run's finished steps have told the model that its arguments were wrong."""
    details = [record.step.step_details for record in steps]
    calls = [call for detail in details if isinstance(detail, ToolCallsDetails) for call in detail.tool_calls]
    called = [call.function for call in calls if isinstance(call, FunctionToolCall)]
    return {function_call.name for function_call in called if (function_call.output or "").startswith(_TOLD_WRONG)}


async def _run_call(services: Services, record: RunRecord, requested: RequestedCall, number: int, told: ToldOutputs) -> FinishedCall:
    tool = hosted_tool_or_none(services, record.run, requested.name)
    assert tool is not None
    started = tool.started_call(requested.id, record.run, {})
    try:
        arguments = {"code": requested.code.code} if requested.code is not None else _parsed(requested.arguments)
        started = tool.started_call(requested.id, record.run, arguments)
        use = ToolUse(services, record.project_id, record.run)
        async with asyncio.timeout(services.settings.tool_timeout_seconds):
            result = await tool.call(use, requested.id, number, arguments, told)
        return FinishedCall(result.call, result.output)
    except ToolFailure as failure:
        return _failed(started, told, failure)
    except TimeoutError:
        limit_seconds = services.settings.tool_timeout_seconds
        return _failed(started, told, ToolFailure("timeout", f"The tool took longer than {limit_seconds:g} seconds."))
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) is None or task.cancelling():
            raise
        # Not this call is cancelled, but something that it has waited for.
        return _failed(started, told, ToolFailure("cancelled", "The tool was interrupted."))
    except Exception:
        log.exception("run %s: the tool %s broke", record.run.id, requested.name)
        return _failed(started, told, ToolFailure("failed", "The tool broke. Do not call it again with the same input."))


def _failed(started: ToolCall, told: ToldOutputs, failure: ToolFailure) -> FinishedCall:
    return FinishedCall(_as_told(started, told), _failure_text(failure), failure=failure.kind)


def _as_told(call: ToolCall, told: ToldOutputs) -> ToolCall:
    """A call that did not come to its end, with what readers have been told of it."""
    if not isinstance(call, CodeInterpreterToolCall):
        return call
    return CodeInterpreterToolCall(call.id, CodeCall(call.code_interpreter.input, told.outputs))


async def _run_mcp_call(servers: McpServers, requested: RequestedCall) -> FinishedCall:
    try:
        _parsed(requested.arguments)
    except ToolFailure as failure:
        output = _failure_text(failure)
    else:
        if servers.needs_approval(requested.name):
            return FinishedCall(function.shown_call(requested.id, requested.name, requested.arguments, None), None, awaits_approval=True)
        output = await _mcp_output(servers, requested.id, requested.name, requested.arguments)
    return FinishedCall(function.shown_call(requested.id, requested.name, requested.arguments, output), output)


async def make_approved_calls(services: Services, servers: McpServers, calls: Sequence[FunctionToolCall]) -> dict[str, str]:
    """Make the calls of MCP tools that the client has approved; their outputs by the ids of the calls."""
    slots = asyncio.Semaphore(services.settings.tool_calls_parallel_max)

    async def output(call: FunctionToolCall) -> str:
        async with slots:
            return await _mcp_output(servers, call.id, call.function.name, call.function.arguments)

    outputs = await asyncio.gather(*map(output, calls))
    return {call.id: text for call, text in zip(calls, outputs, strict=True)}


async def _mcp_output(servers: McpServers, call_id: str, name: str, arguments: str) -> str:
    """Call a tool of an MCP server; what the model reads of it, also when it fails."""
    with observed_call("mcp", name, call_id, arguments) as observed:
        try:
            output = await servers.call(name, _parsed(arguments))
        except ToolFailure as failure:
            output = _failure_text(failure)
            observed.end(output, failure.kind)
        else:
            observed.end(output)
        return output


def _function_call(record: RunRecord, requested: RequestedCall, told_wrong: Collection[str]) -> FinishedCall:
    try:
        function.check_call(record.run, requested.name, requested.arguments, is_told_before=requested.name in told_wrong)
    except ToolFailure as failure:
        text = _failure_text(failure)
        return FinishedCall(function.shown_call(requested.id, requested.name, requested.arguments, text), text)
    return FinishedCall(function.shown_call(requested.id, requested.name, requested.arguments, None), None)


def _parsed(arguments: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(arguments or "{}", type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise ToolFailure("bad_arguments", "The arguments are not a JSON object.") from exc


def _failure_text(failure: ToolFailure) -> str:
    return f"Error ({failure.kind}): {failure.message}"


def pending_calls(calls: Sequence[FinishedCall]) -> list[RequiredToolCall]:
    """The calls that the client has to answer."""
    return [
        RequiredToolCall(id=finished.call.id, function=CalledFunction(finished.call.function.name, finished.call.function.arguments))
        for finished in calls
        if isinstance(finished.call, FunctionToolCall) and finished.output is None
    ]
