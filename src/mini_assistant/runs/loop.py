"""The loop of a run: prompt -> model -> message or tool calls -> prompt, until the run stops.

Everything that the loop knows is in rows after each turn, so another worker can go on from there. `execute_run` is called by the
worker with a run that it has claimed; what interrupts a run (cancelling, expiry, shutdown) is the worker's business.
"""

import asyncio
from contextlib import aclosing
from typing import Any, Literal, NamedTuple

import msgspec

from mini_assistant.errors import LimitReached, ModelError, ToolFailure
from mini_assistant.models.base import Capabilities, ChatMessage, ChatRequest, Finished, NamedTool, TokenUsage, ToolDefinition
from mini_assistant.projects.limits import check_tokens_of_day
from mini_assistant.runs import changes as change
from mini_assistant.runs import prompt
from mini_assistant.runs.approvals import AWAITED, approved_calls, with_made_calls
from mini_assistant.runs.citations import known_sources, next_number
from mini_assistant.runs.images import PromptImages
from mini_assistant.runs.made import Made, known_made
from mini_assistant.runs.observed import NOT_OBSERVED, ObservedRun, observed_turn
from mini_assistant.runs.schema import (
    CompletionTokensDetails,
    FunctionToolCall,
    PendingToolCalls,
    PromptTokenDetails,
    RequiredAction,
    RunIncompleteDetails,
    RunStatus,
    StepError,
    ToolCallsDetails,
    Usage,
)
from mini_assistant.runs.store import Changes, RunRecord, StepRecord, get_steps, save_changes, transition_run
from mini_assistant.runs.tool_calls import (
    FinishedCall,
    functions_told_wrong,
    make_approved_calls,
    pending_calls,
    run_tool_calls,
    tool_types,
)
from mini_assistant.runs.turn import OpenToolStep, Turn
from mini_assistant.services import Services
from mini_assistant.threads.schema import Content, IncompleteReason, Message
from mini_assistant.threads.store import get_history
from mini_assistant.tools.base import ToolUse
from mini_assistant.tools.mcp import McpServers

# Counting tokens of a prompt longer than this would hold up other runs; it is done in a thread.
_COUNT_IN_THREAD_CHARACTERS = 20_000


class _Budget(NamedTuple):
    """Tokens that are left for one turn; None where there is no limit."""

    prompt_tokens: int | None
    completion_tokens: int | None


class Past(NamedTuple):
    """What a run goes on from: the messages of its thread and its own steps, oldest first."""

    messages: list[Message]
    steps: list[StepRecord]


async def get_past(services: Services, record: RunRecord) -> Past:
    """Read what a run goes on from. May be read while the run is being claimed: had it gone on since, the claim would fail."""
    messages, steps = await asyncio.gather(
        get_history(services, record.project_id, record.run.thread_id, services.settings.run_messages_max),
        get_steps(services, record.run.id),
    )
    return Past(messages, steps)


class RunExecution:
    """A claimed run while it is being executed. `record` is the run after the last commit."""

    def __init__(self, services: Services, record: RunRecord, past: Past) -> None:
        self._services = services
        self._record = record
        self._turn: Turn | None = None
        self._messages = past.messages
        self._steps = past.steps
        self._images = PromptImages(services, record.project_id)
        self._servers = McpServers(services.settings, record.run)
        # The server's own tools as the model is offered them.
        self._hosted: list[ToolDefinition] = []
        # The place of the next tool's output in the context.
        self._next_number = 0
        self._costs: dict[str, change.TurnCost] = {}
        self._observed = NOT_OBSERVED

    @property
    def record(self) -> RunRecord:
        return self._turn.record if self._turn else self._record

    @property
    def told_contents(self) -> dict[str, list[Content]]:
        """By message id, what has been told of the message in progress, for the case that the run ends now."""
        message = self._turn.message if self._turn else None
        return {message.message.id: message.content} if message else {}

    @property
    def costs(self) -> dict[str, change.TurnCost]:
        """By the id of its step, what the last turn has cost; its row may know, or not yet."""
        return self._costs

    async def execute(self, observed: ObservedRun = NOT_OBSERVED) -> None:
        """Go on until the run completes, is incomplete, or waits for the client. Connections that it has made end with it.

        Raises ModelError when the run has failed (nothing is written of that), and RunLost when it is not this worker's any more.
        """
        self._observed = observed
        try:
            await self._prepare_tools()
            await self._make_approved_calls()
            while not await self._take_turn():
                pass
        finally:
            await self._servers.close()

    async def _prepare_tools(self) -> None:
        run = self._record.run
        use = ToolUse(self._services, self._record.project_id, run)
        tools = [self._services.tools[name] for name in tool_types(run) if name in self._services.tools]
        try:
            offered = [await tool.prepare(use, is_first_turn=not self._steps) for tool in tools]
            await self._servers.prepare(self._services.tools)
        except ToolFailure as failure:
            raise ModelError(failure.message) from failure
        self._hosted = [definition for definition in offered if definition is not None]

    async def _make_approved_calls(self) -> None:
        """Make the calls of the open step that the client has approved; with their outputs it has come to its end."""
        waiting = next((record for record in self._left_open if approved_calls(record)), None)
        if waiting is None:
            return
        made = with_made_calls(waiting, await make_approved_calls(self._services, self._servers, approved_calls(waiting)))
        changes = Changes()
        ended = change.end_step(changes, made, "completed", self._services.now(), usage=waiting.usage)
        self._record = await save_changes(self._services, self._record, changes)
        self._steps = [ended if record.step.id == ended.step.id else record for record in self._steps]

    async def _take_turn(self) -> bool:
        """One turn of the model; whether the run has stopped with it."""
        services = self._services
        last_turn = max((record.turn for record in self._steps), default=0)
        number = last_turn if self._left_open else last_turn + 1
        if number > services.settings.run_turns_max:
            raise ModelError(f"The model wanted more than {services.settings.run_turns_max} turns.")
        try:
            await check_tokens_of_day(services, self._record.project_id)
        except LimitReached as exc:
            raise ModelError(exc.message, code="rate_limit_exceeded") from exc
        budget = self._budget()
        if budget.completion_tokens is not None and budget.completion_tokens <= 0:
            return await self._stop_incomplete("max_completion_tokens")
        request = await self._request(number, budget)
        if request is None:
            return await self._stop_incomplete("max_prompt_tokens")

        has_spoken = any(record.turn == number and record.step.type == "message_creation" for record in self._finished_steps)
        turn = self._turn = Turn(services, self._record, number, self._left_open, self._drafts, has_spoken=has_spoken, made=self._made)
        finished = await self._answered(turn, request)
        if turn.tools is None:
            return await self._end_message_turn(turn, finished)
        return await self._end_tool_turn(turn, turn.tools, finished)

    async def _answered(self, turn: Turn, request: ChatRequest) -> Finished:
        """Ask the model, and tell what it answers; its last word."""
        finished: Finished | None = None
        with observed_turn(self._services, self._record, request) as observed:
            async with aclosing(self._services.models.stream(request)) as answer:
                async for deltas in answer:
                    if observed.is_told:
                        observed.take(deltas)
                    finished = await turn.take(deltas)
            if finished is None:
                raise ModelError("The model's answer ended without a finish reason.")
            observed.end(finished)
        self._observed.add_usage(finished)
        return finished

    @property
    def _finished_steps(self) -> list[StepRecord]:
        return [record for record in self._steps if record.step.status == "completed"]

    @property
    def _left_open(self) -> list[StepRecord]:
        """Steps that a lost worker had begun."""
        return [record for record in self._steps if record.step.status == "in_progress"]

    @property
    def _has_hosted_tools(self) -> bool:
        return any(name in self._services.tools for name in tool_types(self._record.run))

    @property
    def _made(self) -> Made:
        """What the next message may show of what the tools have given."""
        types, run_id = tool_types(self._record.run), self._record.run.id
        written = [message for message in self._messages if message.run_id == run_id and message.status != "in_progress"]
        return known_made(self._steps, written, can_search="file_search" in types, can_run_code="code_interpreter" in types)

    @property
    def _drafts(self) -> list[Message]:
        """Messages that a lost worker had begun."""
        run_id = self._record.run.id
        return [message for message in self._messages if message.run_id == run_id and message.status == "in_progress"]

    def _budget(self) -> _Budget:
        run, used = self._record.run, change.total_usage(self._steps) or Usage()
        return _Budget(
            prompt_tokens=None if run.max_prompt_tokens is None else run.max_prompt_tokens - used.prompt_tokens,
            completion_tokens=None if run.max_completion_tokens is None else run.max_completion_tokens - used.completion_tokens,
        )

    async def _request(self, turn: int, budget: _Budget) -> ChatRequest | None:
        """What the model is asked in this turn; None when the prompt's budget is too small for it."""
        run = self._record.run
        capabilities = self._services.models.capabilities(run.model, self._record.project_id)
        tools, choice = self._offered_tools(turn, capabilities)
        window = capabilities.context_window_tokens
        if window is not None:
            # Room for the answer: what was asked for, but at most half of the window.
            window -= min(budget.completion_tokens or window // 4, window // 2)
        limits = [limit for limit in (window, budget.prompt_tokens) if limit is not None]
        finished_turns = [record for record in self._steps if record.turn < turn]
        parts = prompt.conversation(run, self._messages, finished_turns)
        if self._has_hosted_tools:
            self._next_number = next_number(len(parts.history) + len(parts.turns), self._messages, known_sources(self._steps))
        messages, counted = await _fitted(parts, tools, min(limits) if limits else None)
        if budget.prompt_tokens is not None and counted is not None and counted > budget.prompt_tokens:
            return None
        messages = await self._images.put_in(messages, run.model, takes_images=capabilities.images)
        return ChatRequest(
            model=run.model,
            messages=messages,
            tools=tuple(tools),
            tool_choice=choice,
            parallel_tool_calls=run.parallel_tool_calls,
            temperature=run.temperature,
            top_p=run.top_p,
            response_format=prompt.response_format(run),
            reasoning_effort=run.reasoning_effort,
            completion_tokens_max=budget.completion_tokens,
            owner=self._record.project_id,
        )

    def _offered_tools(self, turn: int, capabilities: Capabilities) -> tuple[list[ToolDefinition], prompt.Choice]:
        """The tools of a turn, and the choice among them. A model that calls by rules gets the client's functions when it must."""
        run, taken = self._record.run, {tool.name for tool in self._hosted}
        functions = [function for function in prompt.function_definitions(run) if function.name not in taken]
        tools = [*self._hosted, *self._servers.definitions, *functions]
        choice = prompt.tool_choice(run, tools, turn)
        if capabilities.tools == "hosted" and not isinstance(choice, NamedTool) and (choice != "required" or self._hosted):
            tools = self._hosted
        return tools, choice if tools else "none"

    async def _end_message_turn(self, turn: Turn, finished: Finished) -> bool:
        """The model has answered: the message, its step and the run end in one commit."""
        message = await turn.end_without_calls()
        incomplete: IncompleteReason | None = None
        if finished.reason == "length":
            incomplete = "max_tokens"
        elif finished.reason == "content_filter":
            incomplete = "content_filter"
        changes, now, cost = Changes(), self._services.now(), self._cost(message.step, finished)
        turn.abandon_left_open(changes)
        change.end_message(changes, message.message, message.content, now, incomplete)
        ended = change.end_step(changes, message.step, "completed", now, usage=cost.usage)
        change.spend(changes, cost)
        total = change.total_usage([*self._steps, *turn.ended, ended])
        if finished.reason == "length":
            details = RunIncompleteDetails("max_completion_tokens")
            await self._stop(turn.record, "incomplete", changes=changes, usage=total, incomplete_details=details)
        else:
            await self._stop(turn.record, "completed", changes=changes, usage=total)
        return True

    async def _end_tool_turn(self, turn: Turn, tools: OpenToolStep, finished: Finished) -> bool:
        """The model wants tools: run the server's own, and stop for the client's."""
        cost = self._cost(tools.step, finished)
        if turn.message is not None:  # text that came behind the calls
            changes = Changes()
            turn.close_message(changes)
            turn.record = await save_changes(self._services, turn.record, changes)
        if finished.reason == "length":
            return await self._stop_inside_call(turn, _with_calls(tools.step, [], cost.usage), cost)
        turn.end_calls(tools)
        told_wrong = functions_told_wrong(self._finished_steps)
        calls = await run_tool_calls(
            self._services, turn.record, tools.calls, self._servers, self._next_number, turn.tell_output, told_wrong=told_wrong, cost=cost
        )
        self._messages += turn.written
        return await self._stop_or_go_on(turn, _with_calls(tools.step, calls, cost.usage), calls, cost)

    def _cost(self, step: StepRecord, finished: Finished) -> change.TurnCost:
        """What the turn has cost that is written into this step."""
        cost = change.TurnCost(_usage(finished.usage))
        self._costs = {step.step.id: cost}
        return cost

    async def _stop_or_go_on(self, turn: Turn, step: StepRecord, calls: list[FinishedCall], cost: change.TurnCost) -> bool:
        """Wait for the client when it has to give outputs; else the outputs are there and the next turn can begin."""
        changes = Changes()
        change.spend(changes, cost)
        pending = pending_calls(calls)
        if pending:
            change.keep_step(changes, step)
            action = RequiredAction(submit_tool_outputs=PendingToolCalls(pending))
            await self._stop(turn.record, "requires_action", changes=changes, required_action=action)
            return True
        ended = change.end_step(changes, step, "completed", self._services.now(), usage=step.usage)
        self._record = await save_changes(self._services, turn.record, changes)
        reused = {record.step.id for record in (*turn.ended, ended)}
        self._steps = [record for record in self._steps if record.step.id not in reused] + [*turn.ended, ended]
        self._turn = None
        return False

    async def _stop_inside_call(self, turn: Turn, step: StepRecord, cost: change.TurnCost) -> bool:
        """The token limit was met inside a tool call, which is thus not whole."""
        changes, error = Changes(), StepError("server_error", "The token limit was reached inside a tool call.")
        ended = change.end_step(changes, step, "failed", self._services.now(), usage=step.usage, error=error)
        change.spend(changes, cost)
        total = change.total_usage([*self._steps, *turn.ended, ended])
        details = RunIncompleteDetails("max_completion_tokens")
        await self._stop(turn.record, "incomplete", changes=changes, usage=total, incomplete_details=details)
        return True

    async def _stop(self, record: RunRecord, to: RunStatus, **changed: Any) -> None:
        """Bring the run to a status in which nobody executes it; as `transition_run`."""
        await transition_run(self._services, record, to, **changed)
        self._observed.stop(to)

    async def _stop_incomplete(self, reason: Literal["max_completion_tokens", "max_prompt_tokens"]) -> bool:
        """A budget is used up before the turn begins."""
        changes = Changes()
        Turn(self._services, self._record, 0, self._left_open, self._drafts).abandon_left_open(changes)
        details, total = RunIncompleteDetails(reason), change.total_usage(self._steps)
        await self._stop(self._record, "incomplete", changes=changes, usage=total, incomplete_details=details)
        return True


def _with_calls(record: StepRecord, calls: list[FinishedCall], usage: Usage) -> StepRecord:
    step = msgspec.structs.replace(record.step, step_details=ToolCallsDetails([finished.call for finished in calls]))
    outputs = {
        finished.call.id: finished.output
        for finished in calls
        if finished.output is not None and not isinstance(finished.call, FunctionToolCall)
    }
    outputs |= {finished.call.id: AWAITED for finished in calls if finished.awaits_approval}
    return StepRecord(step=step, turn=record.turn, usage=usage, outputs=outputs)


def _usage(tokens: TokenUsage | None) -> Usage:
    if tokens is None:
        return Usage()
    return Usage(
        prompt_tokens=tokens.prompt_tokens,
        completion_tokens=tokens.completion_tokens,
        total_tokens=tokens.prompt_tokens + tokens.completion_tokens,
        prompt_token_details=PromptTokenDetails(tokens.cached_tokens),
        completion_tokens_details=CompletionTokensDetails(tokens.reasoning_tokens),
    )


async def _fitted(
    parts: prompt.Conversation, tools: list[ToolDefinition], prompt_tokens_max: int | None
) -> tuple[tuple[ChatMessage, ...], int | None]:
    if prompt_tokens_max is None or parts.characters < _COUNT_IN_THREAD_CHARACTERS:
        return prompt.fitted_messages(parts, tools, prompt_tokens_max)
    return await asyncio.to_thread(prompt.fitted_messages, parts, tools, prompt_tokens_max)
