"""Assistants, threads and runs as the tests need them, made with the official SDK."""

import asyncio
from typing import Any

import openai
from openai.types.beta import Assistant, Thread
from openai.types.beta.function_tool_param import FunctionToolParam
from openai.types.beta.threads import Message, Run
from openai.types.beta.threads.runs import RunStep

from mini_assistant.models.script import Rule, Script, Step
from mini_assistant.models.scripted import ScriptedEndpoint

MODEL = "scripted"
WEATHER: FunctionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK: FunctionToolParam = {"type": "function", "function": {"name": "clock"}}
CALL_WEATHER = 'call weather {"city":"Oslo"}'
"""A message that makes the scripted model call the function."""
CALL_BOTH = 'call weather {"city":"Oslo"} and call clock {}'
POLL_MS = 10
POLLS_MAX = 1000


def answer_with(endpoint: ScriptedEndpoint, *steps: Step) -> None:
    """Every request is answered with these steps."""
    endpoint.script = Script([Rule(list(steps))])


def answer_turns(endpoint: ScriptedEndpoint, *turns: list[Step]) -> None:
    """The first request is answered with the first steps, the second with the second, and so on."""
    endpoint.script = Script([Rule(steps, times=1) for steps in turns])


async def new_assistant(sdk: openai.AsyncOpenAI, **fields: Any) -> Assistant:
    """An assistant of the scripted model."""
    return await sdk.beta.assistants.create(**{"model": MODEL, **fields})


async def thread_saying(sdk: openai.AsyncOpenAI, *texts: str) -> Thread:
    """A thread with messages of the user."""
    return await sdk.beta.threads.create(messages=[{"role": "user", "content": text} for text in texts])


async def start_run(sdk: openai.AsyncOpenAI, text: str = "Hello", *, tools: list[Any] | None = None, **fields: Any) -> Run:
    """A run on a new thread with one message; `fields` are those of the run."""
    assistant = await new_assistant(sdk, tools=tools or [])
    thread = await thread_saying(sdk, text)
    return await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id, **fields)


async def stopped(sdk: openai.AsyncOpenAI, run: Run) -> Run:
    """The run once it needs the client or has ended."""
    return await sdk.beta.threads.runs.poll(run.id, thread_id=run.thread_id, poll_interval_ms=POLL_MS)


async def run_after(sdk: openai.AsyncOpenAI, run: Run, status: str) -> Run:
    """The run once it is not in this status any more, for changes that the SDK's own polling does not wait for."""
    for _ in range(POLLS_MAX):
        known = await sdk.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id)
        if known.status != status:
            return known
        await asyncio.sleep(POLL_MS / 1000)
    raise TimeoutError(f"the run stayed in {status}")


async def finished_run(sdk: openai.AsyncOpenAI, text: str = "Hello", **fields: Any) -> Run:
    """As `start_run`, and wait until it needs the client or has ended."""
    return await stopped(sdk, await start_run(sdk, text, **fields))


def pending_ids(run: Run) -> list[str]:
    """The calls that a run waits for."""
    assert run.required_action is not None
    return [call.id for call in run.required_action.submit_tool_outputs.tool_calls]


async def submit(sdk: openai.AsyncOpenAI, run: Run, *outputs: str) -> Run:
    """Give the outputs of the pending calls, in their order."""
    given: list[Any] = [{"tool_call_id": name, "output": output} for name, output in zip(pending_ids(run), outputs, strict=True)]
    return await sdk.beta.threads.runs.submit_tool_outputs(run.id, thread_id=run.thread_id, tool_outputs=given)


async def messages_of(sdk: openai.AsyncOpenAI, run: Run) -> list[Message]:
    """What the run has written, oldest first."""
    return [message async for message in sdk.beta.threads.messages.list(run.thread_id, run_id=run.id, order="asc")]


async def steps_of(sdk: openai.AsyncOpenAI, run: Run) -> list[RunStep]:
    """The run's steps, oldest first."""
    return [step async for step in sdk.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id, order="asc")]


def text_of(message: Message) -> str:
    """The text of a message with one text part."""
    [part] = message.content
    assert part.type == "text"
    return part.text.value
