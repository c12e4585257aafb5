"""Endpoints whose models differ in how they can call tools, and runs on them watched event by event through the official SDK's helper."""

import itertools
from typing import Any, NamedTuple

import msgspec
import openai
from openai import AsyncAssistantEventHandler
from openai.types.beta import AssistantStreamEvent
from openai.types.beta.threads import Run
from typing_extensions import override

from mini_assistant.models.script import Rule, Script, Step
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.models.scripted_abilities import Abilities
from mini_assistant.settings import ModelSettings, ProviderSettings
from tests.conformance.conversations import MODEL, new_assistant, thread_saying
from tests.conformance.strictness import check_event

RUN_STARTS = ["thread.run.created", "thread.run.queued", "thread.run.in_progress"]
STEP_STARTS = ["thread.run.step.created", "thread.run.step.in_progress"]
MESSAGE_BEGINS = [*STEP_STARTS, "thread.message.created", "thread.message.in_progress", "thread.message.delta"]
MESSAGE = [*MESSAGE_BEGINS, "thread.message.completed", "thread.run.step.completed"]
CALLS = [*STEP_STARTS, "thread.run.step.delta"]
CALLS_ENDED = [*CALLS, "thread.run.step.completed"]
CONTINUED = ["thread.run.step.completed", "thread.run.queued", "thread.run.in_progress"]


class AnyModel(NamedTuple):
    """A model behind an endpoint. form: how it can call tools. configured: what the config file says of it; None: it is not named there."""

    form: str
    abilities: Abilities
    configured: dict[str, Any] | None = None

    def settings(self, base_url: str) -> dict[str, Any]:
        """The settings of a server whose model it is."""
        if self.configured is None:
            return {"openai_base_url": base_url}
        return {
            "openai_base_url": None,
            "providers": {"endpoint": ProviderSettings(base_url)},
            "models": {MODEL: ModelSettings(provider="endpoint", **self.configured)},
        }

    def used(self, request: dict[str, Any]) -> str:
        """In which form a request offers tools; `none` when it offers none."""
        if "tools" in request:
            return "native"
        response_format: dict[str, Any] = request.get("response_format") or {}
        asked: str | None = response_format.get("type")
        is_told = any("# Tools\n" in str(message["content"]) for message in request["messages"])
        return "json_schema" if asked == "json_schema" else "none" if not is_told else asked or "text"


REFUSED = {
    "json_schema": Abilities(tools="refuse", server="ollama"),
    "json_object": Abilities(tools="refuse", json_schema="refuse", server="deepseek"),
    "text": Abilities(tools="refuse", json_schema="refuse", json_object="refuse", server="vllm"),
}
IGNORED = {
    "json_schema": Abilities(tools="ignore"),
    "json_object": Abilities(tools="ignore", json_schema="ignore"),
    "text": Abilities(tools="ignore", json_schema="ignore", json_object="ignore"),
}
ANY_MODEL = {
    "native": AnyModel("native", Abilities()),
    "native-without-choice": AnyModel("native", Abilities(tool_choice="refuse", parallel_tool_calls="refuse", server="vllm")),
    **{f"{form}-learned": AnyModel(form, abilities) for form, abilities in REFUSED.items()},
    # What is overlooked in silence cannot be learned where a call is only allowed: it is configured.
    **{f"{form}-configured": AnyModel(form, abilities, {"tools": form}) for form, abilities in IGNORED.items()},
}
# Of no use to a client that does not know the model: it must send everything, and the server must find out.
NARROW = Abilities(
    tools="refuse",
    json_schema="refuse",
    json_object="refuse",
    system_role="refuse",
    developer_role="refuse",
    temperature="refuse",
    reasoning_effort="refuse",
    stream_options="refuse",
    max_tokens_parameter="max_tokens",
)


def answer_turns(endpoint: ScriptedEndpoint, *turns: list[Step]) -> None:
    """The first request that is not refused is answered with the first steps, the second with the second, and so on."""
    endpoint.script = Script([Rule(steps, times=1) for steps in turns], endpoint.script.abilities)


def answered(endpoint: ScriptedEndpoint) -> list[dict[str, Any]]:
    """The requests that were not refused, oldest first."""
    return [request for request in endpoint.requests if endpoint.script.abilities.refusal_or_none(request) is None]


class Watched(AsyncAssistantEventHandler):
    """Notes the events of a stream and checks each of them strictly."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.run: Run | None = None

    @override
    async def on_event(self, event: AssistantStreamEvent) -> None:
        check_event(event.event, event.data.model_dump_json(by_alias=True, exclude_unset=True))
        self.names.append(event.event)
        if event.event.startswith("thread.run.") and not event.event.startswith("thread.run.step"):
            assert isinstance(event.data, Run)
            self.run = event.data

    @property
    def told(self) -> list[str]:
        """The names of the events, several deltas in a row as one."""
        return [name for name, _ in itertools.groupby(self.names)]

    @property
    def final_run(self) -> Run:
        """The run as the last event about it shows it."""
        assert self.run is not None
        return self.run


async def watched_run(sdk: openai.AsyncOpenAI, text: str = "Hello", *, tools: Any = (), thread_id: str = "", **fields: Any) -> Watched:
    """A run on a new thread with this message, or on one that has its messages, watched until it stops."""
    assistant_fields = {name: fields.pop(name) for name in ("tool_resources", "instructions") if name in fields}
    assistant = await new_assistant(sdk, tools=list(tools), **assistant_fields)
    thread_id = thread_id or (await thread_saying(sdk, text)).id
    watched = Watched()
    async with sdk.beta.threads.runs.stream(thread_id=thread_id, assistant_id=assistant.id, event_handler=watched, **fields) as stream:
        await stream.until_done()
    return watched


async def watched_submit(sdk: openai.AsyncOpenAI, run: Run, *outputs: str) -> Watched:
    """Give the outputs of the pending calls, in their order, and watch the run until it stops."""
    watched = Watched()
    given: list[Any] = [
        {"tool_call_id": call[0], "output": output} for call, output in zip(pending_calls(run, with_ids=True), outputs, strict=True)
    ]
    async with sdk.beta.threads.runs.submit_tool_outputs_stream(
        run_id=run.id, thread_id=run.thread_id, tool_outputs=given, event_handler=watched
    ) as stream:
        await stream.until_done()
    return watched


def pending_calls(run: Run, *, with_ids: bool = False) -> list[tuple[str, Any]]:
    """Names and arguments of the calls that a run waits for; or their ids and names."""
    assert run.status == "requires_action", (run.status, run.last_error)
    assert run.required_action is not None
    calls = run.required_action.submit_tool_outputs.tool_calls
    if with_ids:
        return [(call.id, call.function.name) for call in calls]
    return [(call.function.name, msgspec.json.decode(call.function.arguments)) for call in calls]
