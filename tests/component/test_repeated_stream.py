"""A streamed call that is repeated with its `Idempotency-Key` when the server has forgotten the live events: they are told from rows."""

import asyncio
import re

import aiohttp

from mini_assistant.app import running_server
from mini_assistant.settings import Settings

KEY = {"Idempotency-Key": "the same"}


async def post(address: str, path: str, body: dict[str, object], headers: dict[str, str] | None = None) -> tuple[int, str]:
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.request("POST", f"{address}/v1/{path}", json=body, headers=headers, timeout=timeout) as answer:
        return answer.status, await answer.text()


async def created(address: str, path: str, body: dict[str, object]) -> str:
    status, text = await post(address, path, body)
    assert status == 200
    return re.findall(r'"id":"(\w+)"', text)[0]


def told(stream: str) -> list[str]:
    """The events without the deltas, which may be cut in another way."""
    return [name for name in re.findall("^event: (.*)$", stream, re.MULTILINE) if not name.endswith(".delta")]


async def test_after_a_restart_the_same_stream_is_told_again(settings: Settings) -> None:
    async with running_server(settings) as address:
        assistant_id = await created(address, "assistants", {"model": "m"})
        thread_id = await created(address, "threads", {"messages": [{"role": "user", "content": "Hello"}]})
        call = f"threads/{thread_id}/runs", {"assistant_id": assistant_id, "stream": True}, KEY
        first = await post(address, *call)
        at_once = await post(address, *call)
    async with running_server(settings) as address:
        after_restart = await post(address, *call)
        async with aiohttp.ClientSession(base_url=address) as session, session.delete(f"/v1/threads/{thread_id}") as answer:
            assert answer.status == 200
        assert (await post(address, *call))[0] == 404
    assert told(first[1])[-2:] == ["thread.run.completed", "done"]
    assert first == at_once
    assert told(after_restart[1]) == told(first[1])
    assert '"value":"You said: Hello"' in after_restart[1]


async def test_a_repeat_while_the_run_is_going_on_gets_its_events_from_the_start(settings: Settings) -> None:
    async with running_server(settings) as address:
        assistant_id = await created(address, "assistants", {"model": "m"})
        thread_id = await created(address, "threads", {"messages": [{"role": "user", "content": "Hello"}]})
        call = f"threads/{thread_id}/runs", {"assistant_id": assistant_id, "stream": True}, KEY
        answers = await asyncio.gather(*(post(address, *call) for _ in range(5)))
        assert {status for status, _ in answers} == {200}
        assert len({text for _, text in answers}) == 1
