"""The seam of the task queue. A queue carries ids and nothing else: the row is the truth, and a lost id loses nothing, because the
sweepers offer again what waits.
"""

from typing import Literal, Protocol

TaskKind = Literal["run", "ingest"]
"""What there is to do: execute a run (its id), or ingest a file into a vector store (the `seq` of its row)."""


class TaskQueue(Protocol):
    """Tells workers that a row wants attention: it is new, continued, or being cancelled."""

    def put(self, kind: TaskKind, task_id: str, *, to_all: bool = False) -> None:
        """Offer a task to a worker. Offering one twice, or one that needs nothing, does no harm.

        to_all: tell every worker, because the one that works on the row already has to look at it again.
        """
        ...

    async def get(self, kind: TaskKind) -> str:
        """The next task of this kind, waiting until there is one."""
        ...
