"""The endpoints of runs and run steps."""

from typing import Annotated, Any, Literal

import msgspec

from mini_assistant.errors import InvalidRequest, NotFound
from mini_assistant.events.base import Position
from mini_assistant.http.routing import Request, Route, RunStream
from mini_assistant.pagination import EMPTY_LIST, Page, list_schema
from mini_assistant.runs import commands, store
from mini_assistant.runs.commands import StartedRun
from mini_assistant.runs.events import STOPPED_STATUSES, has_file_search, without_contents
from mini_assistant.runs.replay import parse_position
from mini_assistant.runs.schema import CreateRun, CreateThreadAndRun, ModifyRun, Run, RunStep, SubmitToolOutputs
from mini_assistant.threads import store as thread_store

Include = Annotated[
    list[Literal["step_details.tool_calls[*].file_search.results[*].content"]],
    msgspec.Meta(description="What to add to the answer; sent as `include[]`."),
]


# Typed as what it is made of: the type of a list is made by a function.
_STEP_LIST: Any = list_schema(RunStep)


class IncludeQuery(msgspec.Struct, frozen=True):
    """Query of calls that can show the passages of a search."""

    include: Include = msgspec.field(default_factory=list[Literal["step_details.tool_calls[*].file_search.results[*].content"]])


class StepPage(Page, frozen=True):
    """Query of the list of steps."""

    include: Include = msgspec.field(default_factory=list[Literal["step_details.tool_calls[*].file_search.results[*].content"]])


async def create_run(request: Request[CreateRun, IncludeQuery]) -> str | RunStream:
    return _answer(await commands.create_run(request), bool(request.body.stream), shows_passages=bool(request.query.include))


async def create_thread_and_run(request: Request[CreateThreadAndRun, IncludeQuery]) -> str | RunStream:
    return _answer(await commands.create_thread_and_run(request), bool(request.body.stream), shows_passages=bool(request.query.include))


def _answer(started: StartedRun, stream: bool, *, shows_passages: bool = False) -> str | RunStream:
    if not stream:
        return started.body
    return RunStream(started.run.id, Position(started.after_seq), last_seq=started.after_seq, shows_passages=shows_passages)


async def list_runs(request: Request[None, Page]) -> str:
    services, thread_id = request.services, request.path["thread_id"]
    answer = await store.run_listing.page(services.db, request.query, {"project_id": request.project_id, "thread_id": thread_id})
    if answer is EMPTY_LIST:
        await thread_store.get_thread_json(services, request.project_id, thread_id)
    return answer


async def get_run(request: Request[None, object]) -> str:
    thread_id, run_id = request.path["thread_id"], request.path["run_id"]
    body = await store.get_run_json_or_none(request.services, request.project_id, thread_id, run_id)
    if body is None:
        raise await commands.run_not_found(request)
    return body


async def modify_run(request: Request[ModifyRun, None]) -> str:
    return await commands.modify_run(request)


async def cancel_run(request: Request[None, None]) -> str:
    return await commands.cancel_run(request)


async def submit_tool_outputs(request: Request[SubmitToolOutputs, None]) -> str | RunStream:
    return _answer(await commands.submit_tool_outputs(request), bool(request.body.stream))


async def stream_run_events(request: Request[None, None]) -> RunStream:
    """Re-attach to a run: its events from the start, or after `Last-Event-ID`."""
    attempt, position = parse_position(request.last_event_id)
    record = await commands.get_record(request)
    if position.seq > record.version:
        raise InvalidRequest("This run has no event with this Last-Event-ID.", param="Last-Event-ID", code="invalid_value")
    is_over = record.run.status in STOPPED_STATUSES and position.seq == record.version
    return RunStream(record.run.id, position, record.version, attempt, resumable=True, is_over=is_over)


async def list_run_steps(request: Request[None, StepPage]) -> str:
    scope = {"project_id": request.project_id, "run_id": request.path["run_id"]}
    await get_run(request)  # the run must belong to the thread of the path
    text = await store.step_listing.page(request.services.db, request.query, scope)
    if request.query.include or not has_file_search(text):
        return text
    page = msgspec.json.decode(text, type=_STEP_LIST)
    return msgspec.json.encode(msgspec.structs.replace(page, data=[without_contents(step) for step in page.data])).decode()


async def get_run_step(request: Request[None, IncludeQuery]) -> str:
    await get_run(request)  # the run must belong to the thread of the path
    run_id, step_id = request.path["run_id"], request.path["step_id"]
    body = await store.get_step_json_or_none(request.services, request.project_id, run_id, step_id)
    if body is None:
        raise NotFound(f"No run step found with id '{step_id[:100]}'.")
    if request.query.include or not has_file_search(body):
        return body
    return msgspec.json.encode(without_contents(msgspec.json.decode(body, type=RunStep))).decode()


ROUTES = [
    Route(
        method="POST",
        path="/threads/runs",
        name="createThreadAndRun",
        summary="Create a thread and a run on it",
        call=create_thread_and_run,
        body=CreateThreadAndRun,
        query=IncludeQuery,
        answer=Run,
        streams=True,
    ),
    Route(
        method="POST",
        path="/threads/{thread_id}/runs",
        name="createRun",
        summary="Create a run",
        call=create_run,
        body=CreateRun,
        query=IncludeQuery,
        answer=Run,
        streams=True,
    ),
    Route(
        method="GET",
        path="/threads/{thread_id}/runs",
        name="listRuns",
        summary="List runs",
        call=list_runs,
        query=Page,
        answer=list_schema(Run),
    ),
    Route(
        method="GET",
        path="/threads/{thread_id}/runs/{run_id}",
        name="getRun",
        summary="Get a run",
        call=get_run,
        answer=Run,
        polled=True,
    ),
    Route(
        method="POST",
        path="/threads/{thread_id}/runs/{run_id}",
        name="modifyRun",
        summary="Change a run's metadata",
        call=modify_run,
        body=ModifyRun,
        body_optional=True,
        answer=Run,
    ),
    Route(
        method="POST",
        path="/threads/{thread_id}/runs/{run_id}/cancel",
        name="cancelRun",
        summary="Cancel a run",
        call=cancel_run,
        answer=Run,
    ),
    Route(
        method="POST",
        path="/threads/{thread_id}/runs/{run_id}/submit_tool_outputs",
        name="submitToolOuputsToRun",
        summary="Give the outputs of tool calls",
        call=submit_tool_outputs,
        body=SubmitToolOutputs,
        answer=Run,
        streams=True,
    ),
    Route(
        method="GET",
        path="/threads/{thread_id}/runs/{run_id}/events",
        name="streamRunEvents",
        summary="Re-attach to a run's events (extension)",
        call=stream_run_events,
        answer=None,
        streams=True,
    ),
    Route(
        method="GET",
        path="/threads/{thread_id}/runs/{run_id}/steps",
        name="listRunSteps",
        summary="List the steps of a run",
        call=list_run_steps,
        query=StepPage,
        answer=list_schema(RunStep),
    ),
    Route(
        method="GET",
        path="/threads/{thread_id}/runs/{run_id}/steps/{step_id}",
        name="getRunStep",
        summary="Get a run step",
        call=get_run_step,
        query=IncludeQuery,
        answer=RunStep,
    ),
]
