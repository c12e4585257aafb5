"""Gives out a limited number of slots, so that an owner with many requests does not keep the others waiting."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator

_Line = OrderedDict[asyncio.Future[None], None]


class FairSlots:
    """At most `slots` are held at a time. Who waits is served in rounds: each owner once in a round, its requests in the order they came.

    An owner that has not been served in the current round comes before all that have, however many requests those have waiting.
    Taking, giving back and giving up take the same time however many wait. slots: at least 1.
    """

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._lines: dict[str, _Line] = {}
        # The owners that wait: those whose turn in this round is still to come, and those that have to wait for the next.
        self._due: OrderedDict[str, None] = OrderedDict()
        self._later: OrderedDict[str, None] = OrderedDict()
        self._served: set[str] = set()

    @contextlib.asynccontextmanager
    async def held(self, owner: str) -> AsyncGenerator[None]:
        """Wait for a slot, and hold it until the end of the block."""
        await self._take(owner)
        try:
            yield
        finally:
            self._give_back()

    async def _take(self, owner: str) -> None:
        if self._free:  # then nobody waits
            self._free -= 1
            if owner in self._served:
                self._served.clear()
            self._served.add(owner)
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue(owner, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(owner, turn)
            else:
                self._give_back()  # the slot came at the same moment
            raise

    def _queue(self, owner: str, turn: asyncio.Future[None]) -> None:
        if owner not in self._lines:
            self._lines[owner] = OrderedDict()
            (self._later if owner in self._served else self._due)[owner] = None
        self._lines[owner][turn] = None

    def _leave(self, owner: str, turn: asyncio.Future[None]) -> None:
        line = self._lines.get(owner)
        if line is None or turn not in line:
            return  # a slot that was given back has passed it over already
        del line[turn]
        if not line:
            del self._lines[owner]
            self._due.pop(owner, None)
            self._later.pop(owner, None)

    def _give_back(self) -> None:
        """Hand a slot to whose turn it is; keep it when nobody waits."""
        while self._lines:
            if not self._due:
                self._due, self._later = self._later, self._due
                self._served.clear()
            owner = next(iter(self._due))
            line = self._lines[owner]
            turn, _ = line.popitem(last=False)
            is_waiting = not turn.cancelled()
            if is_waiting or not line:
                del self._due[owner]
            if not line:
                del self._lines[owner]
            elif is_waiting:
                self._later[owner] = None
            if is_waiting:
                self._served.add(owner)
                turn.set_result(None)
                return
        self._free += 1
