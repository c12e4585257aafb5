"""Slots are shared in rounds by owner, in order within one, and none is ever lost."""

import asyncio
import random
from collections import Counter

import pytest

from mini_assistant.models.fair_slots import FairSlots


class Requests:
    """Requests that hold a slot until they are told to end; `served` names them in the order in which they got one."""

    def __init__(self, slots: int) -> None:
        self.slots = FairSlots(slots)
        self.served: list[str] = []
        self.holding: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def add(self, *names: str) -> None:
        """Requests by names such as `a1`, whose first letter is the owner."""
        for name in names:
            self.tasks[name] = asyncio.create_task(self._run(name))
        await rounds_of_the_loop()

    async def _run(self, name: str) -> None:
        async with self.slots.held(name[0]):
            self.served.append(name)
            self.holding[name] = asyncio.Event()
            try:
                await self.holding[name].wait()
            finally:
                del self.holding[name]

    async def end(self, name: str) -> None:
        """End a request that holds a slot; the next one gets it."""
        self.holding[name].set()
        await self.tasks[name]
        await rounds_of_the_loop()

    async def end_all(self) -> None:
        """End what holds a slot, whoever it is, until nobody waits."""
        while self.holding:
            await self.end(next(iter(self.holding)))

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        await asyncio.gather(self.tasks[name], return_exceptions=True)
        await rounds_of_the_loop()


async def rounds_of_the_loop() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_as_many_as_there_are_slots() -> None:
    requests = Requests(2)
    await requests.add("a1", "a2", "a3")
    assert requests.served == ["a1", "a2"]
    await requests.end("a2")
    assert requests.served == ["a1", "a2", "a3"]


async def test_owners_take_turns_and_each_is_served_in_order() -> None:
    requests = Requests(1)
    await requests.add("a1", "a2", "a3", "a4", "b1", "b2", "c1")
    await requests.end_all()
    assert requests.served == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


async def test_a_newcomer_is_next_however_many_others_wait() -> None:
    requests = Requests(1)
    await requests.add("a0")
    await requests.add(*[f"a{number}" for number in range(1, 1001)])
    await requests.add("b1")
    await requests.end("a0")
    assert requests.served == ["a0", "b1"]
    await requests.end("b1")
    assert requests.served == ["a0", "b1", "a1"]
    for name in [name for name in requests.tasks if name.startswith("a")]:
        requests.tasks[name].cancel()
    await asyncio.gather(*requests.tasks.values(), return_exceptions=True)


async def test_owners_that_come_again_and_again_do_not_keep_another_waiting() -> None:
    requests = Requests(1)
    await requests.add("b0", "c0", "a1", "a2", "a3")
    for number in range(8):
        held = next(iter(requests.holding))
        await requests.end(held)
        if held[0] != "a":
            await requests.add(f"{held[0]}{number + 1}")  # a client that asks for the next at once
    assert Counter(name[0] for name in requests.served[:9]) == {"a": 3, "b": 3, "c": 3}
    await requests.end_all()


async def test_one_that_stops_waiting_leaves_no_hole() -> None:
    requests = Requests(1)
    await requests.add("a1", "a2", "b1", "b2", "c1")
    await requests.cancel("b1")
    await requests.cancel("c1")
    await requests.end_all()
    assert requests.served == ["a1", "b2", "a2"]


async def test_all_of_an_owner_stop_waiting() -> None:
    requests = Requests(1)
    await requests.add("a1", "b1", "b2", "a2")
    await requests.cancel("b1")
    await requests.cancel("b2")
    await requests.end_all()
    assert requests.served == ["a1", "a2"]


async def test_one_that_is_cancelled_just_before_its_turn_is_passed_over() -> None:
    requests = Requests(1)
    await requests.add("a1", "b1", "c1")
    requests.tasks["b1"].cancel()  # it has not noticed yet when the slot comes back
    requests.holding["a1"].set()
    await rounds_of_the_loop()
    assert requests.served == ["a1", "c1"]
    await requests.end_all()


async def test_one_that_is_cancelled_just_after_its_turn_passes_the_slot_on() -> None:
    slots = FairSlots(1)
    served: list[str] = []

    async def hold(owner: str) -> None:
        async with slots.held(owner):
            served.append(owner)

    first = slots.held("a")
    await first.__aenter__()
    waiting = [asyncio.create_task(hold(owner)) for owner in "bc"]
    await rounds_of_the_loop()
    await first.__aexit__(None, None, None)  # the slot is b's now, who has not woken up
    waiting[0].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert served == ["c"]
    async with asyncio.timeout(1):
        await hold("d")


async def test_a_failure_gives_the_slot_back() -> None:
    slots = FairSlots(1)
    with pytest.raises(RuntimeError):
        async with slots.held("a"):
            raise RuntimeError
    async with asyncio.timeout(1), slots.held("b"):
        pass


@pytest.mark.parametrize("seed", range(5))
async def test_no_slot_is_lost_or_added_under_any_order_of_events(seed: int) -> None:
    chance = random.Random(seed)
    requests = Requests(3)
    for number in range(200):
        match chance.choice(["add", "add", "end", "cancel"]):
            case "end" if requests.holding:
                requests.holding[chance.choice(list(requests.holding))].set()
            case "cancel" if requests.tasks:
                chance.choice(list(requests.tasks.values())).cancel()
            case _:
                name = f"{chance.choice('abcd')}{number}"
                requests.tasks[name] = asyncio.create_task(requests._run(name))
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(0)
        assert len(requests.holding) <= 3
    await rounds_of_the_loop()
    await requests.end_all()
    assert all(task.done() for task in requests.tasks.values()), "somebody waits for a slot that is free"
    await requests.add("a1", "a2", "a3", "a4")
    assert len(requests.holding) == 3
    await requests.end_all()
