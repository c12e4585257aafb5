"""What those who watch a run are told of it: the spans of the run, of each turn of its model and of each tool call, and how long they took.

Names and attributes: https://opentelemetry.io/docs/specs/semconv/gen-ai/. Called by the worker, the loop and `tool_calls.py`.
"""

import contextlib
import json
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from opentelemetry.trace import SpanKind

from mini_assistant.db.base import Query
from mini_assistant.db.tables import runs
from mini_assistant.metrics import RUNS_ENDED, TOOL_SECONDS
from mini_assistant.models.base import ChatDelta, ChatMessage, ChatRequest, Finished, RefusalDelta, TextDelta, TextPart, ToolCallDelta
from mini_assistant.runs.schema import RunStatus
from mini_assistant.runs.states import TERMINAL
from mini_assistant.runs.store import RunRecord
from mini_assistant.services import Services
from mini_assistant.tracing import OpenSpan, Traces, Value, open_span

_select_traceparent = Query(sa.select(runs.c.traceparent).where(runs.c.id == sa.bindparam("run_id")))


class ObservedRun:
    """A run while a worker executes it."""

    def __init__(self, span: OpenSpan | None) -> None:
        self._span = span
        self._prompt_tokens = 0
        self._completion_tokens = 0

    def add_usage(self, finished: Finished) -> None:
        """A turn has ended: what it has cost belongs to the run."""
        if self._span is None or finished.usage is None:
            return
        self._prompt_tokens += finished.usage.prompt_tokens
        self._completion_tokens += finished.usage.completion_tokens
        self._span.tell({"gen_ai.usage.input_tokens": self._prompt_tokens, "gen_ai.usage.output_tokens": self._completion_tokens})

    def stop(self, status: RunStatus) -> None:
        """The run has come to a status in which nobody executes it."""
        if status in TERMINAL:
            RUNS_ENDED.labels(status).inc()
        if self._span is not None:
            self._span.tell({"mini_assistant.run.status": status})


NOT_OBSERVED = ObservedRun(None)


@contextlib.asynccontextmanager
async def observed_run(services: Services, traces: Traces | None, record: RunRecord) -> AsyncGenerator[ObservedRun]:
    """The span of a run, for one attempt at it. Raises StoreUnavailable."""
    if traces is None:
        yield NOT_OBSERVED
        return
    rows = await services.db.read(_select_traceparent(run_id=record.run.id))
    run = record.run
    attributes: dict[str, Value | None] = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.id": run.assistant_id,
        "gen_ai.conversation.id": run.thread_id,
        "gen_ai.provider.name": services.models.provider_or_none(run.model),
        "gen_ai.request.model": run.model,
        "mini_assistant.project.id": record.project_id,
        "mini_assistant.run.id": run.id,
        "mini_assistant.run.attempt": record.attempt,
    }
    with traces.open_run(f"invoke_agent {run.assistant_id}", run.id, rows[0][0] if rows else None, attributes) as span:
        yield ObservedRun(span)


class ObservedTurn:
    """A turn of the model while it is being written. is_told: whether what it writes is to be given to `take`."""

    def __init__(self, span: OpenSpan) -> None:
        self._span = span
        self.is_told = span.tells_content
        self._text: list[str] = []
        self._calls: dict[int, tuple[str, list[str]]] = {}

    def take(self, deltas: Sequence[ChatDelta]) -> None:
        """Remember what the model writes."""
        for delta in deltas:
            if isinstance(delta, TextDelta | RefusalDelta):
                self._text.append(delta.text)
            elif isinstance(delta, ToolCallDelta):
                self._calls.setdefault(delta.index, (delta.name or "", []))[1].append(delta.arguments)

    def end(self, finished: Finished) -> None:
        """The model has ended its turn."""
        usage = finished.usage
        self._span.tell({"gen_ai.response.finish_reasons": [finished.reason]})
        if usage is not None:
            self._span.tell(
                {
                    "gen_ai.usage.input_tokens": usage.prompt_tokens,
                    "gen_ai.usage.output_tokens": usage.completion_tokens,
                    "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens or None,
                    "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens or None,
                }
            )
        if self.is_told:
            parts: list[dict[str, Any]] = [{"type": "text", "content": "".join(self._text)}] if self._text else []
            parts += [{"type": "tool_call", "name": name, "arguments": "".join(pieces)} for name, pieces in self._calls.values()]
            told = [{"role": "assistant", "parts": parts, "finish_reason": finished.reason}]
            self._span.tell({"gen_ai.output.messages": json.dumps(told)})


@contextlib.contextmanager
def observed_turn(services: Services, record: RunRecord, request: ChatRequest) -> Generator[ObservedTurn]:
    """The span of a turn of the model."""
    attributes: dict[str, Value | None] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": services.models.provider_or_none(request.model),
        "gen_ai.conversation.id": record.run.thread_id,
        "gen_ai.request.model": request.model,
        "gen_ai.request.max_tokens": request.completion_tokens_max,
        "gen_ai.request.temperature": request.temperature,
        "gen_ai.request.top_p": request.top_p,
        "gen_ai.output.type": None if request.response_format is None else "json",
    }
    with open_span(f"chat {request.model}", attributes, kind=SpanKind.CLIENT) as span:
        if span.tells_content:
            span.tell({"gen_ai.input.messages": json.dumps([_told(message) for message in request.messages])})
        yield ObservedTurn(span)


def _told(message: ChatMessage) -> dict[str, Any]:
    """A message without its images."""
    texts = [message.content] if isinstance(message.content, str) else [part.text for part in message.content if isinstance(part, TextPart)]
    if message.tool_call_id is not None:
        parts: list[dict[str, Any]] = [{"type": "tool_call_response", "id": message.tool_call_id, "response": "".join(texts)}]
    else:
        parts = [{"type": "text", "content": text} for text in texts if text]
    parts += [{"type": "tool_call", "id": call.id, "name": call.name, "arguments": call.arguments} for call in message.tool_calls]
    return {"role": message.role, "parts": parts}


@dataclass(slots=True)
class ObservedCall:
    """A call of a tool. outcome: `ok`, or the kind of its failure. output: what the model reads."""

    outcome: str = "ok"
    output: str = ""

    def end(self, output: str | None, failure: str | None = None) -> None:
        """The call has come to its end. failure: its kind, None when there is none."""
        self.outcome, self.output = failure or "ok", output or ""


@contextlib.contextmanager
def observed_call(tool: str, name: str, call_id: str, arguments: str) -> Generator[ObservedCall]:
    """The span of a tool call. tool: `file_search`, `code_interpreter` or `mcp`. name: as the model calls it."""
    attributes = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": name,
        "gen_ai.tool.call.id": call_id,
        "gen_ai.tool.type": "datastore" if tool == "file_search" else "extension",
    }
    call, began = ObservedCall(), time.perf_counter()
    with open_span(f"execute_tool {name}", attributes) as span:
        try:
            yield call
        except BaseException:
            call.outcome = "cancelled"
            raise
        finally:
            TOOL_SECONDS.labels(tool, call.outcome).observe(time.perf_counter() - began)
            if call.outcome != "ok":
                span.fail(call.outcome, call.output)
            if span.tells_content:
                span.tell({"gen_ai.tool.call.arguments": arguments, "gen_ai.tool.call.result": call.output})
