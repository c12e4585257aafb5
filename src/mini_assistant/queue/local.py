"""The queue of the embedded server: a hand-off inside the process."""

import asyncio


class LocalRunQueue:
    """An unbounded queue of short ids; runs that wait are bounded by the rows, and a restart sweeps them up."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[str] = asyncio.Queue()

    def put(self, run_id: str) -> None:
        self._waiting.put_nowait(run_id)

    async def get(self) -> str:
        return await self._waiting.get()
