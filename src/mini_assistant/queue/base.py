"""The seam of the run queue. A queue carries run ids and nothing else: the run's row is the truth, and a lost id loses nothing,
because the sweeper offers waiting runs again.
"""

from typing import Protocol


class RunQueue(Protocol):
    """Tells workers that a run wants attention: it is new, continued, or being cancelled."""

    def put(self, run_id: str) -> None:
        """Offer a run. Offering one twice, or one that needs nothing, does no harm."""
        ...

    async def get(self) -> str:
        """The next run id, waiting until there is one."""
        ...
