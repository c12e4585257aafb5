"""The list of threads: titles, search, more pages, deleting one and many; nothing in a title becomes markup."""

import re

import openai
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.playground_server import PlaygroundServer

MARKUP = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"


@pytest.fixture(autouse=True)
def _no_threads(server: PlaygroundServer) -> None:
    """Each test begins without threads."""
    while threads := server.sdk.get("/threads", cast_to=object, options={"params": {"limit": 100}})["data"]:  # type: ignore[index]
        for thread in threads:
            server.sdk.beta.threads.delete(thread["id"])


def new_thread(server: PlaygroundServer, text: str, metadata: dict[str, str] | None = None) -> str:
    return server.sdk.beta.threads.create(messages=[{"role": "user", "content": text}], metadata=metadata).id


def rows(page: Page) -> Locator:
    return page.locator("main .threads > li:visible")


def open_threads(page: Page) -> None:
    page.goto("/playground/#/threads")
    expect(page.get_by_role("heading", name="Threads")).to_be_visible()


def test_threads_are_told_by_their_first_message_the_newest_first(page: Page, server: PlaygroundServer) -> None:
    empty = server.sdk.beta.threads.create().id
    first = new_thread(server, "How tall is\n the   tower? " + "x" * 200, {"city": "Paris"})
    new_thread(server, MARKUP, {MARKUP[:60]: MARKUP})
    open_threads(page)
    expect(rows(page)).to_have_count(3)
    expect(rows(page).nth(0)).to_contain_text(MARKUP[:100])
    expect(rows(page).nth(1)).to_contain_text(re.compile("^How tall is the tower\\? x+…"))
    expect(rows(page).nth(1)).to_contain_text("city: Paris")
    expect(rows(page).nth(2)).to_contain_text("Empty thread")
    expect(rows(page).nth(2)).to_contain_text(empty)
    assert page.locator("main img, main script").count() == 0
    expect(page).to_have_title(re.compile("playground"))
    rows(page).nth(1).get_by_role("link").press("Enter")
    expect(page).to_have_url(re.compile(f"#/threads/{first}$"))


def test_without_threads_the_page_says_so_and_offers_a_new_one(page: Page, server: PlaygroundServer) -> None:
    del server
    open_threads(page)
    expect(page.get_by_text("There are no threads yet.")).to_be_visible()
    expect(page.get_by_role("link", name="New thread")).to_have_attribute("href", "#/threads/new")


def test_the_search_finds_words_of_titles_ids_and_metadata(page: Page, server: PlaygroundServer) -> None:
    apples = new_thread(server, "About Apples and pears")
    plums = new_thread(server, "About plums", {"customer": "Zebra"})
    open_threads(page)
    expect(page.get_by_text("About plums")).to_be_visible()
    search = page.get_by_role("searchbox", name="Search")
    for words, found in (("pears about", "Apples"), ("zebra", "plums"), (apples, "Apples"), (plums.upper(), "plums")):
        search.fill(words)
        expect(rows(page)).to_have_count(1)
        expect(rows(page)).to_contain_text(found)
    expect(page.get_by_role("status").get_by_text("1 of 2 threads")).to_be_visible()
    search.fill("cherries")
    expect(rows(page)).to_have_count(0)
    search.fill("")
    expect(rows(page)).to_have_count(2)


def test_more_threads_are_loaded_when_asked_for(page: Page, server: PlaygroundServer) -> None:
    for number in range(25):
        new_thread(server, f"Question number {number:02}")
    open_threads(page)
    expect(rows(page)).to_have_count(20)
    expect(page.get_by_text("Question number 05")).to_be_visible()
    more = page.get_by_role("button", name="Load more")
    more.press("Enter")
    expect(rows(page)).to_have_count(25)
    expect(more).to_be_hidden()
    expect(page.get_by_text("Question number 00")).to_be_visible()


def test_a_thread_is_deleted_once_that_is_confirmed(page: Page, server: PlaygroundServer) -> None:
    kept, gone = new_thread(server, "Kept"), new_thread(server, "Unwanted")
    open_threads(page)
    expect(page.get_by_text("Unwanted")).to_be_visible()
    delete = page.get_by_role("button", name=f"Delete {gone}")
    dialog = page.get_by_role("dialog", name="Delete the thread “Unwanted”")
    delete.click()
    dialog.get_by_role("button", name="Cancel").click()
    expect(rows(page)).to_have_count(2)
    delete.press("Enter")
    dialog.get_by_role("button", name="Delete").click()
    expect(rows(page)).to_have_count(1)
    expect(rows(page).get_by_role("link")).to_be_focused()
    with pytest.raises(openai.NotFoundError):
        server.sdk.beta.threads.retrieve(gone)
    assert server.sdk.beta.threads.retrieve(kept).id == kept


def test_many_are_deleted_at_once_but_none_that_is_not_seen(page: Page, server: PlaygroundServer) -> None:
    hidden = new_thread(server, "Cherries")
    wanted = [new_thread(server, f"Plums {number}") for number in range(6)]
    open_threads(page)
    expect(page.get_by_text("Plums 0")).to_be_visible()
    expect(page.get_by_text("Cherries")).to_be_visible()
    everything = page.get_by_label("Select all")
    everything.check()
    expect(page.get_by_text("7 threads, 7 selected")).to_be_visible()
    page.get_by_role("searchbox", name="Search").fill("plums")
    expect(page.get_by_text("6 of 7 threads, 6 selected")).to_be_visible()
    page.get_by_label(f"Select {wanted[0]}").uncheck()
    page.get_by_role("button", name="Delete selected").click()
    page.get_by_role("dialog", name="Delete 5 threads").get_by_role("button", name="Delete").click()
    expect(rows(page)).to_have_count(1)
    expect(page.get_by_text("5 of 5 threads deleted.")).to_be_visible()
    left = server.sdk.get("/threads", cast_to=object)["data"]  # type: ignore[index]
    assert {thread["id"] for thread in left} == {hidden, wanted[0]}


def test_what_was_deleted_elsewhere_goes_from_the_list_too(page: Page, server: PlaygroundServer) -> None:
    gone = new_thread(server, "Deleted elsewhere")
    open_threads(page)
    expect(page.get_by_text("Deleted elsewhere")).to_be_visible()
    server.sdk.beta.threads.delete(gone)
    page.get_by_role("button", name=f"Delete {gone}").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(rows(page)).to_have_count(0)
    expect(page.get_by_text("There are no threads yet.")).to_be_visible()
