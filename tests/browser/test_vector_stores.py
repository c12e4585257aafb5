"""The playground's vector stores: files on their way and failed ones, uploads, attributes, and searches with filters."""

import json
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import FilePayload, Locator, Page, Route, expect

from tests.browser.playground_server import PlaygroundServer
from tests.browser.test_shell import serious

_FOOD = b"Anna's favourite food is pizza with olives.\n"
_TRIP = b"The trip to Oslo begins on the third of May at the central station.\n"


def _payload(name: str, content: bytes) -> FilePayload:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": content}


def _open(page: Page, store_id: str) -> None:
    page.goto(f"/playground/#/vector-stores/{store_id}")
    expect(page.get_by_role("heading", name="Files")).to_be_visible()


def _row(page: Page, name: str) -> Locator:
    return page.locator("table tbody tr", has=page.get_by_role("rowheader", name=name))


def _choose(page: Page, *files: FilePayload) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose files…").click()
    chooser.value.set_files(list(files))


def _filled_store(server: PlaygroundServer, name: str) -> str:
    """The id of a store with two files, which have a year and a kind."""
    store_id = server.sdk.vector_stores.create(name=name).id
    for filename, content, attributes in (
        ("food.txt", _FOOD, {"year": 2024, "kind": "note"}),
        ("trip.txt", _TRIP, {"year": 2026, "kind": "plan"}),
    ):
        file = server.sdk.files.create(file=(filename, content), purpose="assistants")
        server.sdk.vector_stores.files.create_and_poll(file.id, vector_store_id=store_id, attributes=attributes, poll_interval_ms=100)
    return store_id


def _search(page: Page, query: str) -> None:
    page.get_by_label("Find passages").fill(query)
    page.get_by_role("button", name="Search", exact=True).click()


def _add_condition(group: Locator, key: str, operator: str, kind: str, value: str) -> None:
    group.get_by_role("button", name="Add condition").first.click()
    condition = group.locator(".condition").last
    condition.get_by_label("Attribute").fill(key)
    condition.get_by_label("Comparison").select_option(operator)
    condition.get_by_label("Kind").select_option(kind)
    condition.get_by_label("Value").fill(value)


def test_a_store_is_made_changed_and_deleted(page: Page, server: PlaygroundServer) -> None:
    page.goto("/playground/#/vector-stores")
    page.get_by_role("link", name="New vector store").click()
    page.get_by_label("Name", exact=True).fill("Handbook")
    page.get_by_label("Description").fill("What all should know")
    page.get_by_label("Expires after days").fill("9")
    metadata = page.get_by_role("group", name="Metadata")
    metadata.get_by_role("button", name="Add to").click()
    metadata.get_by_label("Key").fill("team")
    metadata.get_by_label("Value").fill("north")
    page.get_by_role("button", name="Create").click()
    page.wait_for_url("**/#/vector-stores/vs_*")
    expect(page.get_by_role("heading", name="Handbook")).to_be_visible()
    store_id = page.url.rpartition("/")[2]
    made = server.sdk.vector_stores.retrieve(store_id)
    assert made.name == "Handbook"
    assert made.description == "What all should know"
    assert made.metadata == {"team": "north"}
    assert made.expires_after is not None
    assert made.expires_after.days == 9
    page.get_by_text("Name, expiry and metadata").click()
    page.get_by_label("Name", exact=True).fill("Handbook 2")
    page.get_by_label("Expires after days").fill("")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("heading", name="Handbook 2")).to_be_visible()
    assert server.sdk.vector_stores.retrieve(store_id).expires_after is None
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.wait_for_url("**/#/vector-stores")
    assert store_id not in {store.id for store in server.sdk.vector_stores.list()}


def test_an_error_of_the_api_is_shown_at_its_field(page: Page) -> None:
    page.goto("/playground/#/vector-stores/new")
    days = page.get_by_label("Expires after days")
    days.fill("4000")
    page.get_by_role("button", name="Create").click()
    expect(days).to_be_focused()
    expect(page.locator(".field", has=days).get_by_role("alert")).to_contain_text("days")


def test_many_files_are_uploaded_with_attributes(page: Page, server: PlaygroundServer, shots: Path) -> None:
    store_id = server.sdk.vector_stores.create(name="Many").id
    _open(page, store_id)
    page.get_by_text("Attributes and chunks of new files").click()
    attributes = page.get_by_role("group", name="Attributes of the files")
    attributes.get_by_role("button", name="Add to").click()
    attributes.get_by_label("Key").fill("year")
    attributes.get_by_label("Kind").select_option("number")
    attributes.get_by_label("Value").fill("2026")
    page.get_by_label("Chunks").select_option("static")
    page.get_by_label("Tokens of a chunk").fill("200")
    page.get_by_label("Tokens of overlap").fill("50")
    _choose(page, *[_payload(f"note {place}.txt", _FOOD) for place in range(5)], _payload("picture.png", b"\x89PNG"))
    for place in range(5):
        expect(_row(page, f"note {place}.txt").locator(".badge.ok")).to_have_text("ready")
    failed = _row(page, "picture.png")
    expect(failed.locator(".badge.bad")).to_have_text("failed")
    expect(failed).to_contain_text("not supported")
    expect(page.locator(".upload")).to_have_count(0)
    page.screenshot(path=shots / "vector-store.png", full_page=True)
    good = [file for file in server.sdk.vector_stores.files.list(store_id) if file.status == "completed"]
    assert len(good) == 5
    assert all(file.attributes == {"year": 2026} for file in good)
    chunking = good[0].chunking_strategy
    assert chunking is not None
    assert chunking.type == "static"
    assert chunking.static.max_chunk_size_tokens == 200
    page.get_by_label("Show").select_option("failed")
    expect(failed).to_be_visible()
    expect(_row(page, "note 0.txt")).to_be_hidden()


def test_an_option_that_the_api_refuses_is_shown_and_the_upload_says_so(page: Page, server: PlaygroundServer) -> None:
    _open(page, server.sdk.vector_stores.create(name="Refused").id)
    page.get_by_text("Attributes and chunks of new files").click()
    page.get_by_label("Chunks").select_option("static")
    page.get_by_label("Tokens of a chunk").fill("50")
    _choose(page, _payload("food.txt", _FOOD))
    expect(page.get_by_label("Tokens of a chunk")).to_be_focused()
    expect(page.locator(".upload .error")).to_contain_text("max_chunk_size_tokens")


def test_a_single_file_of_another_type_is_refused_in_words(page: Page, server: PlaygroundServer) -> None:
    _open(page, server.sdk.vector_stores.create(name="One").id)
    _choose(page, _payload("picture.png", b"\x89PNG"))
    expect(page.locator(".upload .error")).to_contain_text("not supported")


def test_files_are_dropped(page: Page, server: PlaygroundServer) -> None:
    _open(page, server.sdk.vector_stores.create(name="Dropped").id)
    page.evaluate(
        """() => {
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File(["A dropped text."], "dropped.txt"));
          for (const type of ["dragover", "drop"]) {
            document.querySelector(".drop").dispatchEvent(new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
          }
        }"""
    )
    expect(_row(page, "dropped.txt").locator(".badge.ok")).to_have_text("ready")


def test_an_upload_is_stopped(page: Page, server: PlaygroundServer) -> None:
    _open(page, server.sdk.vector_stores.create(name="Stopped").id)
    page.route("**/v1/files", lambda route: None)  # never goes on
    _choose(page, _payload("slow.txt", _FOOD))
    expect(page.get_by_role("progressbar", name="Upload of slow.txt")).to_be_visible()
    page.get_by_title("Stop the upload of slow.txt").click()
    expect(page.locator(".upload")).to_have_count(0)
    page.unroute("**/v1/files")


def test_a_button_keeps_the_focus_while_files_are_ingested(page: Page, server: PlaygroundServer) -> None:
    store_id = _filled_store(server, "Ingested")
    answers: list[str] = []

    def answer(route: Route) -> None:
        """The first answers show a file as it was before it had been ingested."""
        response = route.fetch()
        text = response.text()
        answers.append(text)
        route.fulfill(response=response, body=text.replace('"completed"', '"in_progress"', 1) if len(answers) < 3 else text)

    page.route(f"**/vector_stores/{store_id}/files?*", answer)
    _open(page, store_id)
    row = _row(page, "trip.txt")
    expect(row.locator(".badge.busy")).to_have_text("in progress")
    row.get_by_role("button", name="Attributes").focus()
    expect(row.locator(".badge.ok")).to_have_text("ready")
    expect(row.get_by_role("button", name="Attributes")).to_be_focused()
    assert len(answers) == 3
    page.unroute_all(behavior="wait")


def test_files_uploaded_before_are_added(page: Page, server: PlaygroundServer) -> None:
    server.sdk.files.create(file=("earlier.txt", _FOOD), purpose="assistants")
    _open(page, server.sdk.vector_stores.create(name="Earlier").id)
    page.get_by_text("Add files that were uploaded before").click()
    page.get_by_role("checkbox", name="earlier.txt").check()
    page.get_by_role("button", name="Add to this store").click()
    expect(_row(page, "earlier.txt").locator(".badge.ok")).to_have_text("ready")


def test_attributes_text_and_removal_of_a_file(page: Page, server: PlaygroundServer) -> None:
    store_id = _filled_store(server, "Edited")
    _open(page, store_id)
    page.get_by_role("button", name="Attributes of food.txt").click()
    dialog = page.get_by_role("dialog", name="Attributes of food.txt")
    dialog.get_by_role("button", name="Add to").click()
    dialog.get_by_label("Key").last.fill("final")
    dialog.get_by_label("Kind").last.select_option("boolean")
    dialog.get_by_label("Value").last.fill("maybe")
    dialog.get_by_role("button", name="Save").click()
    expect(dialog.get_by_role("alert")).to_have_text("Write true or false.")
    dialog.get_by_label("Value").last.fill("true")
    dialog.get_by_role("button", name="Save").click()
    expect(_row(page, "food.txt")).to_contain_text("final: true")
    changed = next(file for file in server.sdk.vector_stores.files.list(store_id) if file.attributes and "final" in file.attributes)
    assert changed.attributes == {"year": 2024, "kind": "note", "final": True}
    page.get_by_role("button", name="Text of food.txt").click()
    expect(page.get_by_role("dialog", name="food.txt")).to_contain_text("pizza with olives")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Remove food.txt").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(_row(page, "food.txt")).to_have_count(0)
    expect(_row(page, "trip.txt")).to_be_visible()


def test_a_search_shows_passages_with_their_scores(page: Page, server: PlaygroundServer, shots: Path) -> None:
    _open(page, _filled_store(server, "Searched"))
    _search(page, "favourite food of Anna")
    first = page.locator(".found-passage").first
    expect(first).to_contain_text("food.txt")
    expect(first).to_contain_text("pizza with olives")
    expect(first).to_contain_text("year: 2024")
    score = float(first.locator(".score span").inner_text().removeprefix("score "))
    widths = first.locator(".score .track").evaluate("(track) => track.firstChild.clientWidth / track.clientWidth")
    assert 0 < score <= 1
    assert abs(widths - score) < 0.05
    page.screenshot(path=shots / "vector-store-search.png", full_page=True)
    page.get_by_text("Options and filters").click()
    page.get_by_label("Score threshold").fill("1")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.locator(".found")).to_contain_text("0 passages")


def test_filters_are_put_together_and_shown_as_json(page: Page, server: PlaygroundServer) -> None:
    _open(page, _filled_store(server, "Filtered"))
    page.get_by_text("Options and filters").click()
    page.get_by_label("Rewrite the query").check()
    filters = page.get_by_role("group", name="Filters", exact=True)
    _add_condition(filters, "year", "gte", "number", "2025")
    shown = page.get_by_label("Filters as JSON")
    assert json.loads(shown.inner_text()) == {"type": "gte", "key": "year", "value": 2025}
    filters.get_by_role("button", name="Add group").click()
    group = page.get_by_role("group", name="Group of filters")
    group.get_by_label("How the conditions").select_option("or")
    _add_condition(group, "kind", "eq", "text", "note")
    _add_condition(group, "kind", "in", "text", "plan, list")
    either = [{"type": "eq", "key": "kind", "value": "note"}, {"type": "in", "key": "kind", "value": ["plan", "list"]}]
    whole = {"type": "and", "filters": [{"type": "gte", "key": "year", "value": 2025}, {"type": "or", "filters": either}]}
    assert json.loads(shown.inner_text()) == whole
    with page.expect_request("**/search") as sent:
        _search(page, "favourite food of Anna")
    assert sent.value.post_data_json == {"query": "favourite food of Anna", "rewrite_query": True, "filters": whole}
    expect(page.locator(".found-passage")).to_have_count(1)
    expect(page.locator(".found-passage")).to_contain_text("trip.txt")


def test_a_wrong_value_of_a_filter_is_not_sent(page: Page, server: PlaygroundServer) -> None:
    _open(page, _filled_store(server, "Wrong"))
    page.get_by_text("Options and filters").click()
    _add_condition(page.get_by_role("group", name="Filters", exact=True), "year", "eq", "number", "soon")
    _search(page, "food")
    expect(page.get_by_label("Value")).to_be_focused()
    expect(page.get_by_role("alert")).to_have_text("This is not a number.")


def test_names_with_markup_stay_text(page: Page, server: PlaygroundServer) -> None:
    markup = "<img src=x onerror=alert(1)>"
    store_id = server.sdk.vector_stores.create(name=markup, metadata={"m": markup}).id
    file = server.sdk.files.create(file=(f"{markup}.txt", f"{markup} pizza".encode()), purpose="assistants")
    server.sdk.vector_stores.files.create_and_poll(file.id, vector_store_id=store_id, attributes={"m": markup}, poll_interval_ms=100)
    _open(page, store_id)
    expect(page.get_by_role("heading", name=markup)).to_be_visible()
    expect(_row(page, markup)).to_be_visible()
    _search(page, "pizza")
    expect(page.locator(".found-passage")).to_contain_text(markup)
    assert page.locator("main img").count() == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_what_can_be_opened(page: Page, server: PlaygroundServer, theme: Literal["light", "dark"]) -> None:
    store_id = _filled_store(server, "Accessible")
    picture = server.sdk.files.create(file=("picture.png", b"\x89PNG"), purpose="assistants")
    server.sdk.vector_stores.file_batches.create(store_id, file_ids=[picture.id])
    page.emulate_media(color_scheme=theme, reduced_motion="reduce")
    _open(page, store_id)
    _search(page, "food")
    expect(page.locator(".found-passage").first).to_be_visible()
    page.evaluate("document.querySelectorAll('details').forEach((details) => (details.open = true))")
    page.get_by_role("button", name="Add condition").click()
    page.get_by_role("button", name="Add group").click()
    expect(page.get_by_role("checkbox", name="food.txt").first).to_be_visible()
    assert serious(page) == []
    page.get_by_role("button", name="Attributes of food.txt").click()
    assert serious(page) == []


def test_the_view_fits_a_phone(page: Page, server: PlaygroundServer, shots: Path) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    _open(page, _filled_store(server, "A store on a phone " + "x" * 80))
    _search(page, "favourite food of Anna")
    expect(page.locator(".found-passage").first).to_be_visible()
    page.get_by_text("Options and filters").click()
    page.get_by_role("button", name="Add condition").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.screenshot(path=shots / "vector-store-phone.png", full_page=True)
