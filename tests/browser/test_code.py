"""Show code: every route has its call of the SDKs, and what the page shows really runs, whatever the texts in it contain."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from mini_assistant.app import all_routes
from mini_assistant.http.routing import Route
from tests.browser.playground_server import PlaygroundServer, playground_server

KEY = "a-key-of-the-tests"
NODE = shutil.which("node")
NODE_FOLDER = Path(__file__).parent.parent / "conformance" / "node"
RUN_TIMEOUT_SECONDS = 60
ROUTES = [route for route in all_routes(metrics_public=True) if not route.path.startswith("/playground")]
# What the official SDKs have no method for.
EXTENSIONS = re.compile(r"/(webhooks|organization|health|metrics|openapi)|^GET /threads$|/events$")

# Texts that end strings, lines, commands and comments early when they are not written with care.
NASTY = "It's a \"quote\" \\ $(touch oops) `touch oops` ${oops}\n'''; # 日本語 \u202e\u2028 %s {x} </script> */ \\u0041 😀 \\"

needs_node = [
    pytest.mark.skipif(NODE is None, reason="node is not installed"),
    pytest.mark.skipif(not (NODE_FOLDER / "node_modules" / "openai").is_dir(), reason="the Node SDK is not installed: make test does it"),
]


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaygroundServer]:
    """A server with a key: the programs have to send it."""
    del browser
    with playground_server(tmp_path_factory.mktemp("playground"), key=KEY) as server:
        yield server


@pytest.fixture
def context(context: BrowserContext) -> BrowserContext:
    """A browser whose tabs have the key."""
    context.add_init_script(f"sessionStorage.setItem('mini-assistant.key', {json.dumps(KEY)})")
    return context


def code(page: Page, language: str, calls: list[dict[str, Any]], address: str) -> str:
    """What the page writes for these calls. language: `python`, `node` or `curl`."""
    script = "async ([name, calls, url]) => (await import(`/playground/code_${name}.js`))[`${name}Code`](calls, url)"
    return page.evaluate(script, [language, calls, f"{address}/v1"])


def example(route: Route) -> dict[str, Any]:
    """A call of a route with every field of its body and its query."""
    path = re.sub(r"{(\w+)}", lambda found: f"{found[1]}-of-it", route.path)
    query = {field.encode_name: "3" for field in fields(route.query)}
    names = [f"{name}[]" if name == "include" else name for name in query]
    whole = path + ("?" + "&".join(f"{name}=3" for name in names) if names else "")
    call: dict[str, Any] = {"method": route.method, "path": whole, "stream": False}
    if route.method == "POST":
        names = [field.encode_name for field in fields(route.body or route.form) if field.encode_name != "stream"]
        call["body"] = {name: [{"a": None, "b": [True, 1.5]}] for name in names}
    if route.form or route.name == "addUploadPart":
        call |= {"form": True, "body": {**call["body"], route.file_field: "notes.txt"}}
    return call


def fields(struct: Any) -> tuple[Any, ...]:
    return msgspec.structs.fields(struct) if struct is not None else ()


class Recorder:
    """Stands for the client: each call must suit the signature of the real method of that name."""

    def __init__(self, real: Any, made: list[str], name: str = "client") -> None:
        self.real, self.made, self.name = real, made, name

    def __getattr__(self, attribute: str) -> "Recorder":
        return Recorder(getattr(self.real, attribute), self.made, f"{self.name}.{attribute}")

    def __call__(self, *args: Any, **named: Any) -> Any:
        inspect.signature(self.real).bind(*args, **named)
        self.made.append(self.name.removeprefix("client."))
        return _Answer()


class _Answer:
    """Stands for whatever a method answers with: one item, a stream without text, or content."""

    text_deltas: tuple[str, ...] = ()
    status = "completed"
    event = "thread.run.completed"

    def __enter__(self) -> "_Answer":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator["_Answer"]:
        return iter([_Answer()])

    def get_final_run(self) -> "_Answer":
        return self

    def write_to_file(self, path: str) -> None:
        assert path


@pytest.mark.parametrize("streams", [False, True])
def test_every_route_is_a_call_that_the_python_sdk_takes(playground: Page, server: PlaygroundServer, streams: bool, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for route in ROUTES:
        if streams and not (route.streams and route.body):
            continue
        text = code(playground, "python", [{**example(route), "stream": streams}], server.address)
        made: list[str] = []
        program = text.replace("client = OpenAI(", "client = Recorder(OpenAI(").replace('["OPENAI_API_KEY"])', '["OPENAI_API_KEY"]), made)')
        assert program != text
        exec(compile(program, route.name, "exec"), {"Recorder": Recorder, "made": made})
        assert len(made) == 1, route.name
        is_plain = made[0] in ("get", "post", "delete")
        assert is_plain == bool(EXTENSIONS.search(f"{route.method} {route.path}")), f"{route.name} is made as {made[0]}"
        assert made[0].endswith("stream") == streams


@pytest.mark.parametrize("language", ["node", "curl"])
def test_every_route_has_code_in_the_other_languages(playground: Page, server: PlaygroundServer, language: str, tmp_path: Path) -> None:
    texts = {route.name: code(playground, language, [example(route)], server.address) for route in ROUTES}
    if language == "curl":
        for name, text in texts.items():
            assert subprocess.run(["sh", "-n"], input=text, text=True, check=False).returncode == 0, f"{name}: {text}"
            assert KEY not in text
        return
    whole = code(playground, "node", [example(route) for route in ROUTES], server.address)
    methods = set(re.findall(r"client\.([\w.]+)\(", whole))
    assert len(methods) > 45
    if any(mark.args[0] for mark in needs_node):
        pytest.skip("there is no Node SDK here to ask")
    script = f"""
      import OpenAI from 'openai';
      const client = new OpenAI({{ apiKey: 'x' }});
      const isMissing = (name) => typeof name.split('.').reduce((part, key) => part?.[key], client) !== 'function';
      console.log(JSON.stringify({json.dumps(sorted(methods))}.filter(isMissing)));
    """
    assert json.loads(run_node(script).stdout) == []
    program = tmp_path / "program.mjs"
    program.write_text(whole, encoding="utf-8")
    assert subprocess.run([NODE, "--check", str(program)], check=False).returncode == 0  # type: ignore[list-item]


def environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PYTHON"))}
    return {**inherited, "OPENAI_API_KEY": KEY}


def run_node(script: str) -> "subprocess.CompletedProcess[str]":
    """Runs a module where the Node SDK is installed; nothing is written there."""
    command = [NODE or "node", "--input-type=module", "-e", script]
    return subprocess.run(
        command, cwd=NODE_FOLDER, env=environment(), capture_output=True, text=True, timeout=RUN_TIMEOUT_SECONDS, check=False
    )


def run(language: str, text: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    if language == "node":
        return run_node(text)
    command = ["sh", "-e", "-c", text] if language == "curl" else [sys.executable, "-W", "ignore", "-c", text]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=RUN_TIMEOUT_SECONDS, check=False)


LANGUAGES = [
    "python",
    pytest.param("node", marks=needs_node),
    pytest.param("curl", marks=pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")),
]


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_shown_runs(playground: Page, server: PlaygroundServer, language: str, tmp_path: Path) -> None:
    sdk = server.sdk
    assistant = sdk.beta.assistants.create(model="scripted", instructions="Answer.")
    thread = sdk.beta.threads.create()
    run_of_thread = sdk.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id)
    file_name = "a, b; \"c\" 'd'.txt"
    (tmp_path / file_name).write_text("What was noted.", encoding="utf-8")
    content = sdk.files.create(file=("kept.txt", b"kept"), purpose="user_data")
    unwanted = sdk.beta.threads.messages.create(thread.id, role="user", content="unwanted")
    path = f"/threads/{thread.id}"
    include = "include[]=step_details.tool_calls[*].file_search.results[*].content"
    calls: list[dict[str, Any]] = [
        {"method": "POST", "path": "/assistants", "body": {"model": "scripted", "name": NASTY, "metadata": {NASTY[:60]: NASTY}}},
        {"method": "GET", "path": "/assistants?limit=100"},
        {"method": "POST", "path": f"{path}/messages", "body": {"role": "user", "content": NASTY}},
        {"method": "POST", "path": f"{path}/runs?{include}", "body": {"assistant_id": assistant.id, "stream": True}, "stream": True},
        {"method": "GET", "path": f"{path}/messages?limit=100&order=asc"},
        {"method": "GET", "path": f"{path}/runs/{run_of_thread.id}/events", "stream": True},
        {"method": "GET", "path": f"{path}/runs/{run_of_thread.id}/steps?order=asc&{include}"},
        {"method": "GET", "path": "/threads?limit=20&order=desc"},
        {
            "method": "POST",
            "path": f"/threads/runs?{include}",
            "body": {
                "assistant_id": assistant.id,
                "additional_instructions": "Briefly.",
                "thread": {"messages": [{"role": "user", "content": "Hello"}]},
                "stream": True,
            },
            "stream": True,
        },
        {"method": "GET", "path": "/models/scripted"},
    ]
    if language != "node":  # files are named as they lie in the folder of the program
        calls.append({"method": "POST", "path": "/files", "body": {"file": file_name, "purpose": "assistants"}, "form": True})
        calls.append({"method": "GET", "path": f"/files/{content.id}/content"})
    calls.append({"method": "DELETE", "path": f"{path}/messages/{unwanted.id}"})
    calls.append({"method": "POST", "path": "/vector_stores", "body": {"name": "Made", "expires_after": None}})

    ended = run(language, code(playground, language, calls, server.address), tmp_path)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert '"error"' not in ended.stdout
    made = next(sdk_assistant for sdk_assistant in sdk.beta.assistants.list(limit=1))
    assert (made.name, made.metadata) == (NASTY, {NASTY[:60]: NASTY})
    asked = [message for message in sdk.beta.threads.messages.list(thread.id, order="asc") if message.role == "user"]
    assert [text_of(message) for message in asked] == [NASTY]
    assert sdk.beta.threads.runs.list(thread.id).data[0].status == "completed"
    assert not list(tmp_path.glob("oops*"))
    if language != "node":
        assert next(iter(sdk.files.list(limit=1))).filename == file_name
        assert (tmp_path / content.id).read_bytes() == b"kept"
    assert sdk.vector_stores.list(limit=1).data[0].name == "Made"
    sdk.beta.assistants.delete(made.id)


def text_of(message: Any) -> str:
    return "".join(part.text.value for part in message.content if part.type == "text")


def test_the_dialog_shows_the_calls_of_the_view(page: Page, server: PlaygroundServer, tmp_path: Path, shots: Path) -> None:
    for number in range(3):
        server.sdk.beta.threads.create(messages=[{"role": "user", "content": f"Question {number}"}])
    page.goto("/playground/#/threads")
    expect(page.get_by_text("Question 2")).to_be_visible()
    page.get_by_role("button", name="Show code").click()
    dialog = page.get_by_role("dialog", name="Show code")
    program = dialog.get_by_label("Program")
    expect(program).to_contain_text('"/threads"')
    expect(program).to_contain_text(f'base_url="{server.address}/v1"')
    assert KEY not in (dialog.text_content() or "")
    page.screenshot(path=shots / "code.png")
    ended = run("python", program.text_content() or "", tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert (program.text_content() or "").count("messages.list(") == 1  # of the calls for titles, one is chosen

    everything = dialog.get_by_label("All", exact=True)
    everything.check()
    ended = run("python", program.text_content() or "", tmp_path)
    assert all(f"Question {number}" in ended.stdout for number in range(3)), ended.stderr
    everything.uncheck()
    expect(dialog.get_by_text("No call is chosen.")).to_be_visible()
    dialog.get_by_label("GET /threads?").first.check()
    dialog.get_by_role("button", name="Copy").click()
    expect(dialog.get_by_text("Copied.")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == program.text_content()

    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    page.get_by_role("link", name="Assistants").click()
    expect(page.get_by_role("heading", name="Assistants").first).to_be_visible()
    page.get_by_role("button", name="Show code").click()
    expect(dialog.get_by_text("/assistants?").first).to_be_visible()
    expect(dialog.get_by_text("GET /threads?")).to_have_count(0)


def test_what_was_asked_in_a_conversation_can_be_asked_again_by_program(page: Page, server: PlaygroundServer, tmp_path: Path) -> None:
    sdk = server.sdk
    server.script({"steps": [{"do": "text", "text": "An answer."}]})
    sdk.beta.assistants.create(model="scripted", name="Asked")
    page.goto("/playground/#/threads/new")
    for question in ("First?", "Second?"):
        page.get_by_label("Message", exact=True).fill(question)
        page.get_by_role("button", name="Send").click()
        expect(page.locator("main .message.assistant", has_text="An answer.")).to_have_count(1 if question == "First?" else 2)
        expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    page.get_by_role("button", name="Show code").click()
    program = page.get_by_role("dialog", name="Show code").get_by_label("Program")
    # The call that has made the thread is still there, though the address of the page is another one now.
    for method in ("create_and_run_stream(", "messages.create(", "runs.stream("):
        expect(program).to_contain_text(method)
    thread = sdk.get("/threads", cast_to=object, options={"params": {"limit": 1}})["data"][0]["id"]  # type: ignore[index]
    ended = run("python", program.text_content() or "", tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("An answer.\ncompleted") == 2
    asked = [text_of(message) for message in sdk.beta.threads.messages.list(thread, order="asc") if message.role == "user"]
    assert asked == ["First?", "Second?", "Second?"]


def test_the_languages_are_tabs_for_the_keyboard(playground: Page) -> None:
    playground.get_by_role("button", name="Show code").press("Enter")
    dialog = playground.get_by_role("dialog", name="Show code")
    python, node, curl = (dialog.get_by_role("tab", name=name) for name in ("Python", "Node", "curl"))
    expect(python).to_have_attribute("aria-selected", "true")
    python.focus()
    playground.keyboard.press("ArrowRight")
    expect(node).to_be_focused()
    expect(dialog.get_by_label("Program")).to_contain_text('import OpenAI from "openai";')
    playground.keyboard.press("End")
    expect(curl).to_be_focused()
    expect(dialog.get_by_label("Program")).to_contain_text("curl 'http")
    playground.keyboard.press("ArrowRight")
    expect(python).to_be_focused()
    playground.keyboard.press("ArrowLeft")
    playground.keyboard.press("Escape")
    playground.get_by_role("button", name="Show code").press("Enter")
    expect(curl).to_have_attribute("aria-selected", "true")  # the language of the last time


def test_calls_are_kept_once_and_pages_of_a_list_are_one_call(playground: Page) -> None:
    calls = playground.evaluate("""async () => {
      const { get } = await import("/playground/api.js");
      const { recordedCalls } = await import("/playground/code.js");
      const ofFiles = () => recordedCalls().filter(({ path }) => path.startsWith("/files"));
      for (let number = 0; number < 5; number += 1) await get("/files?limit=1");
      await get("/files?limit=1&after=file-x").catch(() => {});
      const after = ofFiles().length;
      for (let number = 1; number < 70; number += 1) await get(`/files?limit=${number}`);
      return [after, recordedCalls().length];
    }""")
    assert calls == [1, 50]
