"""A conversation in the playground: sending, streaming, files, code, citations, outputs of functions, cancelling, and lost connections."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from openai.types.beta import Assistant, Thread
from playwright.sync_api import Locator, Page, Request, expect

from tests.browser.playground_server import PlaygroundServer

_DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
_CODE = f"""import base64
class Dot:
    def _repr_png_(self):
        return base64.b64decode('{_DOT}')
open('/mnt/data/table.csv', 'w').write('a,b\\n1,2\\n')
print('made')
Dot()"""
_WEATHER: Any = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
# Cuts the line of the first streams after some frames, as a network does: what was read is read, and then the body fails.
_CUT_LINES = """() => {
  const whole = window.fetch.bind(window);
  let left = 2;
  window.fetch = async (address, options = {}) => {
    const answer = await whole(address, options);
    if (options.headers?.accept !== "text/event-stream" || left === 0 || !answer.ok) return answer;
    left -= 1;
    let chunks = 0;
    const cut = new TransformStream({
      transform(chunk, controller) {
        chunks += 1;
        if (chunks > 4) controller.error(new TypeError("network error"));
        else controller.enqueue(chunk);
      },
    });
    return new Response(answer.body.pipeThrough(cut), { status: answer.status, headers: answer.headers });
  };
}"""


def _text(*pieces: str, delay_seconds: float = 0.0, repeat: int = 1) -> dict[str, Any]:
    return {"do": "text", "text": list(pieces), "delay_seconds": delay_seconds, "repeat": repeat}


def _calls(*calls: tuple[str, Any]) -> dict[str, Any]:
    return {"do": "tool_calls", "calls": [{"name": name, "arguments": json.dumps(arguments)} for name, arguments in calls]}


@pytest.fixture
def assistant(server: PlaygroundServer) -> Iterator[Assistant]:
    """An assistant with every tool."""
    tools: Any = [{"type": "file_search"}, {"type": "code_interpreter"}, _WEATHER]
    assistant = server.sdk.beta.assistants.create(model="m", name="Helper", tools=tools)
    yield assistant
    server.sdk.beta.assistants.delete(assistant.id)


@pytest.fixture
def thread(server: PlaygroundServer, page: Page, assistant: Assistant) -> Thread:
    """A new thread, opened in the page."""
    del assistant  # without one there is nobody to talk to
    thread = server.sdk.beta.threads.create()
    page.goto(f"/playground/#/threads/{thread.id}")
    expect(_input(page)).to_be_focused()
    return thread


def _input(page: Page) -> Locator:
    return page.get_by_label("Message", exact=True)


def _say(page: Page, text: str) -> None:
    _input(page).fill(text)
    _input(page).press("Enter")


def _answer(page: Page) -> Locator:
    return page.locator(".message.assistant").last


def _status(page: Page) -> Locator:
    return page.locator(".run-line .badge").last


def test_a_first_message_makes_a_thread(page: Page, server: PlaygroundServer, assistant: Assistant, shots: Path) -> None:
    server.script({"steps": [_text("Hello, **", "you**.\n\n", "| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\nprint(1)\n```")]})
    page.goto("/playground/#/threads/new")
    _input(page).press_sequentially("Hi")
    _input(page).press("Shift+Enter")
    _input(page).press_sequentially("there")
    _input(page).press("Enter")
    expect(_status(page)).to_have_text("completed")
    expect(page.locator(".message.user .plain")).to_have_text("Hi\nthere", use_inner_text=True)
    expect(_answer(page).locator("strong").last).to_have_text("you")
    expect(_answer(page).locator("td")).to_have_text(["1", "2"])
    expect(_input(page)).to_be_focused()
    expect(_input(page)).to_have_value("")
    thread_id = page.url.rsplit("/", 1)[1]
    said = server.sdk.beta.threads.messages.list(thread_id).data
    assert [message.role for message in said] == ["assistant", "user"]
    assert said[0].assistant_id == assistant.id
    _answer(page).get_by_role("button", name="Copy").click()
    expect(_answer(page).get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "print(1)"
    page.screenshot(path=shots / "chat.png")
    page.reload()
    expect(page.locator(".message")).to_have_count(2)
    expect(_answer(page).locator("strong").last).to_have_text("you")


def test_a_first_assistant_is_made_with_one_click(page: Page, server: PlaygroundServer) -> None:
    for assistant in server.sdk.beta.assistants.list():
        server.sdk.beta.assistants.delete(assistant.id)
    page.goto("/playground/#/threads/new")
    page.get_by_role("button", name="Make an assistant").click()
    expect(page.get_by_label("Assistant", exact=True)).to_contain_text("Assistant")
    server.script({"steps": [_text("At your service.")]})
    _say(page, "Hello")
    expect(_answer(page)).to_contain_text("At your service.")
    for assistant in server.sdk.beta.assistants.list():
        assert {tool.type for tool in assistant.tools} == {"file_search", "code_interpreter"}
        server.sdk.beta.assistants.delete(assistant.id)


def test_an_answer_is_shown_while_it_is_written_and_can_be_cancelled(page: Page, server: PlaygroundServer, thread: Thread) -> None:
    server.script({"steps": [_text("begun "), {"do": "stall"}]})
    _say(page, "Go on")
    expect(_answer(page)).to_contain_text("begun")
    expect(_status(page)).to_have_text("in progress")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    page.get_by_role("button", name="Cancel").click()
    expect(_status(page)).to_have_text("cancelled")
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    expect(_answer(page)).to_contain_text("begun")
    expect(_answer(page)).to_contain_text("not whole")
    server.script({"steps": [_text("Better.")]})
    _say(page, "Again")
    expect(_answer(page)).to_contain_text("Better.")
    runs = server.sdk.beta.threads.runs.list(thread.id).data
    assert [run.status for run in runs] == ["completed", "cancelled"]


def test_a_reload_in_the_middle_of_a_run_loses_nothing(page: Page, server: PlaygroundServer, thread: Thread) -> None:
    server.script({"steps": [_text("tok ", repeat=60, delay_seconds=0.05), _text("end.")]})
    _say(page, "Slowly")
    expect(_answer(page)).to_contain_text("tok tok")
    page.reload()
    expect(_answer(page)).to_contain_text("tok tok")
    expect(_status(page)).to_have_text("completed")
    expect(_answer(page).locator(".message-body")).to_have_text("tok " * 60 + "end.")
    expect(page.locator(".message")).to_have_count(2)
    assert len(server.sdk.beta.threads.messages.list(thread.id).data) == 2


def test_a_cut_line_is_taken_up_where_it_was_cut(page: Page, server: PlaygroundServer, thread: Thread) -> None:
    del thread
    asked: list[str | None] = []

    def note(request: Request) -> None:
        if request.url.endswith("/events"):
            asked.append(request.headers.get("last-event-id"))

    page.on("request", note)
    page.evaluate(_CUT_LINES)
    server.script({"steps": [_text("tok ", repeat=60, delay_seconds=0.05), _text("end.")]})
    _say(page, "Slowly")
    expect(_status(page)).to_have_text("completed", timeout=20_000)
    expect(_answer(page).locator(".message-body")).to_have_text("tok " * 60 + "end.")
    assert len(asked) == 2
    assert asked[0] is None
    assert asked[1]


def test_a_run_whose_events_are_gone_is_asked_for(page: Page, server: PlaygroundServer, thread: Thread) -> None:
    del thread
    gone = {"error": {"message": "The events of this run are no longer kept.", "type": "invalid_request_error", "code": "events_gone"}}
    server.script({"steps": [_text("tok ", repeat=40, delay_seconds=0.05), _text("end.")]})
    _say(page, "Slowly")
    expect(_answer(page)).to_contain_text("tok tok")
    page.route("**/events", lambda route: route.fulfill(status=400, json=gone))
    page.reload()
    expect(_status(page)).to_have_text("completed")
    expect(_answer(page).locator(".message-body")).to_have_text("tok " * 40 + "end.")


def test_outputs_of_functions_are_typed_in(page: Page, server: PlaygroundServer, thread: Thread) -> None:
    server.script(
        {"after_tool": False, "steps": [_calls(("get_weather", {"city": "Oslo"}), ("get_weather", {"city": "Rome"}))]},
        {"steps": [_text("Rain and sun.")]},
    )
    _say(page, "The weather?")
    outputs = page.get_by_label("Output of get_weather")
    expect(outputs).to_have_count(2)
    expect(page.locator("form.action pre").first).to_contain_text('"city": "Oslo"')
    outputs.first.fill('{"weather": "rain"}')
    page.reload()  # the run waits, and so does its form
    expect(outputs).to_have_count(2)
    outputs.first.fill('{"weather": "rain"}')
    outputs.last.fill("sun")
    page.get_by_role("button", name="Submit the outputs").click()
    expect(_answer(page)).to_contain_text("Rain and sun.")
    expect(page.locator("form.action")).to_have_count(0)
    run = server.sdk.beta.threads.runs.list(thread.id).data[0]
    steps = server.sdk.beta.threads.runs.steps.list(run.id, thread_id=thread.id, order="asc").data
    details: Any = steps[0].step_details
    assert [call.function.output for call in details.tool_calls] == ['{"weather": "rain"}', "sun"]
    page.locator(".step summary").first.click()
    expect(page.locator(".step .logs").first).to_have_text('{"weather": "rain"}')


def test_a_run_that_waits_for_outputs_can_be_cancelled(page: Page, server: PlaygroundServer, thread: Thread) -> None:
    del thread
    server.script({"after_tool": False, "steps": [_calls(("get_weather", {"city": "Oslo"}))]})
    _say(page, "The weather?")
    expect(page.locator("form.action")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(_status(page)).to_have_text("cancelled")
    expect(page.locator("form.action")).to_have_count(0)


def test_code_its_output_figure_and_file_are_shown(page: Page, server: PlaygroundServer, thread: Thread, shots: Path) -> None:
    del thread
    server.script(
        {"after_tool": False, "steps": [_calls(("code_interpreter", {"code": _CODE}))]},
        {"steps": [_text("See [the table](sand", "box:/mnt/data/table", ".csv).")]},
    )
    _say(page, "Make it")
    expect(_status(page)).to_have_text("completed")
    step = page.locator("details.step")
    expect(step.locator("pre.code").first).to_contain_text("class Dot:")
    expect(step.locator(".token-keyword").first).to_have_text("import")
    expect(step.locator(".logs")).to_contain_text("made")
    for figure in (step.locator("img"), _answer(page).locator("img")):
        expect(figure).to_be_visible()
        assert figure.evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 1
    with page.expect_download() as download:
        _answer(page).get_by_role("button", name="the table").click()
    assert download.value.suggested_filename == "table.csv"
    assert download.value.path().read_text() == "a,b\n1,2\n"
    page.screenshot(path=shots / "chat-code.png", full_page=True)
    page.reload()
    expect(page.locator("details.step .logs")).to_contain_text("made")
    expect(page.locator(".run-body > *").first).to_have_class("steps")  # before the message, as it happened


def test_what_code_prints_is_shown_while_it_runs(page: Page, server: PlaygroundServer, thread: Thread) -> None:
    del thread
    code = "import time\nprint('begun', flush=True)\nwhile True:\n    time.sleep(0.1)"
    server.script({"steps": [_calls(("code_interpreter", {"code": code}))]})
    _say(page, "Run it")
    expect(page.locator("details.step .logs")).to_have_text("begun")
    expect(page.locator("details.step summary")).to_contain_text("running")
    page.reload()
    expect(page.locator("details.step pre").first).to_contain_text("while True:")
    page.get_by_role("button", name="Cancel").click()
    expect(_status(page)).to_have_text("cancelled")
    expect(page.locator("details.step summary")).to_contain_text("cancelled")


def test_a_citation_opens_its_passage(page: Page, server: PlaygroundServer, thread: Thread, shots: Path) -> None:
    del thread
    server.script(
        {"after_tool": False, "steps": [_calls(("file_search", {"queries": ["favourite food of Anna"]}))]},
        {"steps": [_text("😀 Anna likes pizza ", "【4:", "0†food", ".txt", "】, and", " that is all 【4:0†food.txt】.")]},
    )
    file = {"name": "food.txt", "mimeType": "text/plain", "buffer": b"Anna's favourite food is pizza with capers."}
    page.locator("input[type=file]").set_input_files([file])  # pyright: ignore[reportArgumentType]
    expect(page.get_by_label("Use food.txt for")).to_have_value("file_search")
    _input(page).fill("What does Anna like?")
    page.get_by_role("button", name="Send").click()
    citations = _answer(page).locator("button.citation")
    expect(citations).to_have_text(["1", "1"])
    expect(_answer(page)).not_to_contain_text("【")
    citations.first.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Citation 1")
    expect(dialog.locator(".passage")).to_have_text("Anna's favourite food is pizza with capers.")
    expect(dialog).to_contain_text("food.txt")
    expect(dialog).to_contain_text("score 0.")
    page.screenshot(path=shots / "chat-citation.png")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(citations.first).to_be_focused()
    page.locator("details.step summary").click()
    page.locator(".results").get_by_role("button", name="food.txt").click()
    expect(page.get_by_role("dialog", name="Passage").locator(".passage")).to_contain_text("capers")


def test_files_can_be_dropped_and_go_where_they_are_sent(page: Page, server: PlaygroundServer, thread: Thread) -> None:
    dropped = page.evaluate_handle(
        """(dot) => {
          const files = new DataTransfer();
          files.items.add(new File(["a,b"], "numbers.csv", { type: "text/csv" }));
          files.items.add(new File([Uint8Array.from(atob(dot), (one) => one.charCodeAt(0))], "dot.png", { type: "image/png" }));
          files.items.add(new File(["word"], "both.txt"));
          files.items.add(new File(["none"], "removed.txt"));
          return files;
        }""",
        _DOT,
    )
    page.dispatch_event(".chat", "dragenter", {"dataTransfer": dropped})
    expect(page.locator(".chat.dropping")).to_be_visible()
    page.dispatch_event(".composer", "drop", {"dataTransfer": dropped})
    expect(page.locator(".chat.dropping")).to_have_count(0)
    expect(page.locator(".attachment")).to_have_count(4)
    page.get_by_label("Use both.txt for").select_option("both")
    page.get_by_role("button", name="Remove removed.txt").click()
    expect(page.locator(".attachment progress")).to_have_count(0)
    _say(page, "Here")
    expect(_status(page)).to_have_text("completed")
    expect(page.locator(".attachment")).to_have_count(0)
    message = server.sdk.beta.threads.messages.list(thread.id, order="asc").data[0]
    tools = [[tool.type for tool in attachment.tools or []] for attachment in message.attachments or []]
    assert tools == [["code_interpreter"], ["file_search", "code_interpreter"]]
    assert [part.type for part in message.content] == ["text", "image_file"]
    expect(page.locator(".message.user img")).to_be_visible()
    expect(page.locator(".message.user .message-files .file-name")).to_have_text(["numbers.csv", "both.txt"])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_can_use_a_full_conversation(page: Page, server: PlaygroundServer, assistant: Assistant, shots: Path, theme: Any) -> None:
    wide = "| " + " | ".join(["a long heading"] * 9) + " |\n" + "|---" * 9 + "|\n" + "| value " * 9 + "|"
    code = "```python\n# a comment\ndef f(x):\n    return f'{x}' + str(1.5)\n```"
    server.script(
        {"contains": "code", "after_tool": False, "steps": [_calls(("code_interpreter", {"code": _CODE}))]},
        {"contains": "weather", "after_tool": False, "steps": [_calls(("get_weather", {"city": "x" * 200}))]},
        {"steps": [_text(f"# Heading\n\n> quoted\n\n- [x] item\n\n{code}\n\n{wide}\n\nhttps://x.example/{'y' * 200} `{'z' * 200}`")]},
    )
    thread = server.sdk.beta.threads.create()
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(f"/playground/#/threads/{thread.id}")
    file = {"name": f"{'n' * 120}.txt", "mimeType": "text/plain", "buffer": b"text"}
    page.locator("input[type=file]").set_input_files([file])  # pyright: ignore[reportArgumentType]
    expect(page.locator(".attachment progress")).to_have_count(0)
    _say(page, f"code {'w' * 200}")
    expect(_status(page)).to_have_text("completed")
    _say(page, "weather")
    expect(page.locator("form.action")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.screenshot(path=shots / f"chat-full-{theme}.png", full_page=True)
    violations = Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in violations if one["impact"] in ("serious", "critical")] == []
    server.sdk.beta.threads.delete(thread.id)
    del assistant


def test_a_failed_run_says_why_and_can_be_tried_again(page: Page, server: PlaygroundServer, thread: Thread) -> None:
    server.script({"steps": [{"do": "respond", "status": 429, "body": {"error": {"message": "Slow down"}}}]})
    _say(page, "Hello")
    expect(_status(page)).to_have_text("failed")
    expect(page.locator(".run-line .error")).to_contain_text("Slow down")
    server.script({"steps": [_text("Now it works.")]})
    page.get_by_role("button", name="Try again").click()
    expect(_answer(page)).to_contain_text("Now it works.")
    assert len(server.sdk.beta.threads.messages.list(thread.id).data) == 2


def test_a_refused_message_is_not_lost(page: Page, server: PlaygroundServer, thread: Thread) -> None:
    server.sdk.beta.threads.delete(thread.id)
    _say(page, "Do not lose this")
    expect(page.get_by_role("alert")).to_contain_text("No thread found")
    expect(_input(page)).to_have_value("Do not lose this")


def test_the_page_stays_where_its_reader_is(page: Page, server: PlaygroundServer, thread: Thread) -> None:
    del thread
    server.script({"steps": [_text("line\n\n", repeat=80), {"do": "wait", "seconds": 1.0}, _text("more\n\n", repeat=40), _text("end")]})
    _say(page, "Much")
    expect(_answer(page)).to_contain_text("line")
    page.wait_for_function("document.scrollingElement.scrollTop > 200")  # at the lower end, it goes along
    page.evaluate("document.scrollingElement.scrollTop = 100")
    expect(_answer(page)).to_contain_text("end")
    assert page.evaluate("document.scrollingElement.scrollTop") == 100


def test_a_run_leads_to_its_trace(page: Page, server: PlaygroundServer, thread: Thread) -> None:
    _say(page, "Hello")
    expect(_status(page)).to_have_text("completed")
    run = server.sdk.beta.threads.runs.list(thread.id).data[0]
    expect(page.get_by_role("link", name="Trace")).to_have_attribute("href", f"#/threads/{thread.id}/runs/{run.id}")


def test_calls_of_mcp_servers_are_approved_or_refused(playground: Page) -> None:
    outputs = playground.evaluate(
        """async () => {
          const { actionForm } = await import("/playground/function_calls.js");
          const call = (id, name) => ({ id, type: "function", function: { name, arguments: "{}" } });
          const tools = [{ type: "mcp", server_label: "docs" }, { type: "function", function: { name: "own" } }];
          const calls = [call("a", "docs__search"), call("b", "docs__read"), call("c", "own")];
          let sent = null;
          const form = actionForm({ tools, required_action: { submit_tool_outputs: { tool_calls: calls } } }, (all) => (sent = all));
          document.getElementById("main").replaceChildren(form);
          const [first] = form.querySelectorAll("select");
          first.value = "approve";
          form.querySelectorAll("input")[1].value = "Not now";
          form.querySelector("textarea").value = "mine";
          form.requestSubmit();
          return sent;
        }"""
    )
    assert [one["output"] for one in outputs] == ["approve", "Not now", "mine"]


def test_a_citation_of_a_later_search_finds_its_passage(playground: Page) -> None:
    """The numbers of markers count turns and calls from a beginning that only the annotations together give away."""
    found = playground.evaluate(
        """async () => {
          const { passageOf, pageOf } = await import("/playground/citations.js");
          const results = (files) => files.map(([file_id, page]) => ({ file_id, page }));
          const search = (...files) => ({ type: "file_search", file_search: { results: results(files) } });
          const step = (...calls) => ({ type: "tool_calls", step_details: { type: "tool_calls", tool_calls: calls } });
          const first = step(search(["f1", 1], ["f2", 2]), search(["f1", 3]));
          const steps = [first, { type: "message_creation" }, step(search(["f1", 4], ["f3", 5]))];
          const cite = ([text, file_id]) => ({ type: "file_citation", text, file_citation: { file_id } });
          const cited = [["【7:1†b】", "f2"], ["【8:0†a】", "f1"], ["【10:0†a】", "f1"], ["【10:1†c】", "f3"], ["【9:0†a】", "f1"]];
          const all = cited.map(cite);
          return all.map((one) => passageOf(one, all, steps)).map((result) => result && pageOf(result));
        }"""
    )
    assert found == ["page 2", "page 3", "page 4", "page 5", None]
