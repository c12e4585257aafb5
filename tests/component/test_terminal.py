"""`mini-assistant chat` and `mini-assistant ingest`, as processes on pipes and on a terminal, against a server with a scripted model."""

import contextlib
import errno
import json
import os
import pty
import re
import select
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mini_assistant
from mini_assistant.errors import ConfigError
from mini_assistant.terminal.event_frames import Event, EventFrames
from mini_assistant.terminal.folder_files import find_files, parsed_attributes, stored_path
from mini_assistant.terminal.ingest_progress import size_text
from mini_assistant.terminal.printable import fitted, one_line, printable
from tests.server_process import ServerProcess, scripted_model_process

TIMEOUT_SECONDS = 50
KEY = "a-key-of-the-terminal"
ESCAPE = "\x1b"
WEATHER = '{"city": "Oslo"}'
CODE = "print('six', 2 * 3)\\nopen('/mnt/data/t.csv', 'w').write('a,b')"
WORDS = " ".join(f"word{number}" for number in range(40)) + " "
SCRIPT: dict[str, Any] = {
    "rules": [
        {"model": "rude", "steps": [{"do": "text", "text": ["safe \x1b]0;title\x07\x1b[2J", "\x9b31m \u202egnp"]}]},
        {"model": "wordy", "steps": [{"do": "text", "text": [f"word{number} " for number in range(40)], "delay_seconds": 0.02}]},
        {"model": "stalls", "steps": [{"do": "text", "text": "Begun. "}, {"do": "stall"}]},
        {"model": "breaks", "steps": [{"do": "text", "text": "Half of "}, {"do": "error_frame", "message": "The model broke."}]},
        {
            "model": "asks",
            "after_tool": False,
            "steps": [{"do": "tool_calls", "calls": [{"name": "get_weather", "arguments": WEATHER}]}],
        },
        {
            "model": "cites",
            "after_tool": False,
            "steps": [{"do": "tool_calls", "calls": [{"name": "file_search", "arguments": '{"queries": ["favorite food of Anna"]}'}]}],
        },
        {"model": "cites", "steps": [{"do": "text", "text": ["Anna likes pizza", "【4:", "0†food", ".txt", "】."]}]},
        {
            "model": "computes",
            "after_tool": False,
            "steps": [{"do": "tool_calls", "pieces": 5, "calls": [{"name": "code_interpreter", "arguments": f'{{"code": "{CODE}"}}'}]}],
        },
        {"model": "computes", "steps": [{"do": "text", "text": ["See [t](sand", "box:/mnt/data/t", ".csv)."]}]},
    ]
}


class Server:
    """A server process and its API, for what a test has to make or to know."""

    def __init__(self, process: ServerProcess) -> None:
        self.process = process

    @property
    def url(self) -> str:
        return self.process.address

    def call(self, method: str, path: str, body: object = None) -> Any:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/v1{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=20) as response:
            return json.load(response)

    def assistant(self, model: str, *tools: dict[str, Any]) -> str:
        return self.call("POST", "/assistants", {"model": model, "tools": list(tools)})["id"]

    def store_files(self, name: str) -> dict[str, dict[str, Any]]:
        """The files of a store by their attribute `path`."""
        (store,) = [store for store in self.call("GET", "/vector_stores?limit=100")["data"] if store["name"] == name]
        return {file["attributes"]["path"]: file for file in self.call("GET", f"/vector_stores/{store['id']}/files?limit=100")["data"]}

    def last_run(self, thread_id: str) -> dict[str, Any]:
        return self.call("GET", f"/threads/{thread_id}/runs?limit=1")["data"][0]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("terminal")
    (folder / "script.json").write_text(json.dumps(SCRIPT))
    with scripted_model_process(folder / "script.json") as model:
        process = ServerProcess(
            folder / "data",
            {
                "OPENAI_BASE_URL": model,
                "MINI_ASSISTANT_API_KEYS": KEY,
                "MINI_ASSISTANT_MODEL_RETRIES_MAX": "0",
                # What isolates code makes no difference to what is shown of it, and this one is everywhere.
                "MINI_ASSISTANT_SANDBOX": "unsafe",
            },
        )
        process.start()
        yield Server(process)
        assert process.stop() == 0


def environment(**more: str) -> dict[str, str]:
    """The environment of a client: settings of whoever runs the tests play no part."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "MINI_ASSISTANT_", "NO_COLOR"))}
    source = str(Path(mini_assistant.__file__).parents[1])
    return {**kept, "PYTHONPATH": source, "OPENAI_API_KEY": KEY, "TERM": "xterm", **more}


def run(server: Server, *arguments: str, question: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """A client on pipes, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "mini_assistant", arguments[0], "--url", server.url, *arguments[1:]],
        input="" if question is None else question,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


class Terminal:
    """A client on a terminal of its own: what it has written, and keys to press."""

    def __init__(self, process: subprocess.Popen[bytes], keyboard: int) -> None:
        self.process = process
        self.text = ""
        self._keyboard = keyboard
        self._raw = b""
        self._seen = 0

    def type(self, text: str) -> None:
        os.write(self._keyboard, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def wait_for(self, text: str) -> None:
        """Wait until it has written a text, after what was waited for before."""
        while text not in self.text[self._seen :]:
            assert self._read(), f"it ended after {self.text!r}"
        self._seen = self.text.index(text, self._seen) + len(text)

    def status(self) -> int:
        """Wait for its end; returns the exit status."""
        while self._read():
            pass
        return self.process.wait(TIMEOUT_SECONDS)

    def _read(self) -> bool:
        """Take what is written next. False when nothing will be any more."""
        ready, _, _ = select.select([self._keyboard], [], [], TIMEOUT_SECONDS)
        assert ready, f"it waits after {self.text!r}"
        try:
            data = os.read(self._keyboard, 65_536)
        except OSError as exc:
            if exc.errno != errno.EIO:  # how Linux tells that nobody writes any more
                raise
            return False
        self._raw += data
        self.text = self._raw.decode("utf-8", "ignore")
        return data != b""


@contextlib.contextmanager
def terminal(server: Server, *arguments: str, cwd: Path | None = None, **more: str) -> Iterator[Terminal]:
    keyboard, line = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mini_assistant", arguments[0], "--url", server.url, *arguments[1:]],
        env=environment(**more),
        stdin=line,
        stdout=line,
        stderr=line,
        cwd=cwd,
    )
    os.close(line)
    try:
        yield Terminal(process, keyboard)
    finally:
        process.kill()
        process.wait(TIMEOUT_SECONDS)
        os.close(keyboard)


class Proxy(socketserver.ThreadingTCPServer):
    """Passes bytes on to a server, but cuts off the first stream of events in the middle of its text."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.go_to(target)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.has_cut = False

    def go_to(self, target: str) -> None:
        self.target = ("127.0.0.1", int(target.rsplit(":", 1)[1]))


class _Passing(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        with contextlib.suppress(OSError), socket.create_connection(self.server.target, timeout=TIMEOUT_SECONDS) as far:
            others = {self.request: far, far: self.request}
            passed = b""
            while True:
                for side in select.select(list(others), [], [], TIMEOUT_SECONDS)[0]:
                    data = side.recv(4096)
                    if not data:
                        return
                    passed += data
                    others[side].sendall(data)
                if b"/events HTTP/1.1" in passed and passed.count(b"thread.message.delta") > 5 and not self.server.has_cut:
                    self.server.has_cut = True
                    return


@contextlib.contextmanager
def proxy_that_cuts_one_stream(target: str) -> Iterator[Proxy]:
    with Proxy(target) as proxy:
        serving = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        serving.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            serving.join(TIMEOUT_SECONDS)


FUNCTION = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
HELLO = {"role": "user", "content": "Hello"}
SEARCH, COMPUTE = {"type": "file_search"}, {"type": "code_interpreter"}
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


# ---- chat on a pipe ----------------------------------------------------------------------------------------------------------------


def test_a_question_on_a_pipe_is_answered_on_standard_output(server: Server) -> None:
    result = run(server, "chat", "--model", "scripted", question="What is Grüße 🌍?\n")

    assert (result.returncode, result.stdout, result.stderr) == (0, "You said: What is Grüße 🌍?\n", "")


def test_one_assistant_serves_all_conversations_with_a_model(server: Server) -> None:
    for _ in range(2):
        assert run(server, "chat", "--model", "shared", question="Hi").returncode == 0

    assistants = server.call("GET", "/assistants?limit=100")["data"]
    assert [assistant["metadata"] for assistant in assistants if assistant["model"] == "shared"] == [{"made_by": "mini-assistant chat"}]


def test_a_file_is_sent_with_the_question_and_its_citation_listed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "food.txt").write_text("Anna's favorite food is pizza.")
    result = run(server, "chat", "--model", "cites", "--file", str(tmp_path / "food.txt"), question="What does Anna like?")

    assert (result.returncode, result.stdout, result.stderr) == (0, "Anna likes pizza[1].\n\n[1] food.txt\n", "")


@pytest.mark.parametrize(
    ("model", "status", "out", "problem"),
    [
        ("breaks", 1, "Half of \n", "mini-assistant: The run failed (server_error): "),
        ("asks", 1, "", "mini-assistant: The run waits for what get_weather gives, and nobody is there to say it. It was cancelled."),
    ],
)
def test_an_answer_that_does_not_come_is_told_by_the_status(server: Server, model: str, status: int, out: str, problem: str) -> None:
    result = run(server, "chat", "--assistant", server.assistant(model, FUNCTION), question="Hi")

    assert (result.returncode, result.stdout) == (status, out)
    assert result.stderr.startswith(problem)


@pytest.mark.parametrize(
    ("arguments", "question", "problem"),
    [
        ([], " \n", "There is no question on standard input."),
        (["--assistant", "asst_none"], "Hi", "No assistant found with id 'asst_none'."),
        (["--thread", "thread_none"], "Hi", "No thread found with id 'thread_none'."),
        (["--file", "none.txt"], "Hi", "No such file or directory: 'none.txt'"),
        (["--key-env", "NOT_SET"], "Hi", "The key comes from the variable NOT_SET; --key-env names another."),
        (["--url", "localhost:1"], "Hi", "--url must begin with http:// or https://"),
        (["--url", "http://127.0.0.1:9"], "Hi", "No server answers at http://127.0.0.1:9/v1"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(server: Server, arguments: list[str], question: str, problem: str) -> None:
    result = run(server, "chat", "--model", "scripted", *arguments, question=question)

    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("mini-assistant: ")
    assert problem in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_model_cannot_send_control_characters(server: Server) -> None:
    result = run(server, "chat", "--model", "rude", question="Hi")

    assert result.returncode == 0
    assert not CONTROL.search(result.stdout)
    assert result.stdout == "safe \\x1b]0;title\\x07\\x1b[2J\\x9b31m \\u202egnp\n"


def test_an_interrupt_on_a_pipe_cancels_the_run(server: Server) -> None:
    arguments = [sys.executable, "-m", "mini_assistant", "chat", "--url", server.url, "--model", "stalls"]
    process = subprocess.Popen(arguments, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"Hi")
        process.stdin.close()
        process.stdin = None
        assert os.read(process.stdout.fileno(), 100) == b"Begun. "
        process.send_signal(signal.SIGINT)
        _, notes = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT_SECONDS)

    assert process.returncode == 130
    assert b"The run was cancelled." in notes
    assert b"Traceback" not in notes
    threads = server.call("GET", "/threads?limit=1")["data"]
    assert server.last_run(threads[0]["id"])["status"] == "cancelled"


def test_a_stream_that_is_cut_off_is_taken_up_where_it_was(server: Server) -> None:
    with proxy_that_cuts_one_stream(server.url) as proxy:
        result = run(server, "chat", "--url", proxy.url, "--model", "wordy", question="Hi")

    assert proxy.has_cut
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{WORDS}\n", "")


def test_the_whole_answer_is_shown_after_a_crash_of_the_server(tmp_path: Path) -> None:
    rules = [
        {"times": 1, "steps": [{"do": "text", "text": "Begun. "}, {"do": "stall"}]},
        {"steps": [{"do": "text", "text": "Begun again, and ended."}]},
    ]
    (tmp_path / "script.json").write_text(json.dumps({"rules": rules}))
    with scripted_model_process(tmp_path / "script.json") as model:
        process = ServerProcess(tmp_path / "data", {"OPENAI_BASE_URL": model, "MINI_ASSISTANT_SANDBOX": "none"})
        process.start()
        with proxy_that_cuts_one_stream(process.address) as proxy:
            arguments = [sys.executable, "-m", "mini_assistant", "chat", "--url", proxy.url, "--model", "any"]
            chat = subprocess.Popen(arguments, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            try:
                assert chat.stdin is not None
                assert chat.stdout is not None
                chat.stdin.write(b"Hi")
                chat.stdin.close()
                chat.stdin = None
                assert os.read(chat.stdout.fileno(), 100) == b"Begun. "
                process.kill()
                process.start()
                proxy.go_to(process.address)
                rest, notes = chat.communicate(timeout=TIMEOUT_SECONDS)
            finally:
                chat.kill()
                chat.communicate(timeout=TIMEOUT_SECONDS)
                process.stop()

    assert chat.returncode == 0, notes
    assert b"The whole answer:" in notes
    assert rest.endswith(b"Begun again, and ended.\n")
    assert b"Traceback" not in notes


# ---- chat on a terminal ------------------------------------------------------------------------------------------------------------


def test_a_conversation_on_a_terminal(server: Server) -> None:
    with terminal(server, "chat", "--model", "scripted") as chat:
        chat.wait_for("model scripted. /help lists what can be typed.")
        chat.wait_for("> ")
        chat.type("Good morning\n")
        chat.wait_for("You said: Good morning")
        chat.wait_for("> ")
        chat.type("/nothing\n")
        chat.wait_for("There is no /nothing.")
        chat.type("/help\n")
        chat.wait_for("/file PATH")
        chat.type(" /etc is a folder\n")
        chat.wait_for("You said: /etc is a folder")
        chat.type("/quit\n")
        assert chat.status() == 0
        thread_id = re.search(r"chat --thread (thread_\w+)", chat.text)

    assert ESCAPE + "[2m" in chat.text
    assert thread_id is not None
    with terminal(server, "chat", "--thread", thread_id[1], NO_COLOR="1") as chat:
        chat.wait_for("model scripted")
        chat.wait_for("> Good morning")
        chat.wait_for("You said: Good morning")
        chat.wait_for("You said: /etc is a folder")
        chat.wait_for("> ")
        chat.type("/new\n")
        chat.wait_for("A new conversation.")
        chat.wait_for("> ")
        chat.type("\x04")
        assert chat.status() == 0
    assert ESCAPE + "[2m" not in chat.text
    assert "--thread" not in chat.text


def test_code_and_what_it_prints_are_shown_and_its_file_is_saved(server: Server, tmp_path: Path) -> None:
    with terminal(server, "chat", "--assistant", server.assistant("computes", COMPUTE), NO_COLOR="1", cwd=tmp_path) as chat:
        chat.wait_for("> ")
        chat.type("Compute\n")
        chat.wait_for("* runs code\r\n  | print('six', 2 * 3)\r\n  | open('/mnt/data/t.csv', 'w').write('a,b')\r\n")
        chat.wait_for("* prints\r\n  | six 6\r\n")
        chat.wait_for("See [t](sandbox:/mnt/data/t.csv).\r\n")
        chat.wait_for("t.csv: /save file-")
        chat.wait_for("> ")
        made = re.search(r"/save (file-\w+)", chat.text)
        assert made is not None
        chat.type(f"/save {made[1]}\n")
        chat.wait_for("Kept as t.csv.")
        chat.type(f"/save {made[1]}\n")
        chat.wait_for("File exists")
        chat.type("/files\n")
        chat.wait_for(f"t.csv: made, /save {made[1]}")
        chat.type("/quit\n")
        assert chat.status() == 0
    assert (tmp_path / "t.csv").read_text() == "a,b"


def test_a_file_is_attached_and_searches_show_their_sources(server: Server, tmp_path: Path) -> None:
    (tmp_path / "food.txt").write_text("Anna's favorite food is pizza.")
    with terminal(server, "chat", "--assistant", server.assistant("cites", SEARCH), NO_COLOR="1", cwd=tmp_path) as chat:
        chat.wait_for("> ")
        chat.type("/file food.txt\n")
        chat.wait_for("food.txt goes with the next question.")
        chat.type("/file none.txt\n")
        chat.wait_for("No such file")
        chat.type("What does Anna like?\n")
        chat.wait_for("* searched files: 1 passages")
        assert re.search(r"  \| 0\.\d\d food\.txt\r\n", chat.text) or chat.wait_for(" food.txt\r\n") is None
        chat.wait_for("Anna likes pizza[1].\r\n\r\n[1] food.txt\r\n")
        chat.type("/files\n")
        chat.wait_for("food.txt: sent")
        chat.wait_for("> ")
        chat.type("\x04")
        assert chat.status() == 0


def test_the_person_types_what_a_function_gives(server: Server) -> None:
    with terminal(server, "chat", "--assistant", server.assistant("asks", FUNCTION), NO_COLOR="1") as chat:
        chat.wait_for("> ")
        chat.type("How is the weather?\n")
        chat.wait_for("* asks for get_weather\r\n")
        chat.wait_for(f"get_weather {WEATHER}\r\n")
        chat.wait_for("output of the function: ")
        chat.type("sunny\n")
        chat.wait_for("The tool returned: sunny\r\n")
        chat.type("And now?\n")
        chat.wait_for("output of the function: ")
        chat.interrupt()
        chat.wait_for("The run was cancelled.")
        chat.type("/quit\n")
        assert chat.status() == 0


def test_an_interrupt_cancels_the_run_and_the_conversation_goes_on(server: Server) -> None:
    with terminal(server, "chat", "--assistant", server.assistant("stalls")) as chat:
        chat.wait_for("> ")
        chat.type("Go\n")
        chat.wait_for("Begun. ")
        chat.interrupt()
        chat.wait_for("Cancelling.")
        chat.wait_for("The run was cancelled.")
        chat.wait_for("> ")
        chat.interrupt()
        chat.wait_for("Ctrl-C once more leaves.")
        chat.wait_for("> ")
        chat.interrupt()
        assert chat.status() == 130
    assert "Traceback" not in chat.text


def test_a_second_interrupt_leaves(server: Server) -> None:
    with terminal(server, "chat", "--assistant", server.assistant("stalls")) as chat:
        chat.wait_for("> ")
        chat.type("Go\n")
        chat.wait_for("Begun. ")
        server.process.freeze()  # so that the cancellation is not answered before the second one
        try:
            chat.interrupt()
            chat.wait_for("Cancelling.")
            chat.interrupt()
            assert chat.status() == 130
        finally:
            server.process.thaw()
    assert "Traceback" not in chat.text


def test_a_run_that_waits_is_taken_up_again(server: Server) -> None:
    made = server.call("POST", "/threads/runs", {"assistant_id": server.assistant("asks", FUNCTION), "thread": {"messages": [HELLO]}})
    with terminal(server, "chat", "--thread", made["thread_id"]) as chat:
        chat.wait_for("output of the function: ")
        chat.type("rain\n")
        chat.wait_for("The tool returned: rain")
        chat.type("/quit\n")
        assert chat.status() == 0


def test_the_end_of_input_cancels_a_run_that_waits(server: Server) -> None:
    made = server.call("POST", "/threads/runs", {"assistant_id": server.assistant("asks", FUNCTION), "thread": {"messages": [HELLO]}})
    with terminal(server, "chat", "--thread", made["thread_id"]) as chat:
        chat.wait_for("output of the function: ")
        chat.type("\x04")
        assert chat.status() == 0
    assert "Traceback" not in chat.text
    assert server.last_run(made["thread_id"])["status"] == "cancelled"


def test_a_model_cannot_send_control_characters_to_a_terminal(server: Server) -> None:
    with terminal(server, "chat", "--model", "rude", NO_COLOR="1") as chat:
        chat.wait_for("> ")
        chat.type("Hi\n")
        chat.wait_for("safe ")
        chat.wait_for("gnp")
        told = chat.text[chat.text.index("safe ") :]
        chat.type("/quit\n")
        assert chat.status() == 0
    assert told.startswith("safe \\x1b]0;title\\x07\\x1b[2J\\x9b31m \\u202egnp")


# ---- ingest ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "manuals"
    (root / "sub").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for path, text in {
        "a.txt": "Anna's favorite food is pizza.",
        "sub/a.txt": "Bob's favorite food is soup.",
        'Grüße "x".md': "# Carl likes bread.",
        "bad.pdf": "no PDF at all",
        "figures.csv": "a,b",
        ".hidden/secret.txt": "not meant",
    }.items():
        (root / path).write_text(text)
    return root


def test_a_folder_is_ingested_once(server: Server, folder: Path) -> None:
    first = run(server, "ingest", str(folder), "--store", "once", "--attributes", "year=2024", "--attributes", 'code="7"')

    assert (first.returncode, first.stderr) == (1, "")
    lines = first.stdout.splitlines()
    assert sorted(lines[:-1]) == [
        'added    Grüße "x".md',
        "added    a.txt",
        "added    sub/a.txt",
        "failed   bad.pdf: The file could not be parsed. It is not a valid PDF document.",
    ]
    assert lines[-1].startswith("3 added, 0 present already, 1 failed: the vector store once (vs_")
    files = server.store_files("once")
    assert {path: file["status"] for path, file in files.items()} == {
        'Grüße "x".md': "completed",
        "a.txt": "completed",
        "sub/a.txt": "completed",
        "bad.pdf": "failed",
    }
    assert files["sub/a.txt"]["attributes"] == {"path": "sub/a.txt", "year": 2024, "code": "7"}
    names = {server.call("GET", f"/files/{file['id']}")["filename"] for file in files.values()}
    assert names == {'Grüße "x".md', "a.txt", "bad.pdf"}

    (folder / "bad.pdf").unlink()
    again = run(server, "ingest", str(folder), "--store", "once")
    assert (again.returncode, again.stderr) == (0, "")
    assert sorted(again.stdout.splitlines()[:-1]) == ['present  Grüße "x".md', "present  a.txt", "present  sub/a.txt"]
    assert server.store_files("once").keys() == files.keys()


def test_what_has_changed_is_replaced_when_that_is_wanted(server: Server, folder: Path) -> None:
    arguments = (str(folder), "--store", "changing", "--glob", "**/a.txt")
    assert run(server, "ingest", *arguments).returncode == 0
    before = server.store_files("changing")
    text = (folder / "a.txt").read_text()
    (folder / "a.txt").write_text(text[::-1])  # of the same size

    kept = run(server, "ingest", *arguments)
    assert kept.returncode == 0
    assert {"added    a.txt", "present  sub/a.txt", "earlier  a.txt"} <= set(kept.stdout.splitlines())
    found = server.call("POST", f"/vector_stores/{before['a.txt']['vector_store_id']}/search", {"query": "food"})["data"]
    assert len(found) == 3

    replaced = run(server, "ingest", *arguments, "--replace")
    assert "0 added, 2 present already, 0 failed, 1 earlier versions taken out:" in replaced.stdout
    found = server.call("POST", f"/vector_stores/{before['a.txt']['vector_store_id']}/search", {"query": "food"})["data"]
    assert {passage["content"][0]["text"] for passage in found} == {text[::-1], "Bob's favorite food is soup."}
    files = server.call("GET", "/files?purpose=assistants")["data"]
    assert before["a.txt"]["id"] not in {file["id"] for file in files}
    assert before["sub/a.txt"]["id"] in {file["id"] for file in files}


def test_a_file_that_somebody_else_has_added_is_known_by_its_name(server: Server, folder: Path) -> None:
    store = server.call("POST", "/vector_stores", {"name": "mixed"})["id"]
    assert run(server, "ingest", str(folder), "--store", store, "--glob", "a.txt").returncode == 0
    file_id = server.store_files("mixed")["a.txt"]["id"]
    server.call("POST", f"/vector_stores/{store}/files/{file_id}", {"attributes": {}})

    result = run(server, "ingest", str(folder), "--store", "mixed", "--glob", "a.txt")
    assert "present  a.txt\n" in result.stdout
    (folder / "a.txt").write_text("Something else.")
    result = run(server, "ingest", str(folder), "--store", "mixed", "--glob", "a.txt", "--replace")
    assert (result.returncode, "1 earlier versions taken out" in result.stdout) == (0, True)
    assert server.store_files("mixed").keys() == {"a.txt"}
    assert server.call("GET", f"/files/{file_id}")["id"] == file_id  # it was not uploaded by an ingest, so it is not deleted


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--glob", "*.none"], "No file of the folder fits."),
        (["--glob", "../*"], "--glob takes a pattern inside of the folder"),
        (["--attributes", "year"], "--attributes takes KEY=VALUE"),
        (["--attributes", "path=x"], "no key 'path'"),
        (["--key-env", "NOT_SET"], "The key comes from the variable NOT_SET"),
        (["--url", "http://127.0.0.1:9"], "No server answers at http://127.0.0.1:9/v1"),
    ],
)
def test_ingest_says_what_is_wrong(server: Server, folder: Path, arguments: list[str], problem: str) -> None:
    result = run(server, "ingest", str(folder), "--store", "wrong", *arguments)

    assert result.returncode == 1
    assert result.stderr.startswith("mini-assistant: ")
    assert problem in result.stderr
    assert "Traceback" not in result.stderr


def test_two_stores_of_one_name_are_not_chosen_from(server: Server, folder: Path) -> None:
    ids = [server.call("POST", "/vector_stores", {"name": "twice"})["id"] for _ in range(2)]
    result = run(server, "ingest", str(folder), "--store", "twice")

    assert result.returncode == 1
    assert all(store_id in result.stderr for store_id in ids)


def test_a_terminal_shows_a_bar_and_the_reasons_at_the_end(server: Server, folder: Path) -> None:
    with terminal(server, "ingest", str(folder), "--store", "bar", "--parallel", "1", NO_COLOR="1") as ingest:
        assert ingest.status() == 1

    shown = ingest.text.split("\r\x1b[K")
    assert any(line.startswith("[........................] 0/4, ") for line in shown)
    assert any(line.startswith("[########################] 4/4, ") and ", 1 failed" in line for line in shown)
    assert shown[-1].startswith("3 added, 0 present already, 1 failed: the vector store bar (vs_")
    assert "failed   bad.pdf: The file could not be parsed." in shown[-1]


def test_names_cannot_send_control_characters(server: Server, tmp_path: Path) -> None:
    (tmp_path / "rude\x1b[2J\n.txt").write_text("Some text.")
    result = run(server, "ingest", str(tmp_path), "--store", "rude names")

    assert result.returncode == 0
    assert "added    rude\\x1b[2J\\n.txt\n" in result.stdout
    assert not CONTROL.search(result.stdout)


def test_an_interrupt_stops_an_ingest_cleanly(server: Server, tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number:03}.txt").write_text(f"Text number {number}.")
    arguments = [sys.executable, "-m", "mini_assistant", "ingest", "--url", server.url, str(tmp_path), "--store", "cut", "--parallel", "2"]
    process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("added    ")
        process.send_signal(signal.SIGINT)
        out, problems = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT_SECONDS)

    assert (process.returncode, problems) == (130, "")
    assert "Stopping when what is being uploaded has arrived." in out
    assert re.search(r"\d+ added, 0 present already, 0 failed, \d+ not done: the vector store cut", out)
    assert "The same command goes on where this one has stopped." in out
    in_store = {file["id"] for file in server.store_files("cut").values()}
    uploaded = server.call("GET", "/files?purpose=assistants")["data"]
    assert {file["id"] for file in uploaded if re.fullmatch(r"\d{3}\.txt", file["filename"])} <= in_store


# ---- parts -------------------------------------------------------------------------------------------------------------------------


def test_text_of_others_is_made_fit() -> None:
    assert printable("a\tb\nc\r\nd") == "a\tb\nc\nd"
    assert printable("\x1b[31m\x07\r\x7f\x9b") == "\\x1b[31m\\x07\\x0d\\x7f\\x9b"
    assert printable("\u202eabc\u2066\ud800") == "\\u202eabc\\u2066\\ud800"
    assert printable("Grüße 🌍 日本") == "Grüße 🌍 日本"
    assert one_line("a\nb\tc") == "a\\nb c"
    assert fitted("日本語", 5) == "日本"
    assert fitted("abc", 3) == "abc"


def test_frames_are_put_together_from_pieces() -> None:
    data = ': ping\nid: 1-2.3\nevent: thread.run.created\ndata: {"id": "ü"}\n\n: ping\n\nevent: done\ndata: [DONE]\n\n'.encode()
    expected = [Event("1-2.3", "thread.run.created", {"id": "ü"}), Event("", "done", None)]
    for size in (1, 2, 7, len(data)):
        frames = EventFrames()
        assert [event for start in range(0, len(data), size) for event in frames.feed(data[start : start + size])] == expected


def test_files_of_a_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("outside")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    (folder / "near.txt").symlink_to(folder / "a.txt")

    found = find_files(folder, [])
    assert [file.path for file in found.files] == ['Grüße "x".md', "a.txt", "bad.pdf", "near.txt", "sub/a.txt"]
    assert found.leading_out == ["link.txt"]
    assert [file.path for file in find_files(folder, ["*.csv", ".hidden/*", "*.c*"]).files] == [".hidden/secret.txt", "figures.csv"]
    for pattern in ("", "/etc/*", "sub/../../*"):
        with pytest.raises(ConfigError):
            find_files(folder, [pattern])
    with pytest.raises(ConfigError, match="is no folder"):
        find_files(folder / "a.txt", [])
    assert len(stored_path("x/" * 400)) == 512


def test_attributes_are_read_as_numbers_and_texts() -> None:
    pairs = ["a=1", "b=1.5", "c=true", 'd="1"', "e=plain text", "f=", "g=a=b", "h=null", "i=[1]"]
    assert parsed_attributes(pairs) == {
        "a": 1,
        "b": 1.5,
        "c": True,
        "d": "1",
        "e": "plain text",
        "f": "",
        "g": "a=b",
        "h": "null",
        "i": "[1]",
    }
    with pytest.raises(ConfigError, match="at most 15"):
        parsed_attributes([f"k{number}=1" for number in range(16)])


def test_sizes_are_for_people() -> None:
    assert [size_text(size) for size in (0, 999, 1000, 123_456, 7_800_000)] == ["0 B", "999 B", "1.0 kB", "123 kB", "7.8 MB"]
