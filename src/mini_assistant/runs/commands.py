"""What clients ask of runs: create, cancel, submit tool outputs, change. Each is one list of statements, guarded by the rows."""

from typing import NamedTuple

import msgspec
from msgspec import UNSET

from mini_assistant.assistants import store as assistant_store
from mini_assistant.assistants.schema import Assistant, FileSearchTool, FunctionTool, McpTool, Tool, ToolResources, echoed_tools
from mini_assistant.db.base import Bound, GuardFailed, UniqueViolation
from mini_assistant.errors import InvalidRequest, NotFound, RunStateConflict, TooLarge
from mini_assistant.http.routing import Request, check_id
from mini_assistant.ids import new_id
from mini_assistant.models.checks import check_model
from mini_assistant.projects import limits
from mini_assistant.runs import changes as change
from mini_assistant.runs import store
from mini_assistant.runs.approvals import approved_calls, with_outputs
from mini_assistant.runs.schema import (
    CreateRun,
    CreateThreadAndRun,
    FunctionChoice,
    ModifyRun,
    Run,
    RunParameters,
    SubmitToolOutputs,
    TruncationStrategy,
)
from mini_assistant.runs.store import Changes, RunLost, RunRecord, StepRecord
from mini_assistant.services import Services
from mini_assistant.threads import commands as thread_commands
from mini_assistant.threads import store as thread_store
from mini_assistant.threads.schema import CreateThread, Thread
from mini_assistant.tracing import valid_traceparent_or_none
from mini_assistant.vector_stores.commands import RowsChanged, write_with_files
from mini_assistant.vector_stores.store import touch_stores


class StartedRun(NamedTuple):
    """A run after a command. body: its wire JSON. after_seq: the last event before the ones that the command has caused."""

    run: Run
    body: str
    after_seq: int


async def create_run(request: Request[CreateRun, object]) -> StartedRun:
    """Create a run on a thread, with additional messages in the same transaction.

    Raises NotFound for the thread or assistant, RunStateConflict while another run of the thread is active, InvalidRequest when there is
    nothing to answer, and LimitReached. Nothing is written then.
    """
    services, body, thread_id = request.services, request.body, request.path["thread_id"]
    assistant = await _assistant(request)
    run = _new_run(services, thread_id, assistant, body)
    await thread_commands.check_message_files(services, request.project_id, body.additional_messages or [])
    messages = [thread_commands.new_message(services, thread_id, message) for message in body.additional_messages or []]
    can_answer = bool(run.instructions) or any(message.role == "user" for message in messages)
    if not can_answer and not await thread_store.has_user_message(services, request.project_id, thread_id):
        await thread_store.get_thread_json(services, request.project_id, thread_id)
        raise _nothing_to_answer()
    while True:
        before = [
            thread_store.require_thread(request.project_id, thread_id),
            *await thread_commands.attach_to_thread(services, request.project_id, thread_id, messages),
            *thread_commands.insert_messages(request.project_id, messages),
            *await _touch_stores(services, request.project_id, run),
        ]
        try:
            return await _start(request, run, before)
        except RowsChanged:
            continue  # the thread or its vector store has changed in between: attach to it as it is now


async def create_thread_and_run(request: Request[CreateThreadAndRun, object]) -> StartedRun:
    """Create a thread and a run on it in one transaction. Raises as `create_run`."""
    services, body = request.services, request.body
    assistant = await _assistant(request)
    while True:
        new = await thread_commands.new_thread(services, request.project_id, body.thread or CreateThread(), body.tool_resources)
        run = _new_run(services, new.thread.id, assistant, body)
        if not run.instructions and not any(message.role == "user" for message in new.messages):
            raise _nothing_to_answer()
        used = [*_store_ids(run.tool_resources), *_store_ids(new.thread.tool_resources)] if _searches_files(run) else []
        try:
            return await _start(request, run, [*new.statements, *touch_stores(request.project_id, used, services.now())], new.thread)
        except RowsChanged:
            continue  # a file or a vector store of the thread has changed in between


async def _touch_stores(services: Services, project_id: str, run: Run) -> list[Bound]:
    """Statements that say that a run on a thread that is there uses its vector stores. Raises NotFound for the thread."""
    if not _searches_files(run):
        return []
    thread = thread_store.decode_thread(await thread_store.get_thread_json(services, project_id, run.thread_id))
    return touch_stores(project_id, [*_store_ids(run.tool_resources), *_store_ids(thread.tool_resources)], services.now())


def _searches_files(run: Run) -> bool:
    return any(isinstance(tool, FileSearchTool) for tool in run.tools)


def _store_ids(resources: ToolResources) -> list[str]:
    return [] if resources.file_search is UNSET else resources.file_search.vector_store_ids


def _nothing_to_answer() -> InvalidRequest:
    return InvalidRequest("Run creation requires a Thread with a user message or an assistant with instructions.", code="invalid_thread")


async def _assistant(request: Request[RunParameters, object]) -> Assistant:
    body = request.body
    check_id("assistant_id", body.assistant_id)
    assistant = assistant_store.decode(await assistant_store.get_json(request.services, request.project_id, body.assistant_id))
    check_model(request.services.models, body.model or assistant.model)
    return assistant


async def _start(request: Request[object, object], run: Run, before: list[Bound], new_thread: Thread | None = None) -> StartedRun:
    """before: what is written first, in the same list: the thread, or the guard that it is there, and messages."""
    services = request.services
    await limits.check_tokens_of_day(services, request.project_id)
    provider, traceparent = services.models.provider_or_none(run.model), valid_traceparent_or_none(request.traceparent)
    record, rows, events = store.insert_run(request.project_id, run, new_thread, provider=provider, traceparent=traceparent)
    body = msgspec.json.encode(run).decode()
    numbered = [(place, event.name, event.data) for place, event in enumerate(events, start=1)]
    kept = request.remember(body, run_id=run.id, after_seq=0)
    statements = [*before, *rows, *kept, *limits.limits_of_new_run(services, request.project_id)]
    try:
        await write_with_files(services, statements, lambda: services.events.publish(run.id, record.attempt, numbered))
    except GuardFailed as exc:
        refusal = await limits.refusal_of_run_or_none(services, request.project_id, exc.guard)
        raise refusal or thread_store.thread_not_found(run.thread_id) from exc
    except UniqueViolation as exc:
        if exc.index != store.ONE_ACTIVE_RUN_INDEX:
            raise
        active = await store.active_run_id_or_none(services, request.project_id, run.thread_id)
        raise RunStateConflict(f"Thread {run.thread_id} already has an active run {active}.") from exc
    services.queue.put("run", run.id)
    return StartedRun(run, body, 0)


def _new_run(services: Services, thread_id: str, assistant: Assistant, body: RunParameters) -> Run:
    """The run as a snapshot: what the request gives wins over what the assistant has (behaviour §3.9)."""
    tools = assistant.tools if body.tools is None else echoed_tools(body.tools)
    _check_tool_choice(body, tools)
    texts = [assistant.instructions if body.instructions is None else body.instructions, body.additional_instructions]
    now = services.now()
    return Run(
        id=new_id("run"),
        created_at=now,
        assistant_id=assistant.id,
        thread_id=thread_id,
        status="queued",
        expires_at=now + services.settings.run_expiry_seconds,
        model=body.model or assistant.model,
        instructions="\n\n".join([text for text in texts if text]) or texts[0],
        tools=tools,
        tool_resources=assistant.tool_resources,
        metadata=body.metadata or {},
        temperature=assistant.temperature if body.temperature is None else body.temperature,
        top_p=assistant.top_p if body.top_p is None else body.top_p,
        reasoning_effort=assistant.reasoning_effort if body.reasoning_effort is None else body.reasoning_effort,
        max_completion_tokens=body.max_completion_tokens,
        max_prompt_tokens=body.max_prompt_tokens,
        truncation_strategy=body.truncation_strategy or TruncationStrategy("auto"),
        response_format=assistant.response_format if body.response_format is None else body.response_format,
        tool_choice="auto" if body.tool_choice is None else body.tool_choice,
        parallel_tool_calls=True if body.parallel_tool_calls is None else body.parallel_tool_calls,
    )


def _check_tool_choice(body: RunParameters, tools: list[Tool]) -> None:
    choice = body.tool_choice
    if not isinstance(choice, FunctionChoice):
        return
    functions = [tool.function.name for tool in tools if isinstance(tool, FunctionTool)]
    # What an MCP server has to offer is known when the run has begun; what it does not offer then is not demanded.
    labels = tuple(f"{tool.server_label}__" for tool in tools if isinstance(tool, McpTool))
    if choice.function.name not in functions and not choice.function.name.startswith(labels):
        raise InvalidRequest(
            f"Invalid value: '{choice.function.name}'. The function that 'tool_choice' names is not among the tools of the run.",
            param="tool_choice",
            code="invalid_value",
        )


async def get_record(request: Request[object, object]) -> RunRecord:
    """The run that a path names. Raises NotFound for the thread or the run."""
    thread_id, run_id = request.path["thread_id"], request.path["run_id"]
    record = await store.get_record_or_none(request.services, request.project_id, thread_id, run_id)
    if record is None:
        raise await run_not_found(request)
    return record


async def run_not_found(request: Request[object, object]) -> NotFound:
    """The error for an unknown run; raises NotFound for the thread when that is unknown already."""
    await thread_store.get_thread_json(request.services, request.project_id, request.path["thread_id"])
    return NotFound(f"No run found with id '{request.path['run_id'][:100]}'.")


async def cancel_run(request: Request[object, object]) -> str:
    """Begin to cancel a run; returns it as `cancelling`. Its worker ends it, or the next one that finds it.

    Raises RunStateConflict in `cancelling` and in every terminal status.
    """
    services = request.services
    while True:
        record = await get_record(request)
        status = record.run.status
        if status not in ("queued", "in_progress", "requires_action"):
            raise RunStateConflict(f"Cannot cancel run with status '{status}'.")
        try:
            body = store.json_in_status(services, record, "cancelling")
            await store.transition_run(services, record, "cancelling", extra_statements=request.remember(body))
        except RunLost:
            continue  # it went on in between
        services.queue.put("run", record.run.id, to_all=True)
        return body


async def submit_tool_outputs(request: Request[SubmitToolOutputs, object]) -> StartedRun:
    """Give the outputs that a run waits for; the step is completed, unless calls of it were approved, and the run goes back to `queued`.

    Raises RunStateConflict in any status but `requires_action`, InvalidRequest unless there is one output for each pending call,
    TooLarge for an output above `tool_output_bytes_max`, and LimitReached when the tokens of the day are used up: the run waits on then.
    Nothing is written.
    """
    services, limit = request.services, request.services.settings.tool_output_bytes_max
    for output in request.body.tool_outputs:
        if len((output.output or "").encode()) > limit:
            raise TooLarge(f"The output of '{output.tool_call_id[:100]}' is larger than {limit} bytes.", param="tool_outputs")
    while True:
        record = await get_record(request)
        if record.run.status != "requires_action" or record.run.required_action is None:
            raise RunStateConflict(f'Runs in status "{record.run.status}" do not accept tool outputs.')
        expected = [call.id for call in record.run.required_action.submit_tool_outputs.tool_calls]
        given = [output.tool_call_id for output in request.body.tool_outputs]
        if sorted(given) != sorted(expected):
            raise InvalidRequest(f"Expected tool outputs for call_ids {expected}, got {[name[:100] for name in given]}")
        step = await _open_step_or_none(services, record)
        if step is None:
            continue  # somebody else was faster, and the step has ended since the run was read
        await limits.check_tokens_of_day(services, request.project_id)
        changes = Changes()
        answered = with_outputs(step, {output.tool_call_id: output.output or "" for output in request.body.tool_outputs})
        if approved_calls(answered):
            change.keep_step(changes, answered)  # its worker makes these calls, and ends it
        else:
            change.end_step(changes, answered, "completed", services.now(), usage=step.usage)
        body = store.json_in_status(services, record, "queued")
        kept = request.remember(body, run_id=record.run.id, after_seq=record.version)
        try:
            saved = await store.transition_run(services, record, "queued", changes=changes, extra_statements=kept)
        except RunLost:
            continue  # cancelled, expired or answered in between
        services.queue.put("run", record.run.id)
        return StartedRun(saved.run, body, record.version)


async def _open_step_or_none(services: Services, record: RunRecord) -> StepRecord | None:
    steps = await store.get_steps(services, record.run.id)
    return next((known for known in steps if known.step.status == "in_progress" and known.step.type == "tool_calls"), None)


async def modify_run(request: Request[ModifyRun, object]) -> str:
    """Change a run's metadata. Raises RunStateConflict while it is being computed (behaviour §3.4)."""
    while True:
        record = await get_record(request)
        if record.run.status in ("queued", "in_progress", "cancelling"):
            raise RunStateConflict(f"Cannot update run with status '{record.run.status}'.")
        metadata = record.run.metadata if request.body.metadata is UNSET else request.body.metadata or {}
        try:
            return await store.replace_metadata(request.services, record, metadata)
        except RunLost:
            continue  # it went on in between
