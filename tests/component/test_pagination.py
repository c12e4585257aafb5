"""Pages against the whole list: whatever was created and deleted, and wherever a client stands in it, nothing is missed or repeated."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_assistant.db.base import Query
from mini_assistant.db.sqlite import SqliteDatabase
from mini_assistant.db.tables import threads
from mini_assistant.errors import NotFound
from mini_assistant.pagination import Page, forget_deleted_cursors
from mini_assistant.threads.store import _delete_thread, thread_listing  # pyright: ignore[reportPrivateUsage]

insert_thread = Query.insert_into(threads)

# A new object (with the seconds that have passed since the last one), or the deletion of one of those that are there.
Action = tuple[str, int]
actions = st.lists(
    st.one_of(st.tuples(st.just("create"), st.integers(0, 1)), st.tuples(st.just("delete"), st.integers(0, 50))), max_size=25
)
histories = st.tuples(actions, actions)


@dataclass
class Rows:
    """A list of threads in a database, and the same list as it ought to be."""

    db: SqliteDatabase
    project_id: str
    seconds: int = 1_700_000_000
    alive: list[str] = field(default_factory=list[str])
    ever: list[str] = field(default_factory=list[str])

    def name(self, number: int) -> str:
        return f"thread_{self.project_id}_{number}"

    async def act(self, history: list[Action]) -> None:
        for action, number in history:
            if action == "create":
                await self._create(number)
            elif self.alive:
                await self._delete(self.alive[number % len(self.alive)])

    async def _create(self, seconds_later: int) -> None:
        self.seconds += seconds_later
        name = self.name(len(self.ever))
        self.alive.append(name)
        self.ever.append(name)
        await self.db.write([insert_thread(id=name, project_id=self.project_id, created_at=self.seconds, body=f'{{"id":"{name}"}}')])

    async def _delete(self, name: str) -> None:
        self.alive.remove(name)
        keep = thread_listing.keep_place(self.project_id, name, self.seconds)
        await self.db.write([keep, _delete_thread.guard("exists", object_id=name, project_id=self.project_id)])

    def expected(self, order: str) -> list[str]:
        return self.alive if order == "asc" else self.alive[::-1]

    def beyond(self, cursor: str, order: str) -> tuple[list[str], list[str]]:
        """What lies before and behind an object that may be deleted; objects are numbered as they were created."""
        place = self.ever.index(cursor)
        older, newer = [n for n in self.alive if self.ever.index(n) < place], [n for n in self.alive if self.ever.index(n) > place]
        return (older, newer) if order == "asc" else (newer[::-1], older[::-1])

    async def page(self, **query: Any) -> tuple[list[str], bool]:
        answer = msgspec.json.decode(await thread_listing.page(self.db, Page(**query), {"project_id": self.project_id}))
        names = [item["id"] for item in answer["data"]]
        assert (answer["object"], answer["first_id"], answer["last_id"]) == ("list", *((names[0], names[-1]) if names else (None, None)))
        assert len(set(names)) == len(names) <= query["limit"]
        assert set(names) <= set(self.ever), "nothing of other projects"
        return names, answer["has_more"]


OnRows = Callable[[Callable[[Rows], Awaitable[None]]], None]


@pytest.fixture(scope="module")
def on_rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnRows]:
    """Runs a check on an empty list, beside the rows of all checks before it, which are other projects'."""
    db = SqliteDatabase(tmp_path_factory.mktemp("pages") / "rows.sqlite3")
    numbers = count()
    with asyncio.Runner() as runner:
        runner.run(db.open())
        runner.run(Rows(db, "neighbour").act([("create", 0)] * 5))
        yield lambda check: runner.run(check(Rows(db, f"own{next(numbers)}")))
        runner.run(db.close())


@given(histories, st.integers(1, 8), st.sampled_from(["asc", "desc"]))
@settings(max_examples=60, deadline=None)
def test_pages_one_after_another_are_the_whole_list(
    on_rows: OnRows, history: tuple[list[Action], list[Action]], limit: int, order: str
) -> None:
    async def check(rows: Rows) -> None:
        await rows.act([*history[0], *history[1]])
        for direction in ("after", "before"):
            pages: list[list[str]] = []
            expected, cursor, has_more = rows.expected(order), {}, True
            if direction == "before":
                if not expected:
                    return
                cursor, expected = {"before": expected[-1]}, expected[:-1]
            while has_more:
                names, has_more = await rows.page(limit=limit, order=order, **cursor)
                assert len(names) == limit or not has_more
                assert names or not pages, "no page is empty but the first"
                assert len(pages) <= len(expected), "paging comes to an end"
                pages = [*pages, names] if direction == "after" else [names, *pages]
                if names:
                    cursor = {direction: names[-1] if direction == "after" else names[0]}
            assert [name for names in pages for name in names] == expected

    on_rows(check)


@given(histories, st.integers(1, 8), st.sampled_from(["asc", "desc"]), st.data())
@settings(max_examples=60, deadline=None)
def test_a_page_lies_next_to_its_cursors_even_when_they_are_deleted(
    on_rows: OnRows, history: tuple[list[Action], list[Action]], limit: int, order: str, data: st.DataObject
) -> None:
    async def check(rows: Rows) -> None:
        await rows.act([*history[0], *history[1]])
        if not rows.ever:
            return
        cursors = st.sampled_from(rows.ever)
        first, second = data.draw(cursors, label="after"), data.draw(cursors, label="before")
        behind = rows.beyond(first, order)[1]
        assert await rows.page(limit=limit, order=order, after=first) == (behind[:limit], len(behind) > limit)
        ahead = rows.beyond(second, order)[0]
        assert await rows.page(limit=limit, order=order, before=second) == (ahead[-limit:], len(ahead) > limit)
        between = [name for name in behind if name in ahead]
        assert await rows.page(limit=limit, order=order, after=first, before=second) == (between[:limit], len(between) > limit)

    on_rows(check)


@given(histories, st.integers(1, 5), st.sampled_from(["asc", "desc"]))
@settings(max_examples=60, deadline=None)
def test_who_pages_while_others_create_and_delete_misses_nothing_that_stays(
    on_rows: OnRows, history: tuple[list[Action], list[Action]], limit: int, order: str
) -> None:
    async def check(rows: Rows) -> None:
        await rows.act(history[0])
        at_first, changes = list(rows.alive), list(history[1])
        seen, has_more = await rows.page(limit=limit, order=order)
        while has_more:
            await rows.act(changes[:3])
            changes = changes[3:]
            names, has_more = await rows.page(limit=limit, order=order, after=seen[-1])
            seen += names
            assert len(seen) <= len(rows.ever), "paging comes to an end"
        assert len(set(seen)) == len(seen), "nothing twice"
        places = [rows.ever.index(name) for name in seen]
        assert places == sorted(places, reverse=order == "desc")
        stayed = [name for name in at_first if name in rows.alive]
        assert [name for name in seen if name in stayed] == (stayed if order == "asc" else stayed[::-1])
        if order == "asc":
            assert set(rows.alive) <= set(seen), "new ones come at the end"

    on_rows(check)


async def create_three(rows: Rows) -> None:
    await rows.act([("create", 0)] * 3)


@pytest.mark.parametrize("cursor", ["thread_unknown", "", "thread_neighbour_2"])
@pytest.mark.parametrize("direction", ["after", "before"])
def test_a_cursor_that_never_was_in_the_list_is_refused(on_rows: OnRows, direction: str, cursor: str) -> None:
    async def check(rows: Rows) -> None:
        await create_three(rows)
        with pytest.raises(NotFound, match=f"No thread found with id '{cursor}'"):
            await rows.page(limit=5, **{direction: cursor})

    on_rows(check)


def test_a_deleted_cursor_of_another_project_is_refused(on_rows: OnRows) -> None:
    async def check(rows: Rows) -> None:
        third = Rows(rows.db, "third")
        await create_three(third)
        await third.act([("delete", 1)])
        with pytest.raises(NotFound):
            await rows.page(limit=5, after=third.name(1))

    on_rows(check)


def test_deleted_cursors_are_kept_for_their_time_and_no_longer(on_rows: OnRows) -> None:
    async def check(rows: Rows) -> None:
        await create_three(rows)
        await rows.act([("delete", 1)])
        await rows.db.write([forget_deleted_cursors(before=rows.seconds)])
        assert await rows.page(limit=5, order="asc", after=rows.name(1)) == ([rows.name(2)], False)
        await rows.db.write([forget_deleted_cursors(before=rows.seconds + 1)])
        with pytest.raises(NotFound):
            await rows.page(limit=5, after=rows.name(1))

    on_rows(check)


def test_an_empty_list(on_rows: OnRows) -> None:
    async def check(rows: Rows) -> None:
        assert await rows.page(limit=1) == ([], False)

    on_rows(check)
