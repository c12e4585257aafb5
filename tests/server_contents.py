"""Objects of every kind in a server, and everything of them that a client can see: what has to be the same behind another server."""

from typing import Any

import aiohttp
import openai

LISTS = ["/assistants", "/threads", "/files", "/vector_stores"]


async def fill(address: str) -> tuple[str, str]:
    """Objects of every kind; gives a vector store and a thread."""
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="test-key", max_retries=0, timeout=30) as sdk:
        file = await sdk.files.create(file=("zebra.txt", b"The zebra runs at night. " * 40), purpose="assistants")
        store = await sdk.vector_stores.create(name="animals", file_ids=[file.id])
        await sdk.vector_stores.files.poll(file.id, vector_store_id=store.id, poll_interval_ms=50)
        await sdk.vector_stores.files.update(file.id, vector_store_id=store.id, attributes={"kind": "animal", "legs": 4, "wild": True})
        assistant = await sdk.beta.assistants.create(
            model="gpt-4o", tools=[{"type": "file_search"}], tool_resources={"file_search": {"vector_store_ids": [store.id]}}
        )
        for number in range(3):
            thread = await sdk.beta.threads.create(messages=[{"role": "user", "content": f"Hello {number} \u0000 ü"}])
            run = await sdk.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id, poll_interval_ms=20)
            assert run.status == "completed", run.last_error
        gone = await sdk.beta.threads.create()
        await sdk.beta.threads.delete(gone.id)
    return store.id, thread.id


async def seen(address: str, store_id: str) -> dict[str, Any]:
    """What a client can see: every list, with what is below it, a search, and the bytes of the files."""
    answer: dict[str, Any] = {}
    async with aiohttp.ClientSession(address, timeout=aiohttp.ClientTimeout(total=30)) as session:

        async def get(path: str) -> Any:
            async with session.get(f"/v1{path}") as response:
                assert response.status == 200, path
                answer[path] = await response.json()
            return answer[path]

        for path in LISTS:
            await get(path)
        for thread in answer["/threads"]["data"]:
            await get(f"/threads/{thread['id']}/messages")
            for run in (await get(f"/threads/{thread['id']}/runs"))["data"]:
                await get(f"/threads/{thread['id']}/runs/{run['id']}/steps")
        await get(f"/vector_stores/{store_id}/files")
        for filters in (None, {"type": "eq", "key": "legs", "value": 4}, {"type": "eq", "key": "wild", "value": False}):
            body = {"query": "when does the zebra run", "filters": filters} if filters else {"query": "when does the zebra run"}
            async with session.post(f"/v1/vector_stores/{store_id}/search", json=body) as response:
                answer[f"search {filters}"] = await response.json()
        for file in answer["/files"]["data"]:
            async with session.get(f"/v1/files/{file['id']}/content") as response:
                answer[file["id"]] = await response.read()
    return answer
