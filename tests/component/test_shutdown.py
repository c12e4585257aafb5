"""What happens to runs and their readers when the server is told to stop, and when it is full."""

import asyncio
import dataclasses

import aiohttp
import openai

from mini_assistant.app import running_server
from mini_assistant.models.script import Rule, Script, Stall, Text
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.settings import Settings


def client(address: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="test-key", max_retries=0, timeout=20)


async def new_run(sdk: openai.AsyncOpenAI) -> tuple[str, str]:
    """A run on a thread of its own; gives the ids of both."""
    assistant = await sdk.beta.assistants.create(model="gpt-4o")
    thread = await sdk.beta.threads.create(messages=[{"role": "user", "content": "Hello there"}])
    run = await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id)
    return thread.id, run.id


async def frames_of(address: str, thread_id: str, run_id: str, attached: asyncio.Event) -> list[str]:
    """Every frame that a re-attached stream sends. attached: set when the answer has begun to arrive."""
    received = ""
    async with (
        aiohttp.ClientSession(address, timeout=aiohttp.ClientTimeout(total=20)) as session,
        session.get(f"/v1/threads/{thread_id}/runs/{run_id}/events") as stream,
    ):
        async for data in stream.content.iter_any():
            received += data.decode()
            if "thread.message.delta" in received:
                attached.set()
    return [frame for frame in received.split("\n\n") if frame]


async def test_open_streams_end_in_order_and_their_runs_go_on_after_the_restart(settings: Settings, endpoint: ScriptedEndpoint) -> None:
    settings = dataclasses.replace(settings, shutdown_grace_seconds=0.1)
    endpoint.script = Script([Rule([Text("As far as"), Stall()])])
    async with running_server(settings) as address, asyncio.timeout(30):
        async with client(address) as sdk:
            thread_id, run_id = await new_run(sdk)
        attached = asyncio.Event()
        reading = asyncio.create_task(frames_of(address, thread_id, run_id, attached))
        await attached.wait()
    frames = await reading
    assert "event: error" in frames[-2]
    assert "The server is stopping" in frames[-2]
    assert frames[-1] == "event: done\ndata: [DONE]"

    endpoint.script = Script()
    async with running_server(settings) as address, client(address) as sdk:
        run = await sdk.beta.threads.runs.poll(run_id, thread_id=thread_id)
        assert run.status == "completed"
        messages = (await sdk.beta.threads.messages.list(thread_id)).data
        assert [message.content[0].text.value for message in messages] == ["You said: Hello there", "Hello there"]


async def test_a_waiting_run_is_cancelled_although_no_place_is_free(settings: Settings, endpoint: ScriptedEndpoint) -> None:
    endpoint.script = Script([Rule([Stall()])])
    async with running_server(dataclasses.replace(settings, run_concurrency_max=1)) as address, client(address) as sdk:
        first_thread, first = await new_run(sdk)
        await endpoint.wait_for_streams(1)
        thread_id, waiting = await new_run(sdk)
        assert (await sdk.beta.threads.runs.cancel(waiting, thread_id=thread_id)).status == "cancelling"
        assert (await sdk.beta.threads.runs.poll(waiting, thread_id=thread_id, poll_interval_ms=20)).status == "cancelled"
        assert (await sdk.beta.threads.runs.retrieve(first, thread_id=first_thread)).status == "in_progress"
