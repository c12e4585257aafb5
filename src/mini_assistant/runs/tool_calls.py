"""Where a run's tool calls happen.

The model asks for calls (`RequestedCall`); hosted tools are run here, concurrently and each within a time limit, while calls of the
client's functions wait for `submit_tool_outputs`. A call that goes wrong becomes output that the model reads: the one place where a
ToolFailure is translated.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mini_assistant.errors import ToolFailure
from mini_assistant.runs.schema import CalledFunction, FunctionToolCall, RequiredToolCall, Run, ToolCall
from mini_assistant.runs.store import RunRecord
from mini_assistant.services import Services
from mini_assistant.tools import function
from mini_assistant.tools.base import HostedTool, ToolUse

log = logging.getLogger("mini_assistant.runs")


@dataclass(slots=True)
class RequestedCall:
    """A call as the model writes it, piece by piece. `arguments` is JSON text when the model has done well."""

    id: str
    name: str
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


def tool_types(run: Run) -> list[str]:
    """The types of a run's tools, each once."""
    return list(dict.fromkeys(str(type(tool).__struct_config__.tag) for tool in run.tools))


async def run_tool_calls(
    services: Services, record: RunRecord, requested: Sequence[RequestedCall], first_number: int
) -> list[FinishedCall]:
    """Run the calls of one turn and give back all of them in their order; those of functions without an output.

    first_number: the place of the first call's output in the context of the run.
    """
    return list(await asyncio.gather(*(_run_call(services, record, call, number) for number, call in enumerate(requested, first_number))))


async def _run_call(services: Services, record: RunRecord, requested: RequestedCall, number: int) -> FinishedCall:
    tool = hosted_tool_or_none(services, record.run, requested.name)
    if tool is None:
        return _function_call(record, requested)
    started = tool.started_call(requested.id, record.run, {})
    try:
        arguments = _parsed(requested)
        started = tool.started_call(requested.id, record.run, arguments)
        async with asyncio.timeout(services.settings.tool_timeout_seconds):
            result = await tool.call(ToolUse(services, record.project_id, record.run), requested.id, number, arguments)
        return FinishedCall(result.call, result.output)
    except ToolFailure as failure:
        return FinishedCall(started, _failure_text(failure))
    except TimeoutError:
        limit_seconds = services.settings.tool_timeout_seconds
        return FinishedCall(started, _failure_text(ToolFailure("timeout", f"The tool took longer than {limit_seconds:g} seconds.")))
    except Exception:
        log.exception("run %s: the tool %s broke", record.run.id, requested.name)
        return FinishedCall(started, _failure_text(ToolFailure("failed", "The tool broke. Do not call it again with the same input.")))


def _function_call(record: RunRecord, requested: RequestedCall) -> FinishedCall:
    try:
        function.check_call(record.run, requested.name, requested.arguments)
    except ToolFailure as failure:
        text = _failure_text(failure)
        return FinishedCall(function.shown_call(requested.id, requested.name, requested.arguments, text), text)
    return FinishedCall(function.shown_call(requested.id, requested.name, requested.arguments, None), None)


def _parsed(requested: RequestedCall) -> dict[str, Any]:
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
