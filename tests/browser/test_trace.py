"""The trace of a run: its fields, steps on the axis, tokens and shares, and events, of runs that are over and of one that goes on."""

import json
import re
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, expect

from tests.browser.playground_server import PlaygroundServer

MARKUP = "<img src=x onerror=\"document.title='hacked'\">"
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CODE = "print('4' + '2')"


def calls(name: str, **arguments: object) -> dict[str, Any]:
    return {"do": "tool_calls", "calls": [{"name": name, "arguments": json.dumps(arguments)}]}


def new_run(server: PlaygroundServer, text: str = "Go", *, waits: bool = True, **assistant: Any) -> Any:
    """A run of a new assistant on a new thread; waits: until it has stopped."""
    runs = server.sdk.beta.threads.runs
    created = server.sdk.beta.assistants.create(model="scripted", **assistant)
    thread = server.sdk.beta.threads.create(messages=[{"role": "user", "content": text}])
    start = runs.create_and_poll if waits else runs.create
    return start(thread_id=thread.id, assistant_id=created.id)


def open_trace(page: Page, run: Any) -> None:
    page.goto(f"/playground/#/threads/{run.thread_id}/runs/{run.id}")
    expect(page.get_by_role("heading", name="Run", exact=False).first).to_be_visible()


def step(page: Page, name: str) -> Locator:
    """The details of the step whose line has this name, opened."""
    details = page.locator("details.trace-step", has_text=name).first
    details.locator("summary").first.press("Enter")
    expect(details).to_have_attribute("open", "")
    return details


def fact(page: Page, name: str) -> Locator:
    return page.locator("dl.facts > div", has=page.locator("dt", has_text=re.compile(f"^{name}$"))).locator("dd")


def test_a_run_that_is_over_is_told_with_steps_tokens_and_events(page: Page, server: PlaygroundServer) -> None:
    server.script(
        {"after_tool": False, "steps": [calls("code_interpreter", code=CODE)]},
        {"steps": [{"do": "text", "text": f"It is 42. {MARKUP}"}]},
    )
    run = new_run(server, tools=[{"type": "code_interpreter"}])
    assert (run.status, run.usage.total_tokens > 0) == ("completed", True)
    open_trace(page, run)

    expect(page.locator("h1 .badge")).to_have_text("completed")
    expect(fact(page, "Model")).to_have_text("scripted")
    expect(fact(page, "Tokens")).to_contain_text(str(run.usage.total_tokens))
    expect(fact(page, "Waited in the queue")).to_have_text(re.compile(r"^(<1|\d+) s$"))
    code = step(page, "1. code_interpreter")
    expect(code.get_by_label("Code")).to_have_text(CODE)
    expect(code.get_by_label("Logs")).to_contain_text("42")
    message = step(page, "2. message")
    expect(message.get_by_label("Text of the message")).to_have_text(f"It is 42. {MARKUP}")
    assert page.locator("main img").count() == 0

    table = page.get_by_role("table", name="Time and tokens of each part")
    names = table.get_by_role("rowheader").all_text_contents()
    assert names == ["Queue", "1. code_interpreter", "2. message", "Between the steps", "Whole run"]
    tokens = [row.get_by_role("cell").nth(5).text_content() for row in table.locator("tbody tr").all()]
    assert tokens[-1] == str(run.usage.total_tokens)
    assert sum(int(count) for count in tokens[:-1] if count) == run.usage.total_tokens
    expect(table.locator("tbody tr").last.get_by_role("cell").nth(6)).to_have_text("100 %")


def test_events_are_filtered_opened_and_copied(page: Page, server: PlaygroundServer) -> None:
    server.script({"steps": [{"do": "text", "text": ["One ", "two ", "three"]}]})
    run = new_run(server)
    open_trace(page, run)
    events = page.get_by_role("region", name="Events")
    listed = events.locator(".trace-events > li")
    expect(events.get_by_role("status")).to_have_text(re.compile(r"^\d+ events\.$"))
    expect(listed.first).to_contain_text("thread.run.created")
    expect(listed.last).to_contain_text("thread.run.completed")
    everything = listed.count()
    types = events.get_by_label("Type of event")
    types.select_option("no-deltas")
    fewer = listed.count()
    assert 0 < fewer < everything
    types.select_option("thread.run.completed")
    expect(listed).to_have_count(1)
    listed.locator("summary").press("Enter")
    shown = json.loads(listed.get_by_label("The event as JSON").text_content() or "")
    assert (shown["id"], shown["status"]) == (run.id, "completed")
    types.select_option("all")
    expect(listed).to_have_count(everything)
    events.get_by_role("button", name="Copy as JSON lines").click()
    expect(events.get_by_role("status")).to_have_text("Copied.")
    lines = [json.loads(line) for line in page.evaluate("navigator.clipboard.readText()").splitlines()]
    assert len(lines) == everything
    assert [lines[0]["event"], lines[-1]["event"]] == ["thread.run.created", "thread.run.completed"]
    assert lines[-1]["data"]["id"] == run.id


def test_a_run_that_goes_on_is_followed(page: Page, server: PlaygroundServer) -> None:
    server.script({"steps": [{"do": "text", "text": ["tok "], "repeat": 60, "delay_seconds": 0.05}]})
    run = new_run(server, waits=False)
    open_trace(page, run)
    expect(page.locator("h1 .badge")).to_have_text(re.compile("queued|in_progress"))
    line = page.locator("details.trace-step", has_text="1. message")
    expect(line).to_be_visible()
    line.locator("summary").first.focus()
    expect(page.locator("h1 .badge")).to_have_text("completed")
    expect(page.get_by_role("region", name="Events").locator(".trace-events > li").last).to_contain_text("thread.run.completed")
    # The page has been drawn anew many times, and the keyboard is still where it was.
    expect(line.locator("summary").first).to_be_focused()
    expect(fact(page, "Tokens")).to_contain_text("completion")


def test_a_function_call_is_told_with_arguments_and_output(page: Page, server: PlaygroundServer) -> None:
    server.script({"after_tool": False, "steps": [calls("get_weather", city=MARKUP)]}, {"steps": [{"do": "text", "text": "Cold."}]})
    run = new_run(server, tools=[WEATHER])
    assert run.status == "requires_action"
    open_trace(page, run)
    expect(fact(page, "Waits for")).to_have_text("outputs of get_weather")
    call = step(page, "1. get_weather")
    expect(call.get_by_label("Arguments")).to_contain_text(f'"city": {json.dumps(MARKUP)}')
    expect(call.get_by_text("No output yet")).to_be_visible()
    outputs = [{"tool_call_id": run.required_action.submit_tool_outputs.tool_calls[0].id, "output": '{"sky":"grey"}'}]
    server.sdk.beta.threads.runs.submit_tool_outputs_and_poll(run_id=run.id, thread_id=run.thread_id, tool_outputs=outputs)
    page.get_by_role("button", name="Refresh").click()
    expect(page.locator("h1 .badge")).to_have_text("completed")
    expect(call.get_by_label("Output", exact=True)).to_contain_text('"sky": "grey"')  # it has stayed open
    expect(page.locator("details.trace-step", has_text="2. message")).to_be_visible()
    assert page.locator("main img").count() == 0


def test_a_search_is_told_with_scores_and_passages(page: Page, server: PlaygroundServer) -> None:
    sdk = server.sdk
    store = sdk.vector_stores.create(name="Food")
    file = sdk.files.create(file=(f"{MARKUP}.txt".replace("/", ""), b"Anna likes pizza most of all. " * 3), purpose="assistants")
    sdk.vector_stores.files.create_and_poll(file.id, vector_store_id=store.id)
    server.script(
        {"after_tool": False, "steps": [calls("file_search", queries=["favourite food"])]}, {"steps": [{"do": "text", "text": "Pizza."}]}
    )
    resources = {"file_search": {"vector_store_ids": [store.id]}}
    run = new_run(server, tools=[{"type": "file_search"}], tool_resources=resources)
    assert run.status == "completed"
    open_trace(page, run)
    found = step(page, "1. file_search").get_by_role("table", name="Results")
    expect(found).to_contain_text(file.filename)
    expect(found.get_by_role("cell").nth(1)).to_have_text(re.compile(r"^[01]\.\d{3}$"))
    found.locator("summary").press("Enter")
    expect(found.get_by_label("Passage")).to_contain_text("Anna likes pizza")
    page.get_by_role("button", name="Refresh").click()
    expect(page.get_by_role("region", name="Events").get_by_role("status")).to_have_text(re.compile("events"))
    expect(found.get_by_label("Passage")).to_contain_text("Anna likes pizza")  # what was opened has stayed so
    assert page.locator("main img").count() == 0


def test_a_run_that_failed_says_why(page: Page, server: PlaygroundServer) -> None:
    server.script({"steps": [{"do": "text", "text": "Half of "}, {"do": "error_frame", "message": f"The model broke. {MARKUP}"}]})
    run = new_run(server)
    assert run.status == "failed"
    open_trace(page, run)
    expect(page.locator("h1 .badge")).to_have_text("failed")
    expect(fact(page, "Last error")).to_contain_text(run.last_error.code)
    expect(page.locator(".bar.is-failed")).to_have_count(1)
    assert page.locator("main img").count() == 0


def test_figures_of_code_are_shown_when_asked_for(page: Page, server: PlaygroundServer) -> None:
    dot = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
    drawn = f"import base64\nclass Dot:\n    def _repr_png_(self):\n        return base64.b64decode('{dot}')\nDot()"
    server.script({"after_tool": False, "steps": [calls("code_interpreter", code=drawn)]}, {"steps": [{"do": "text", "text": "Drawn."}]})
    open_trace(page, new_run(server, tools=[{"type": "code_interpreter"}]))
    code = step(page, "1. code_interpreter")
    code.get_by_role("button", name="Show the figure").press("Enter")
    image = code.get_by_role("img")
    expect(image).to_have_attribute("src", re.compile("^blob:"))
    assert image.evaluate("async (image) => { await image.decode(); return image.naturalWidth; }") == 1


def test_a_broken_line_is_taken_up_where_it_broke(page: Page, server: PlaygroundServer) -> None:
    server.script({"steps": [{"do": "text", "text": ["tok "], "repeat": 20}]})
    run = new_run(server)
    asked: list[str | None] = []

    def cut_the_first(route: Any) -> None:
        asked.append(route.request.headers.get("last-event-id"))
        if len(asked) > 1:
            route.continue_()
            return
        whole = route.fetch()
        frames = whole.text().split("\n\n")
        route.fulfill(response=whole, body="\n\n".join(frames[:4]) + "\n\n")

    page.route("**/events", cut_the_first)
    open_trace(page, run)
    listed = page.get_by_role("region", name="Events").locator(".trace-events > li")
    expect(listed.last).to_contain_text("thread.run.completed")
    assert len(asked) == 2
    assert asked[0] is None
    assert asked[1]
    names = [text.split(" ")[0] for text in listed.locator("summary code").all_text_contents()]
    assert names.count("thread.run.created") == names.count("thread.run.completed") == 1


def test_events_are_told_anew_when_a_restart_has_forgotten_the_place(page: Page, server: PlaygroundServer) -> None:
    server.script({"steps": [{"do": "text", "text": ["tok "], "repeat": 20}]})
    run = new_run(server)
    asked: list[str | None] = []

    def forget_the_place(route: Any) -> None:
        last = route.request.headers.get("last-event-id")
        asked.append(last)
        if last:
            route.fulfill(status=400, json={"error": {"message": "Gone", "type": "invalid_request_error", "code": "events_gone"}})
        elif len(asked) == 1:
            whole = route.fetch()
            route.fulfill(response=whole, body="\n\n".join(whole.text().split("\n\n")[:4]) + "\n\n")
        else:
            route.continue_()

    page.route("**/events", forget_the_place)
    open_trace(page, run)
    listed = page.get_by_role("region", name="Events").locator(".trace-events > li")
    expect(listed.last).to_contain_text("thread.run.completed")
    assert [bool(last) for last in asked] == [False, True, False]
    assert listed.locator("summary code").all_text_contents().count("thread.run.created") == 1


def test_the_arithmetic_of_time(playground: Page) -> None:
    run = {"created_at": 100, "started_at": 102, "completed_at": 120, "status": "completed", "usage": None}
    details = {"type": "message_creation", "message_creation": {"message_id": "msg_1"}}
    steps = [
        {"id": "a", "created_at": 104, "completed_at": 110, "status": "completed", "step_details": details, "usage": None},
        {"id": "b", "created_at": 108, "failed_at": 112, "status": "failed", "step_details": details, "usage": None},
    ]
    script = """async ([run, steps]) => {
      const { axisTicks, parts, seconds } = await import("/playground/trace_times.js");
      const whole = parts(run, steps, 500);
      const empty = parts({ created_at: 100, started_at: null, status: "queued" }, [], 107);
      return [whole.parts.map(({ after, took }) => [after, took]), whole.total, empty.queued, axisTicks(20), axisTicks(0), seconds(3725)];
    }"""
    spans, total, queued, ticks, none, told = playground.evaluate(script, [run, steps])
    assert spans == [[0, 2], [4, 6], [8, 4], [0, 10]]
    assert (total, queued, ticks, none, told) == (20, 7, [0, 5, 10, 15, 20], [0, 1], "1 h 2 min")


def test_a_run_that_is_not_there_is_said_to_be_so(page: Page, server: PlaygroundServer) -> None:
    thread = server.sdk.beta.threads.create()
    page.goto(f"/playground/#/threads/{thread.id}/runs/run_nothing")
    expect(page.get_by_role("alert")).to_contain_text("No run found")


def test_the_trace_on_a_phone(page: Page, server: PlaygroundServer, shots: Path) -> None:
    server.script({"after_tool": False, "steps": [calls("code_interpreter", code=CODE)]}, {"steps": [{"do": "text", "text": "It is 42."}]})
    run = new_run(server, tools=[{"type": "code_interpreter"}])
    open_trace(page, run)
    step(page, "1. code_interpreter")
    page.screenshot(path=shots / "trace.png", full_page=True)
    page.set_viewport_size({"width": 360, "height": 740})
    page.screenshot(path=shots / "trace-phone.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
