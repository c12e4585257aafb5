"""Where a run's tool calls happen.

The model asks for calls (`RequestedCall`); hosted tools are run here, concurrently and each within a time limit, while calls of the
client's functions wait for `submit_tool_outputs`. A call that goes wrong becomes output that the model reads: the one place where a
ToolFailure is translated.
"""

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mini_assistant.errors import ToolFailure
from mini_assistant.ids import new_id
from mini_assistant.runs.code_input import CodeInput
from mini_assistant.runs.schema import (
    CalledFunction,
    CodeCall,
    CodeInterpreterToolCall,
    CodeOutput,
    FunctionToolCall,
    RequiredToolCall,
    Run,
    ToolCall,
)
from mini_assistant.runs.store import RunRecord
from mini_assistant.services import Services
from mini_assistant.tools import function
from mini_assistant.tools.base import HostedTool, ToldOutputs, ToolUse

log = logging.getLogger("mini_assistant.runs")


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
    """A call after it was run. output: what the model reads; None while the client has to give it."""

    call: ToolCall
    output: str | None


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
    services: Services, record: RunRecord, requested: Sequence[RequestedCall], first_number: int, tell: CallOutputTeller
) -> list[FinishedCall]:
    """Run the calls of one turn and give back all of them in their order; those of functions without an output.

    first_number: the place of the first call's output in the context of the run. tell: told what code puts out while it runs.
    """
    calls = (
        _run_call(services, record, call, first_number + place, ToldOutputs(functools.partial(tell, place)))
        for place, call in enumerate(requested)
    )
    return list(await asyncio.gather(*calls))


async def _run_call(services: Services, record: RunRecord, requested: RequestedCall, number: int, told: ToldOutputs) -> FinishedCall:
    tool = hosted_tool_or_none(services, record.run, requested.name)
    if tool is None:
        return _function_call(record, requested)
    started = tool.started_call(requested.id, record.run, {})
    try:
        arguments = _parsed(requested)
        started = tool.started_call(requested.id, record.run, arguments)
        use = ToolUse(services, record.project_id, record.run)
        async with asyncio.timeout(services.settings.tool_timeout_seconds):
            result = await tool.call(use, requested.id, number, arguments, told)
        return FinishedCall(result.call, result.output)
    except ToolFailure as failure:
        return FinishedCall(_as_told(started, told), _failure_text(failure))
    except TimeoutError:
        limit_seconds = services.settings.tool_timeout_seconds
        failure = ToolFailure("timeout", f"The tool took longer than {limit_seconds:g} seconds.")
        return FinishedCall(_as_told(started, told), _failure_text(failure))
    except Exception:
        log.exception("run %s: the tool %s broke", record.run.id, requested.name)
        failure = ToolFailure("failed", "The tool broke. Do not call it again with the same input.")
        return FinishedCall(_as_told(started, told), _failure_text(failure))


def _as_told(call: ToolCall, told: ToldOutputs) -> ToolCall:
    """A call that did not come to its end, with what readers have been told of it."""
    if not isinstance(call, CodeInterpreterToolCall):
        return call
    return CodeInterpreterToolCall(call.id, CodeCall(call.code_interpreter.input, told.outputs))


def _function_call(record: RunRecord, requested: RequestedCall) -> FinishedCall:
    try:
        function.check_call(record.run, requested.name, requested.arguments)
    except ToolFailure as failure:
        text = _failure_text(failure)
        return FinishedCall(function.shown_call(requested.id, requested.name, requested.arguments, text), text)
    return FinishedCall(function.shown_call(requested.id, requested.name, requested.arguments, None), None)


def _parsed(requested: RequestedCall) -> dict[str, Any]:
    if requested.code is not None:
        return {"code": requested.code.code}
    try:
        return msgspec.json.decode(requested.arguments or "{}", type=dict[str, Any])
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
