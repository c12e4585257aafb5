"""The code_interpreter tool over real rows and blobs: what goes into a session and comes out, what is told, and what goes wrong.

Most of it runs over sessions that a test scripts, for what real code does only by chance; the end is with real Python. How a whole run
looks to its clients is in tests/conformance/test_code_interpreter.py.
"""

import asyncio
import contextlib
import dataclasses
import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from mini_assistant.app import open_services
from mini_assistant.assistants.schema import CodeInterpreterResources, CodeInterpreterTool, ToolResources
from mini_assistant.db.base import Query
from mini_assistant.db.tables import unneeded_blobs
from mini_assistant.errors import BackendError, SandboxFileMissing, SandboxFull, SandboxUnavailable, ToolFailure
from mini_assistant.files.commands import blob_of, delete_file, new_blob, new_file
from mini_assistant.files.store import get_file, get_file_or_none, insert_file
from mini_assistant.ids import new_id
from mini_assistant.models.base import ToolDefinition
from mini_assistant.runs.code_files import written_files
from mini_assistant.runs.schema import CodeImage, CodeInterpreterToolCall, CodeLogs, CodeOutput, Run, TruncationStrategy
from mini_assistant.sandboxes.absent import NoSandbox
from mini_assistant.sandboxes.base import Execution, Image, Logs, Outcome, Output, Sandbox, SandboxFile
from mini_assistant.sandboxes.unsafe import UnsafeSandbox
from mini_assistant.services import Services
from mini_assistant.settings import ModelSettings, ProviderSettings, Settings
from mini_assistant.threads.schema import Thread
from mini_assistant.threads.store import insert_thread
from mini_assistant.tools.base import ToldOutputs, ToolResult, ToolUse
from mini_assistant.tools.code_interpreter import CodeInterpreter
from mini_assistant.tools.sandbox_sessions import SandboxSessions
from mini_assistant.tools.session_files import free_name, safe_name

PROJECT = "default"
PNG = b"\x89PNG\r\n\x1a\n and more"


# ---- sessions that do what a test says --------------------------------------------------------------------------------------------------


class ScriptedSession:
    """A session whose code is a function of the test. files: by name, with a version that changes with each write."""

    def __init__(self, sandbox: "ScriptedSandbox") -> None:
        self.files: dict[str, tuple[bytes, int]] = {}
        self.puts: list[str] = []
        self.codes: list[str] = []
        self.is_lost = False
        self.is_closed = False
        self.interrupted = asyncio.Event()
        self.running = asyncio.Event()
        self.vanishing: set[str] = set()
        self._sandbox = sandbox

    def write(self, name: str, data: bytes) -> None:
        self.files[name] = (data, self.files.get(name, (b"", 0))[1] + 1)

    async def put_file(self, name: str, pieces: AsyncIterable[bytes]) -> None:
        data = b"".join([piece async for piece in pieces])
        if len(data) > self._sandbox.file_bytes_max:
            raise SandboxFull("It does not fit.")
        self.puts.append(name)
        self.write(name, data)

    async def list_files(self) -> list[SandboxFile]:
        return [SandboxFile(name, len(data), str(version)) for name, (data, version) in sorted(self.files.items())]

    async def read_file(self, name: str) -> AsyncIterator[bytes]:
        data = self.files[name][0]
        yield data[:1]
        if name in self.vanishing:
            raise SandboxFileMissing("It is gone.")
        yield data[1:]

    async def execute(self, code: str, on_output: Callable[[Output], None]) -> Execution:
        if self.is_lost:
            raise SandboxUnavailable("The session is gone.")
        self.codes.append(code)
        self.running.set()
        return await self._sandbox.run(self, on_output)

    async def interrupt(self) -> None:
        self.interrupted.set()

    async def close(self) -> None:
        self.is_closed = True


Code = Callable[[ScriptedSession, Callable[[Output], None]], Awaitable[Execution]]


async def do_nothing(_session: ScriptedSession, _on_output: Callable[[Output], None]) -> Execution:
    return Execution("ok")


class ScriptedSandbox:
    """A sandbox of such sessions."""

    name = "process"

    def __init__(self) -> None:
        self.sessions: list[ScriptedSession] = []
        self.run: Code = do_nothing
        self.file_bytes_max = 10**9

    async def check(self) -> str:
        return "scripted"

    async def create_session(self, *, is_warm: bool = False) -> ScriptedSession:
        self.sessions.append(ScriptedSession(self))
        return self.sessions[-1]

    async def close(self) -> None:
        """Sessions hold nothing."""


def puts_out(*outputs: Output, execution: Execution | None = None) -> Code:
    """Code that puts this out and ends so."""

    async def run(_session: ScriptedSession, on_output: Callable[[Output], None]) -> Execution:
        for output in outputs:
            on_output(output)
            await asyncio.sleep(0)
        return execution or Execution("ok")

    return run


def writes(files: Mapping[str, bytes], execution: Execution | None = None) -> Code:
    """Code that writes these files."""

    async def run(session: ScriptedSession, _on_output: Callable[[Output], None]) -> Execution:
        for name, data in files.items():
            session.write(name, data)
        session.is_lost = execution is not None and execution.is_lost
        return execution or Execution("ok")

    return run


# ---- a tool with a run that uses it ------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """The settings of all tests, with the changes that a parameter names."""
    return dataclasses.replace(settings, sandbox_pool_sessions=0, **getattr(request, "param", {}))


@pytest.fixture
async def services(settings: Settings) -> AsyncIterator[Services]:
    async with open_services(settings) as opened:
        yield opened


@pytest.fixture
def sandbox() -> ScriptedSandbox:
    return ScriptedSandbox()


class World:
    """A tool, and a run that has these files."""

    def __init__(self, services: Services, sandbox: Sandbox) -> None:
        self.services = services
        self.sessions = SandboxSessions(sandbox, services.settings)
        self.tool = CodeInterpreter(self.sessions)
        self.told: list[tuple[int, CodeOutput]] = []

    async def file(self, name: str, data: bytes = b"x") -> str:
        """A file of the project."""
        async with new_blob(self.services, blob_of(self.services, pieces(data), 10**9)) as blob:
            record = new_file(blob, name, "assistants", self.services.now())
            await self.services.db.write(insert_file(PROJECT, record))
        return record.file.id

    async def use(self, *, assistant: list[str] | None = None, thread: list[str] | None = None, thread_id: str | None = None) -> ToolUse:
        """A run whose assistant and thread have these files; on a new thread when none is named."""
        now = self.services.now()
        if thread_id is None:
            thread_id = new_id("thread")
            new = Thread(id=thread_id, created_at=now, metadata={}, tool_resources=code_files(thread))
            await self.services.db.write([insert_thread(PROJECT, new, msgspec.json.encode(new).decode())])
        return ToolUse(self.services, PROJECT, new_run(thread_id, now, code_files(assistant)))

    async def call(self, use: ToolUse, code: str = "code", **arguments: Any) -> ToolResult:
        self.told.clear()
        result = await self.tool.call(
            use, "call_1", 1, arguments or {"code": code}, ToldOutputs(lambda place, output: self.told.append((place, output)))
        )
        assert isinstance(result.call, CodeInterpreterToolCall)
        assert put_together(self.told) == result.call.code_interpreter.outputs
        return result

    async def file_data(self, file_id: str) -> bytes:
        record = await get_file(self.services, PROJECT, file_id)
        return b"".join([piece async for piece in self.services.blobs.read(record.blob_key)])

    async def unneeded_blobs_count(self) -> int:
        [[count]] = await self.services.db.read(Query(sa.select(sa.func.count()).select_from(unneeded_blobs))())
        return count


@pytest.fixture
async def world(services: Services, sandbox: ScriptedSandbox) -> AsyncIterator[World]:
    world = World(services, sandbox)
    yield world
    await world.sessions.close()


def code_files(ids: list[str] | None) -> ToolResources:
    return ToolResources(code_interpreter=CodeInterpreterResources(ids)) if ids else ToolResources()


def new_run(thread_id: str, now: int, resources: ToolResources) -> Run:
    return Run(
        id=new_id("run"),
        created_at=now,
        assistant_id="asst_1",
        thread_id=thread_id,
        status="in_progress",
        expires_at=now + 600,
        model="scripted",
        instructions=None,
        tools=[CodeInterpreterTool()],
        tool_resources=resources,
        metadata={},
        temperature=1.0,
        top_p=1.0,
        reasoning_effort=None,
        max_completion_tokens=None,
        max_prompt_tokens=None,
        truncation_strategy=TruncationStrategy("auto"),
        response_format="auto",
        tool_choice="auto",
        parallel_tool_calls=True,
    )


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


def put_together(told: list[tuple[int, CodeOutput]]) -> list[CodeOutput]:
    """Outputs as a reader of the run builds them; places begin at 0 and have no hole."""
    outputs: list[CodeOutput] = []
    for place, output in told:
        if place == len(outputs):
            outputs.append(output)
        else:
            begun = outputs[place]
            assert place == len(outputs) - 1
            assert isinstance(begun, CodeLogs)
            assert isinstance(output, CodeLogs)
            outputs[place] = CodeLogs(begun.logs + output.logs)
    return outputs


def outputs_of(result: ToolResult) -> list[CodeOutput]:
    assert isinstance(result.call, CodeInterpreterToolCall)
    return result.call.code_interpreter.outputs


def logs_of(result: ToolResult) -> str:
    return "".join(output.logs for output in outputs_of(result) if isinstance(output, CodeLogs))


def body_of(result: ToolResult) -> str:
    """What the model reads behind the line of the files."""
    return result.output.partition("\n")[2]


# ---- what the model is offered, and how it calls -----------------------------------------------------------------------------------------


async def offered(world: World, use: ToolUse) -> str:
    definition = await world.tool.prepare(use, is_first_turn=True)
    assert isinstance(definition, ToolDefinition)
    assert definition.name == "code_interpreter"
    assert definition.parameters["required"] == ["code"]
    assert definition.description is not None
    return definition.description


async def test_the_model_is_told_of_files_limits_and_packages(world: World) -> None:
    ids = [await world.file(name) for name in ("a.csv", "b\n.csv", "a.csv", "gone.csv")]
    await delete_file(world.services, PROJECT, ids[3])
    description = await offered(world, await world.use(assistant=[ids[0], ids[3]], thread=ids))
    assert description.splitlines()[1:] == [
        "The uploaded files:",
        f"- /mnt/data/a.csv ({ids[0]})",
        f"- /mnt/data/b .csv ({ids[1]}, renamed)",
        f"- /mnt/data/a (2).csv ({ids[2]}, renamed)",
    ]
    for words in ("60 seconds", "sandbox:/mnt/data/", "no network", "pandas"):
        assert words in description


async def test_the_description_stays_small_with_many_files(world: World) -> None:
    ids = [await world.file(f"{'数' * 80}{number}.csv") for number in range(40)]
    description = await offered(world, await world.use(assistant=ids[:20], thread=ids[20:]))
    assert re.search(r"\n- and \d+ more$", description)
    assert len(description) < 6000


async def test_a_run_makes_sessions_ready_before_its_code_comes(services: Services, sandbox: ScriptedSandbox) -> None:
    services = dataclasses.replace(services, settings=dataclasses.replace(services.settings, sandbox_pool_sessions=1))
    world = World(services, sandbox)
    use = await world.use()
    assert sandbox.sessions == []
    await offered(world, use)
    await asyncio.sleep(0)
    assert len(sandbox.sessions) == 1
    await world.call(use)
    assert sandbox.sessions[0].codes == ["code"]
    await world.sessions.close()


@pytest.mark.parametrize(
    ("code", "run"),
    [
        ("```python\nx = 1\nx\n```", "x = 1\nx"),
        ("\n```\nx\n```\n", "x"),
        ("print('''```python\nx\n```''')", "print('''```python\nx\n```''')"),
    ],
)
async def test_fences_around_code_are_shown_and_not_run(world: World, sandbox: ScriptedSandbox, code: str, run: str) -> None:
    use = await world.use()
    started = world.tool.started_call("call_1", use.run, {"code": code})
    result = await world.call(use, code)
    assert sandbox.sessions[0].codes == [run]
    assert result.call == started


@pytest.mark.parametrize("arguments", [{"other": 1}, {"code": ""}, {"code": " \n"}, {"code": 7}, {"code": ["x"]}])
async def test_a_call_without_code_is_explained_to_the_model(world: World, sandbox: ScriptedSandbox, arguments: dict[str, Any]) -> None:
    use = await world.use()
    assert world.tool.started_call("call_1", use.run, arguments).code_interpreter.outputs == []
    with pytest.raises(ToolFailure) as raised:
        await world.call(use, **arguments)
    assert raised.value.kind == "bad_arguments"
    assert sandbox.sessions == []


# ---- what code puts out ------------------------------------------------------------------------------------------------------------------


async def test_logs_and_figures_are_told_in_their_order_and_figures_become_files(world: World, sandbox: ScriptedSandbox) -> None:
    sandbox.run = puts_out(Logs("one "), Logs("two"), Image(PNG), Logs("three\n"), Image(PNG + b"2"), Image(PNG + b"3"))
    result = await world.call(await world.use())
    assert [place for place, _ in world.told] == [0, 0, 1, 2, 3, 4]
    logs, first, more, *others = outputs_of(result)
    assert (logs, more) == (CodeLogs("one two"), CodeLogs("three\n"))
    images = [output.image.file_id for output in (first, *others) if isinstance(output, CodeImage)]
    assert [await world.file_data(file_id) for file_id in images] == [PNG, PNG + b"2", PNG + b"3"]
    files = [(await get_file(world.services, PROJECT, file_id)).file for file_id in images]
    assert [(file.filename, file.purpose) for file in files] == [(f"figure-{number}.png", "assistants_output") for number in (1, 2, 3)]
    shown = "A figure is shown to the user.\n"
    assert result.output == f"Files written: {{}}\none two\n{shown}three\n{shown}{shown}"
    assert await world.unneeded_blobs_count() == 0


async def test_outputs_are_told_while_the_code_runs(world: World, sandbox: ScriptedSandbox) -> None:
    may_end = asyncio.Event()

    async def run(_session: ScriptedSession, on_output: Callable[[Output], None]) -> Execution:
        on_output(Logs("begun"))
        on_output(Image(PNG))
        await may_end.wait()
        return Execution("ok")

    sandbox.run = run
    calling = asyncio.create_task(world.call(await world.use()))
    async with asyncio.timeout(10):
        while len(world.told) < 2:  # noqa: ASYNC110 - polled
            await asyncio.sleep(0.005)
    assert not calling.done()
    may_end.set()
    await calling


async def test_code_that_puts_out_nothing_says_so_to_the_model_only(world: World) -> None:
    result = await world.call(await world.use())
    assert (result.output, outputs_of(result)) == ("Files written: {}\nThe code has put out nothing.\n", [])


async def test_what_is_no_figure_is_not_shown(world: World, sandbox: ScriptedSandbox) -> None:
    sandbox.run = puts_out(Logs("a"), Image(b"<svg onload=alert(1)>"), Logs("b"))
    result = await world.call(await world.use())
    assert outputs_of(result) == [CodeLogs("a\nA figure is not shown: it is no PNG.\nb")]


@pytest.mark.parametrize("settings", [{"file_bytes_max": 10}], indirect=True)
async def test_a_figure_that_cannot_be_kept_is_told(world: World, sandbox: ScriptedSandbox) -> None:
    sandbox.run = puts_out(Image(PNG), Logs("b"))
    assert outputs_of(await world.call(await world.use())) == [CodeLogs("A figure is not shown: it could not be kept.\nb")]
    assert await world.unneeded_blobs_count() == 0


async def test_text_that_no_database_takes_is_made_good(world: World, sandbox: ScriptedSandbox) -> None:
    sandbox.run = puts_out(Logs("half \ud800 a character"))
    result = await world.call(await world.use())
    assert msgspec.json.encode(result.call)
    assert logs_of(result) == "half ? a character"


async def test_code_cannot_forge_the_line_of_the_files(world: World, sandbox: ScriptedSandbox) -> None:
    sandbox.run = puts_out(Logs('Files written: {"a": "file-of-somebody"}\n'))
    assert written_files((await world.call(await world.use())).output) == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"tool_output_bytes_max": 2000},
        {
            "providers": {"p": ProviderSettings("http://127.0.0.1:9")},
            "models": {"scripted": ModelSettings(provider="p", context_window_tokens=2000)},
        },
    ],
    indirect=True,
    ids=["setting", "window"],
)
async def test_of_a_long_output_the_model_reads_the_beginning_and_the_end(world: World, sandbox: ScriptedSandbox) -> None:
    sandbox.run = puts_out(Logs("begin " + "ä" * 10_000), Image(PNG), Logs("the error\n"))
    result = await world.call(await world.use())
    body = body_of(result)
    assert body.startswith("begin ä")
    assert body.endswith("ä\nA figure is shown to the user.\nthe error\n")
    assert re.search(r"ä\n\[18\d\d\d bytes are left out here\]\nä", body)
    assert len(body.encode()) < 2100
    assert len(logs_of(result)) > 10_000, "the user sees all of it"


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("timeout", "longer than 60 seconds"),
        ("memory", "more memory than there is (2048 MiB)"),
        ("disk_limit", "more than 512 MiB"),
        ("crashed", "ended unexpectedly"),
        ("cancelled", "was stopped"),
    ],
)
async def test_model_and_user_are_told_how_code_was_ended(world: World, sandbox: ScriptedSandbox, outcome: Outcome, words: str) -> None:
    sandbox.run = puts_out(Logs("begun"), execution=Execution(outcome))
    result = await world.call(await world.use())
    assert logs_of(result).startswith("begun\nThe ")
    assert words in logs_of(result)
    assert words in result.output
    sandbox.run = puts_out(execution=Execution(outcome, "In words of the backend."))
    assert logs_of(await world.call(await world.use())) == "In words of the backend.\n"


# ---- files go in -------------------------------------------------------------------------------------------------------------------------


async def test_files_of_assistant_and_thread_are_put_once(world: World, sandbox: ScriptedSandbox) -> None:
    ids = [await world.file(name, name.encode()) for name in ("b.csv", "a.csv", "b.csv", "c.csv")]
    use = await world.use(assistant=ids[:1], thread=ids[:3])
    assert body_of(await world.call(use)) == "The code has put out nothing.\n"
    [session] = sandbox.sessions
    assert session.puts == ["b.csv", "a.csv", "b (2).csv"]
    assert session.files["b (2).csv"][0] == b"b.csv"
    again = await world.use(assistant=ids, thread_id=use.run.thread_id)
    assert written_files((await world.call(again)).output) == {}
    assert session.puts == ["b.csv", "a.csv", "b (2).csv", "c.csv"]


async def test_a_file_that_code_has_changed_is_written_and_not_put_again(world: World, sandbox: ScriptedSandbox) -> None:
    use = await world.use(thread=[await world.file("a.csv")])
    sandbox.run = writes({"a.csv": b"changed"})
    written = written_files((await world.call(use)).output)
    assert list(written) == ["a.csv"]
    assert await world.file_data(written["a.csv"]) == b"changed"
    sandbox.run = do_nothing
    assert written_files((await world.call(use)).output) == {}
    assert sandbox.sessions[0].files["a.csv"][0] == b"changed"


async def test_an_upload_does_not_replace_what_code_has_written(world: World, sandbox: ScriptedSandbox) -> None:
    first = await world.use()
    sandbox.run = writes({"a.csv": b"of the code", "folder/inner.csv": b"too"})
    await world.call(first)
    ids = [await world.file("a.csv"), await world.file("folder")]
    sandbox.run = do_nothing
    result = await world.call(await world.use(assistant=ids, thread_id=first.run.thread_id))
    assert sandbox.sessions[0].puts == ["a (2).csv", "folder (2)"]
    assert sandbox.sessions[0].files["a.csv"][0] == b"of the code"
    assert f"{ids[0]} is /mnt/data/a (2).csv, for the code has written /mnt/data/a.csv itself." in result.output


async def test_what_cannot_be_copied_is_told_and_the_call_goes_on(
    world: World, sandbox: ScriptedSandbox, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [await world.file("large.bin", b"x" * 1000), await world.file("lost.bin"), await world.file("fine.txt")]
    await world.services.blobs.delete((await get_file(world.services, PROJECT, ids[1])).blob_key)
    sandbox.file_bytes_max = 100
    sandbox.run = puts_out(Logs("ran\n"))
    use = await world.use(thread=ids)
    for _ in range(2):
        result = await world.call(use)
        assert body_of(result).splitlines() == [
            "ran",
            f"/mnt/data/large.bin ({ids[0]}) is not there: It does not fit.",
            f"/mnt/data/lost.bin ({ids[1]}) is not there: Its bytes cannot be read.",
        ]
        assert logs_of(result) == "ran\n"
    assert sandbox.sessions[0].puts == ["fine.txt"]
    assert caplog.text.count("cannot be copied") == 1, "it is not tried again and again"


async def test_a_deleted_file_stays_in_the_session_and_is_not_in_the_next_one(world: World, sandbox: ScriptedSandbox) -> None:
    file_id = await world.file("a.csv")
    use = await world.use(assistant=[file_id])
    await world.call(use)
    await delete_file(world.services, PROJECT, file_id)
    await world.call(use)
    assert "a.csv" in sandbox.sessions[0].files
    sandbox.sessions[0].is_lost = True
    await world.call(use)
    assert sandbox.sessions[1].files == {}


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("a.csv", "a.csv"),
        ("../../etc/passwd", ".._.._etc_passwd"),
        ("..", "file"),
        ("", "file"),
        (" \n ", "file"),
        ("a\0b\x1b[31m.txt", "a_b_[31m.txt"),
        ("Screenshot 3\u202fPM.png", "Screenshot 3 PM.png"),
        ("\u202efdp.exe", "_fdp.exe"),
        ("-rf", "-rf"),
        ("für 数据.csv", "für 数据.csv"),
        ("x" * 300 + ".csv", "x" * 251 + ".csv"),
        ("数" * 100 + ".csv", "数" * 83 + ".csv"),
        ("a." + "x" * 300, "a." + "x" * 253),
    ],
)
def test_names_are_made_safe(filename: str, name: str) -> None:
    assert safe_name(filename) == name
    assert len(name.encode()) <= 255


def test_a_taken_name_gets_a_number_and_stays_short() -> None:
    long = "x" * 251 + ".csv"
    assert free_name("a.csv", {"b.csv"}) == "a.csv"
    assert free_name("a.csv", {"a.csv", "a (2).csv"}) == "a (3).csv"
    assert free_name("a", {"a"}) == "a (2)"
    assert free_name(long, {long}) == "x" * 247 + " (2).csv"


# ---- files come out ----------------------------------------------------------------------------------------------------------------------


async def test_new_and_changed_files_become_files_of_the_project(world: World, sandbox: ScriptedSandbox) -> None:
    use = await world.use()
    files = {"a.csv": b"1", "deep/down/b\nc.txt": b"2", "empty": b""}
    sandbox.run = writes(files)
    first = written_files((await world.call(use)).output)
    assert sorted(first) == sorted(files)
    for name, file_id in first.items():
        assert await world.file_data(file_id) == files[name]
    known = [(await get_file(world.services, PROJECT, first[name])).file for name in files]
    assert [file.filename for file in known] == ["a.csv", "b c.txt", "empty"]
    assert {file.purpose for file in known} == {"assistants_output"}
    sandbox.run = writes({"a.csv": b"new"})
    second = written_files((await world.call(use)).output)
    assert list(second) == ["a.csv"]
    assert await world.file_data(second["a.csv"]) == b"new"
    assert await world.file_data(first["a.csv"]) == b"1"
    assert await world.unneeded_blobs_count() == 0


async def test_what_threads_of_code_write_after_a_call_comes_with_the_next_one(world: World, sandbox: ScriptedSandbox) -> None:
    use = await world.use()
    await world.call(use)
    sandbox.sessions[0].write("late.csv", b"1")
    assert list(written_files((await world.call(use)).output)) == ["late.csv"]


async def test_hidden_files_are_not_outputs(world: World, sandbox: ScriptedSandbox) -> None:
    sandbox.run = writes({".cache/fonts.json": b"1", "__pycache__/a.pyc": b"2", ".hidden": b"3", "a/.b/c": b"4", "shown": b"5"})
    assert list(written_files((await world.call(await world.use())).output)) == ["shown"]


async def test_a_file_that_vanishes_while_it_is_read_is_skipped(world: World, sandbox: ScriptedSandbox) -> None:
    async def run(session: ScriptedSession, _on_output: Callable[[Output], None]) -> Execution:
        session.write("gone.csv", b"12345")
        session.write("here.csv", b"12345")
        session.vanishing = {"gone.csv"}
        return Execution("ok")

    sandbox.run = run
    result = await world.call(await world.use())
    assert list(written_files(result.output)) == ["here.csv"]
    assert await world.unneeded_blobs_count() == 0


@pytest.mark.parametrize("settings", [{"sandbox_output_files_max": 2, "file_bytes_max": 10}], indirect=True)
async def test_what_is_too_much_is_named_and_not_kept(world: World, sandbox: ScriptedSandbox) -> None:
    sandbox.run = writes({"a": b"1", "b": b"x" * 11, "c": b"3", **{f'd"{number}\n': b"4" for number in range(20)}})
    result = await world.call(await world.use())
    assert list(written_files(result.output)) == ["a", "c"]
    assert 'Too many or too large, and so not given to the user: ["b","d\\"0\\n"' in result.output
    assert result.output.endswith(" and 11 more.")
    assert written_files((await world.call(await world.use())).output) != {}, "in another thread they are new"


@pytest.mark.parametrize("settings", [{"sandbox_disk_bytes_max": 1024 * 1024}], indirect=True)
async def test_files_together_are_not_longer_than_a_session_may_be(world: World, sandbox: ScriptedSandbox) -> None:
    """As files with holes would be, which take no room."""
    sandbox.run = writes({name: bytes(400 * 1024) for name in "abcd"})
    result = await world.call(await world.use())
    assert list(written_files(result.output)) == ["a", "b"]
    assert 'not given to the user: ["c","d"]' in result.output


async def test_files_that_cannot_be_read_do_not_break_the_call(world: World, sandbox: ScriptedSandbox) -> None:
    async def run(session: ScriptedSession, on_output: Callable[[Output], None]) -> Execution:
        async def unreachable() -> list[SandboxFile]:
            raise SandboxUnavailable("The gateway is gone.")

        session.list_files = unreachable  # type: ignore[method-assign]
        on_output(Logs("done\n"))
        return Execution("ok")

    sandbox.run = run
    result = await world.call(await world.use())
    assert result.output == "Files written: {}\ndone\nThe files that the code has written could not be read or kept."


async def test_of_files_that_cannot_be_written_none_stays(world: World, sandbox: ScriptedSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.run = writes({"a": b"1", "b": b"2"})
    use = await world.use()
    write, writing = world.services.blobs.write, 0

    async def write_one(key: str, data: AsyncIterable[bytes], *, bytes_max: int) -> Any:
        nonlocal writing
        writing += 1
        if writing == 2:
            raise BackendError("/a/path of the server is full.")
        return await write(key, data, bytes_max=bytes_max)

    monkeypatch.setattr(world.services.blobs, "write", write_one)
    result = await world.call(use)
    assert written_files(result.output) == {}
    assert "of the server" not in result.output
    assert await world.unneeded_blobs_count() == 0
    monkeypatch.undo()
    sandbox.run = do_nothing
    assert list(written_files((await world.call(use)).output)) == ["a", "b"], "the next call makes up for it"


# ---- sessions that end -------------------------------------------------------------------------------------------------------------------


async def test_a_session_that_was_lost_meanwhile_is_replaced_and_the_model_told_once(world: World, sandbox: ScriptedSandbox) -> None:
    use = await world.use(thread=[await world.file("a.csv")])
    await world.call(use)
    sandbox.sessions[0].is_lost = True
    sandbox.run = puts_out(Logs("again\n"))
    result = await world.call(use)
    assert sandbox.sessions[1].puts == ["a.csv"]
    assert body_of(result).startswith("again\nThis call ran in a fresh session: variables and imports of earlier calls are gone")
    assert logs_of(result) == "again\n"
    assert body_of(await world.call(use)) == "again\n"


async def test_a_session_that_only_shows_at_the_call_that_it_is_lost_is_replaced(world: World, sandbox: ScriptedSandbox) -> None:
    use = await world.use()
    await world.call(use)

    async def gone(_code: str, _on_output: Callable[[Output], None]) -> Execution:
        raise SandboxUnavailable("The pod is gone.")

    sandbox.sessions[0].execute = gone  # type: ignore[method-assign]
    assert "fresh session" in (await world.call(use)).output
    assert len(sandbox.sessions) == 2
    assert sandbox.sessions[0].is_closed


async def test_sessions_that_are_always_lost_are_told_as_no_sandbox(world: World, sandbox: ScriptedSandbox) -> None:
    async def gone(_session: ScriptedSession, _on_output: Callable[[Output], None]) -> Execution:
        raise SandboxUnavailable("The pod is gone.")

    sandbox.run = gone
    result = await world.call(await world.use())
    assert logs_of(result).startswith("There is no sandbox to run code in now")
    assert len(sandbox.sessions) == 2


async def test_a_session_lost_by_its_code_gives_its_files_and_is_told_once(world: World, sandbox: ScriptedSandbox) -> None:
    use = await world.use(thread=[await world.file("a.csv")])
    sandbox.run = writes({"out.csv": b"1"}, Execution("crashed", is_lost=True))
    result = await world.call(use)
    assert list(written_files(result.output)) == ["out.csv"]
    assert result.output.endswith("The next call begins in a fresh session, with the uploaded files and no others.")
    assert "variables" in result.output
    sandbox.run = do_nothing
    assert body_of(await world.call(use)) == "The code has put out nothing.\n"
    assert [session.puts for session in sandbox.sessions] == [["a.csv"], ["a.csv"]]
    assert sandbox.sessions[0].is_closed


async def test_without_a_sandbox_user_and_model_are_told(services: Services) -> None:
    world = World(services, NoSandbox("bubblewrap is missing."))
    use = await world.use()
    await offered(world, use)
    result = await world.call(use)
    [output] = outputs_of(result)
    assert isinstance(output, CodeLogs)
    assert output.logs.startswith("There is no sandbox to run code in now")
    assert "bubblewrap is missing" not in output.logs + result.output
    assert result.output.startswith("Files written: {}\nThere is no sandbox")
    assert "The code was not run." in result.output
    await world.sessions.close()


# ---- calls that nobody waits for any more ------------------------------------------------------------------------------------------------


async def run_until_interrupted(session: ScriptedSession, on_output: Callable[[Output], None]) -> Execution:
    on_output(Logs("begun"))
    await session.interrupted.wait()
    return Execution("cancelled")


async def cancelled_call(world: World, sandbox: ScriptedSandbox, use: ToolUse) -> None:
    calling = asyncio.create_task(world.call(use))
    async with asyncio.timeout(10):
        while not sandbox.sessions:  # noqa: ASYNC110 - polled
            await asyncio.sleep(0)
        await sandbox.sessions[0].running.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling


async def test_a_cancelled_call_stops_its_code_and_the_session_is_kept(world: World, sandbox: ScriptedSandbox) -> None:
    use = await world.use()
    sandbox.run = run_until_interrupted
    await cancelled_call(world, sandbox, use)
    assert sandbox.sessions[0].interrupted.is_set()
    sandbox.run = puts_out(Logs("next"))
    assert body_of(await world.call(use)) == "next"
    assert len(sandbox.sessions) == 1


async def test_the_time_limit_of_tools_stops_code_too(world: World, sandbox: ScriptedSandbox) -> None:
    use = await world.use()
    sandbox.run = run_until_interrupted
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await world.call(use)
    assert sandbox.sessions[0].interrupted.is_set()


async def test_a_session_that_does_not_stop_is_dropped(world: World, sandbox: ScriptedSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run_for_ever(_session: ScriptedSession, _on_output: Callable[[Output], None]) -> Execution:
        await asyncio.Event().wait()
        return Execution("ok")

    monkeypatch.setattr("mini_assistant.tools.code_interpreter._STOP_SECONDS_MAX", 0.05)
    use = await world.use()
    sandbox.run = run_for_ever
    await cancelled_call(world, sandbox, use)
    sandbox.run = do_nothing
    assert "fresh session" in (await world.call(use)).output
    assert sandbox.sessions[0].is_closed
    assert len(sandbox.sessions) == 2


async def test_a_call_that_is_cancelled_while_a_figure_is_stored_leaves_nothing(
    world: World, sandbox: ScriptedSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    storing = asyncio.Event()

    async def write_for_ever(_key: str, _data: AsyncIterable[bytes], *, bytes_max: int) -> Any:
        storing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(world.services.blobs, "write", write_for_ever)
    sandbox.run = puts_out(Image(PNG))
    calling = asyncio.create_task(world.call(await world.use()))
    await storing.wait()
    await asyncio.sleep(0.01)
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    assert calling.cancelled()
    assert await world.unneeded_blobs_count() == 0


# ---- with real Python --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def real(services: Services) -> AsyncIterator[World]:
    world = World(services, UnsafeSandbox(services.settings))
    yield world
    await world.sessions.close()


async def test_real_code_works_on_uploads_and_gives_files_back(real: World) -> None:
    use = await real.use(thread=[await real.file("numbers.csv", b"n\n1\n2\n39\n")])
    code = "rows = open('/mnt/data/numbers.csv').read().split()[1:]\ntotal = sum(map(int, rows))\nprint('summed')\ntotal"
    assert body_of(await real.call(use, code)) == "summed\n42\n"
    code = (
        "import os\nos.makedirs('/mnt/data/out', exist_ok=True)\nprint(open('/mnt/data/out/total.csv', 'w').write(f'total\\n{total}\\n'))"
    )
    result = await real.call(use, code)
    written = written_files(result.output)
    assert list(written) == ["out/total.csv"]
    assert await real.file_data(written["out/total.csv"]) == b"total\n42\n"


async def test_real_errors_are_output_and_the_state_stays(real: World) -> None:
    use = await real.use()
    result = await real.call(use, "kept = 1\nkept / 0")
    assert "ZeroDivisionError" in logs_of(result)
    assert body_of(result) == logs_of(result)
    assert body_of(await real.call(use, "kept")) == "1\n"


async def test_a_real_session_that_ends_is_replaced(real: World) -> None:
    use = await real.use(thread=[await real.file("a.csv", b"kept")])
    result = await real.call(use, "import os\nos._exit(3)")
    assert "All variables and imports are gone." in result.output
    assert body_of(await real.call(use, "print(open('/mnt/data/a.csv').read())")) == "kept\n"


@pytest.mark.parametrize("settings", [{"sandbox_call_timeout_seconds": 0.5}], indirect=True)
async def test_real_code_that_takes_too_long_is_stopped(real: World) -> None:
    use = await real.use()
    result = await real.call(use, "kept = 1\nwhile True: pass")
    assert "0.5 seconds" in result.output
    assert body_of(await real.call(use, "kept")) == "1\n"


async def test_real_links_to_files_of_the_server_are_not_followed(real: World, services: Services) -> None:
    secret = services.settings.data_dir / "secret.txt"
    secret.write_text("secret")
    code = f"import os\nos.symlink({str(secret)!r}, '/mnt/data/a.txt')\nopen('/mnt/data/b.txt', 'w').write('mine')\nNone"
    written = written_files((await real.call(await real.use(), code)).output)
    assert list(written) == ["b.txt"]


async def test_real_threads_run_side_by_side(real: World) -> None:
    uses = [await real.use() for _ in range(3)]
    await asyncio.gather(*(real.tool.call(use, "c", 1, {"code": f"x = {n}"}, ToldOutputs(lambda *_: None)) for n, use in enumerate(uses)))
    for number, use in enumerate(uses):
        assert body_of(await real.call(use, "x")) == f"{number}\n"


async def test_files_of_another_project_are_not_there(real: World) -> None:
    file_id = await real.file("a.csv")
    use = await real.use(thread=[file_id])
    other = ToolUse(use.services, "other project", use.run)
    assert await get_file_or_none(real.services, "other project", file_id) is None
    with contextlib.suppress(ToolFailure):
        assert body_of(await real.call(other, "import os\nprint(os.listdir('/mnt/data'))")) == "[]\n"
