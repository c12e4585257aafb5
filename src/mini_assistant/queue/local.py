"""The queue of the embedded server: a hand-off inside the process."""

import asyncio
from typing import get_args

from mini_assistant.queue.base import TaskKind


class LocalTaskQueue:
    """Unbounded queues of short ids; tasks that wait are bounded by the rows, and a restart sweeps them up."""

    def __init__(self) -> None:
        self._waiting: dict[TaskKind, asyncio.Queue[str]] = {kind: asyncio.Queue() for kind in get_args(TaskKind)}

    def put(self, kind: TaskKind, task_id: str, *, to_all: bool = False) -> None:
        self._waiting[kind].put_nowait(task_id)

    async def get(self, kind: TaskKind) -> str:
        return await self._waiting[kind].get()
