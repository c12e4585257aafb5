"""Files that wait for a place, in an order that is fair: projects take turns, and so do the stores of each.

One store's two thousand files do not hold up the first file of another. Pure bookkeeping of one process; the rows are the truth.
"""

import asyncio
from collections import OrderedDict

from mini_assistant.vector_stores.ingest_tasks import IngestTask

_Stores = OrderedDict[str, OrderedDict[int, IngestTask]]


class IngestBacklog:
    """Tasks that wait. Adding one twice does no harm; within a store they come in the order in which they were added."""

    def __init__(self) -> None:
        self._projects: OrderedDict[str, _Stores] = OrderedDict()
        self._has_tasks = asyncio.Event()

    def add(self, task: IngestTask) -> None:
        """Let a task wait behind those of its store; a store, or project, that had none waits behind the others."""
        stores = self._projects.setdefault(task.project_id, OrderedDict())
        stores.setdefault(task.vector_store_id, OrderedDict()).setdefault(task.seq, task)
        self._has_tasks.set()

    async def take(self) -> IngestTask:
        """The next task, waiting until there is one."""
        while not self._projects:
            self._has_tasks.clear()
            await self._has_tasks.wait()
        project_id, stores = self._projects.popitem(last=False)
        vector_store_id, tasks = stores.popitem(last=False)
        _, task = tasks.popitem(last=False)
        if tasks:
            stores[vector_store_id] = tasks  # at the end: the others have their turn first
        if stores:
            self._projects[project_id] = stores
        return task
