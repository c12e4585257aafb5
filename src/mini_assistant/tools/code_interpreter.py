"""The code_interpreter tool: runs the model's Python in the sandbox session of its thread, and tells what it puts out while it runs.

What the model reads is one text: a line of the server that names the files that were written, the output of the code, and sentences
about what else it must know. An error of the code is output too, so that the model can try again. Source: behaviour §8, §4.3(c).
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

from mini_assistant.errors import LimitReached, SandboxUnavailable, StoreUnavailable, TooLarge, ToolFailure
from mini_assistant.files.commands import blob_of, new_blob, new_file
from mini_assistant.files.store import insert_file
from mini_assistant.models.base import ToolDefinition
from mini_assistant.models.tokens import count_tokens
from mini_assistant.projects.quotas import write_stored
from mini_assistant.runs.code_files import files_line
from mini_assistant.runs.schema import CodeCall, CodeInterpreterToolCall, CodeLogs, CodeOutput, Run
from mini_assistant.sandboxes.base import DATA_DIRECTORY, Execution, Image, Logs, Output
from mini_assistant.tools.base import ToldOutputs, ToolResult, ToolUse
from mini_assistant.tools.sandbox_sessions import KeptSession, SandboxSessions
from mini_assistant.tools.session_files import OUTPUT_PURPOSE, Upload, get_uploads, keep_written_files, put_uploads

_FENCED = re.compile(r"\s*```(?:python|py)?[ \t]*\n(.*?)\n?```\s*", re.DOTALL | re.IGNORECASE)
_FILES_TOKENS_MAX = 800
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# How long code of a call that nobody waits for may take to stop.
_STOP_SECONDS_MAX = 5.0

_PARAMETERS = {
    "type": "object",
    "properties": {"code": {"type": "string", "description": "The Python code to run."}},
    "required": ["code"],
}
_DESCRIPTION = (
    "Runs Python code in a sandbox and returns what it prints. Use it to calculate, to work with data, to draw charts, and to read or "
    "make files. Variables, imports and files stay between calls. The value of the last expression is shown, and figures of matplotlib "
    f"are shown to the user. Files are in {DATA_DIRECTORY}. To give a file to the user, save it there and link it in your answer: "
    f"[name.csv](sandbox:{DATA_DIRECTORY}/name.csv). There is no network. When code fails, read the error, correct the code and call again."
)
# What is there beside Python's own library, by backend; with `auto` it is what both have.
_SHARED_PACKAGES = (
    "numpy, pandas, scipy, scikit-learn, sympy, matplotlib, seaborn, networkx, openpyxl, xlsxwriter, pypdf, reportlab, pillow, "
    "beautifulsoup4, pyyaml, tabulate"
)
_PACKAGES = {
    "auto": _SHARED_PACKAGES,
    "process": f"{_SHARED_PACKAGES}, python-docx, python-pptx",
    "wasm": f"{_SHARED_PACKAGES}, statsmodels, lxml",
}
_STATE_WAS_LOST = (
    "This call ran in a fresh session: variables and imports of earlier calls are gone, and files too, except uploaded ones. "
    "Define again what you need."
)
_STATE_IS_LOST = "All variables and imports are gone. The next call begins in a fresh session, with the uploaded files and no others."
_NO_SANDBOX = "There is no sandbox to run code in now; `mini-assistant check` tells the operator of this server why."
_NOT_RUN = "The code was not run. Do not call this tool again now; say that it is not available."

log = logging.getLogger("mini_assistant.tools")


class CodeInterpreter:
    """The `HostedTool` of the type code_interpreter."""

    def __init__(self, sessions: SandboxSessions) -> None:
        self._sessions = sessions

    async def prepare(self, use: ToolUse, *, is_first_turn: bool) -> ToolDefinition:
        """As `HostedTool.prepare`: sessions are got ready while the model writes. Offered also when there is no sandbox: a call says so."""
        self._sessions.expect()
        settings, packages = use.services.settings, _PACKAGES.get(self._sessions.sandbox_name)
        sentences = [_DESCRIPTION, f"A call may take {settings.sandbox_call_timeout_seconds:g} seconds."]
        if packages is not None:
            sentences.append(f"Installed are {packages}; nothing can be added.")
        return ToolDefinition("code_interpreter", _PARAMETERS, " ".join(sentences) + _told_files(await get_uploads(use)))

    def started_call(self, call_id: str, run: Run, arguments: dict[str, Any]) -> CodeInterpreterToolCall:
        """As `HostedTool.started_call`: the code without outputs."""
        return CodeInterpreterToolCall(call_id, CodeCall(_code(arguments), []))

    async def call(self, use: ToolUse, call_id: str, number: int, arguments: dict[str, Any], told: ToldOutputs) -> ToolResult:
        """As `HostedTool.call`. A call that is cancelled stops its code."""
        code = _code(arguments)
        if not code.strip():
            raise ToolFailure("bad_arguments", 'Give the Python code to run: {"code": "..."}.')
        outputs = _Outputs(use, told)
        try:
            text = await self._run(use, _without_fence(code), outputs)
        except SandboxUnavailable as exc:
            # The reason names what the server has and lacks: that is for its operator.
            log.warning("run %s: its code cannot be run: %s", use.run.id, exc.message)
            outputs.add_sentence(_NO_SANDBOX)
            text = _text_for_model({}, outputs.told.outputs, [_NOT_RUN], _output_bytes_max(use))
        return ToolResult(CodeInterpreterToolCall(call_id, CodeCall(code, outputs.told.outputs)), text)

    async def _run(self, use: ToolUse, code: str, outputs: "_Outputs") -> str:
        """Run code and give the text for the model. A session that has ended while nobody used it is replaced, once."""
        try:
            return await self._run_in_session(use, code, outputs)
        except _SessionGone:
            return await self._run_in_session(use, code, outputs)

    async def _run_in_session(self, use: ToolUse, code: str, outputs: "_Outputs") -> str:
        async with self._sessions.use(use.project_id, use.run.thread_id) as kept:
            try:
                notes = await put_uploads(use.services, kept, await get_uploads(use))
                execution = await _execute(kept, code, outputs)
            except SandboxUnavailable as exc:
                kept.is_given_up = True
                raise _SessionGone(exc.message) from exc
            outputs.add_sentence(execution.detail or _outcome_sentence(use, execution))
            written = await keep_written_files(use, kept)
            if kept.has_lost_state:
                notes.append(_STATE_WAS_LOST)
                kept.has_lost_state = False
            if not kept.is_usable:
                notes.append(_STATE_IS_LOST)
                kept.is_loss_told = True
            return _text_for_model(written.ids, outputs.told.outputs, [*notes, *written.notes], _output_bytes_max(use))

    def kept_threads(self) -> Collection[tuple[str, str]]:
        """As `HostedTool.kept_threads`: those that have a session."""
        return self._sessions.threads()

    def forget_thread(self, project_id: str, thread_id: str) -> None:
        """As `HostedTool.forget_thread`: its session ends."""
        self._sessions.forget(project_id, thread_id)


class _SessionGone(SandboxUnavailable):
    """A session is found to be lost before it has run the code of a call."""


# ---- what the model is offered, and what it calls


def _told_files(uploads: Sequence[Upload]) -> str:
    """Which files are there, in so many tokens that the description stays small beside a prompt."""
    if not uploads:
        return ""
    lines = ["", "The uploaded files:"]
    tokens = 0
    for told, upload in enumerate(uploads):
        renamed = "" if upload.name == upload.filename else ", renamed"
        line = f"- {DATA_DIRECTORY}/{upload.name} ({upload.file_id}{renamed})"
        tokens += count_tokens(line)
        if tokens > _FILES_TOKENS_MAX:
            lines.append(f"- and {len(uploads) - told} more")
            break
        lines.append(line)
    return "\n".join(lines)


def _code(arguments: dict[str, Any]) -> str:
    """The code of a call as the step shows it (`runs/code_input.py` has found it); empty when there is none."""
    code = arguments.get("code")
    return code if isinstance(code, str) else ""


def _without_fence(code: str) -> str:
    """The code to run: models write Markdown fences around it now and then."""
    fenced = _FENCED.fullmatch(code)
    return fenced[1] if fenced else code


# ---- what code puts out


async def _execute(kept: KeptSession, code: str, outputs: "_Outputs") -> Execution:
    """Run code, and tell all that it puts out. When nobody waits for it any more it is stopped. Raises SandboxUnavailable."""
    time = asyncio.get_running_loop().time
    began = time()
    executing = asyncio.create_task(kept.session.execute(code, outputs.take))
    telling = asyncio.create_task(outputs.tell_all())
    try:
        await asyncio.wait([executing])
        outputs.end()
        await telling
    except BaseException:
        await _stop(kept, executing)
        raise
    finally:
        outputs.told.sandbox_seconds += time() - began
        telling.cancel()
        await asyncio.wait([telling])
    return executing.result()


async def _stop(kept: KeptSession, executing: asyncio.Task[Execution]) -> None:
    """Stop the code of a call. A session that does not stop in time is given up."""
    stopping: list[asyncio.Task[Any]] = [executing, asyncio.create_task(kept.session.interrupt())]
    try:
        await asyncio.wait(stopping, timeout=_STOP_SECONDS_MAX)
    finally:
        kept.is_given_up = kept.is_given_up or not all(task.done() for task in stopping)
        for task in stopping:
            task.cancel()
        await asyncio.gather(*stopping, return_exceptions=True)


class _Outputs:
    """What a call puts out. It is told in its order while code runs: what comes behind a figure waits until that is a file."""

    def __init__(self, use: ToolUse, told: ToldOutputs) -> None:
        self._use = use
        self.told = told
        self._waiting: asyncio.Queue[Output | None] = asyncio.Queue()

    def take(self, output: Output) -> None:
        """Take an output of code that is running."""
        self._waiting.put_nowait(output)

    def end(self) -> None:
        """Say that nothing more comes from the code."""
        self._waiting.put_nowait(None)

    async def tell_all(self) -> None:
        """Tell outputs as they come, until the end."""
        while (output := await self._waiting.get()) is not None:
            if isinstance(output, Logs):
                # Halves of characters cannot be written anywhere.
                self.told.add_logs(output.text.encode("utf-8", "replace").decode())
            else:
                await self._add_image(output)

    def add_sentence(self, sentence: str) -> None:
        """Tell a line of the server's own, if it is not empty; nothing of the code may be told at the same time."""
        if sentence:
            self.told.add_logs(f"\n{sentence}\n" if self.told.is_within_line else f"{sentence}\n")

    async def _add_image(self, image: Image) -> None:
        if not image.data.startswith(_PNG_SIGNATURE):
            self.add_sentence("A figure is not shown: it is no PNG.")
            return
        try:
            file_id = await self._new_file(image.data, f"figure-{self.told.images_count + 1}.png")
        except (TooLarge, StoreUnavailable, LimitReached) as exc:
            log.warning("run %s: a figure cannot be kept: %s", self._use.run.id, exc)
            self.add_sentence("A figure is not shown: it could not be kept.")
            return
        self.told.add_image(file_id)

    async def _new_file(self, data: bytes, filename: str) -> str:
        services = self._use.services
        async with new_blob(services, blob_of(services, _once(data), services.settings.file_bytes_max)) as blob:
            record = new_file(blob, filename, OUTPUT_PURPOSE, services.now())
            await write_stored(services, self._use.project_id, insert_file(self._use.project_id, record))
        return record.file.id


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


# ---- what the model reads


def _outcome_sentence(use: ToolUse, execution: Execution) -> str:
    """What is said of an outcome that the backend says nothing about."""
    settings = use.services.settings
    match execution.outcome:
        case "ok" | "error":
            return ""
        case "timeout":
            return f"The code was stopped: it took longer than {settings.sandbox_call_timeout_seconds:g} seconds."
        case "memory":
            return f"The code was stopped: it needs more memory than there is ({settings.sandbox_memory_bytes_max // 2**20} MiB)."
        case "disk_limit":
            return (
                f"The code was stopped: its files take more than {settings.sandbox_disk_bytes_max // 2**20} MiB, "
                f"or are more than {settings.sandbox_files_max}."
            )
        case "crashed":
            return "The Python process has ended unexpectedly."
        case "cancelled":
            return "The code was stopped."


def _output_bytes_max(use: ToolUse) -> int:
    """How much of an output the model is given: a setting, and as many bytes as its window has tokens, a quarter to a half of it."""
    capabilities = use.services.models.capabilities(use.run.model, use.project_id)
    limit, window = use.services.settings.tool_output_bytes_max, capabilities.context_window_tokens
    return limit if window is None or capabilities.tools == "hosted" else min(limit, window)


def _text_for_model(written: dict[str, str], told: Sequence[CodeOutput], notes: Sequence[str], bytes_max: int) -> str:
    """The line of the files, what the code has put out, and the notes. bytes_max: of what it has put out."""
    text = ""
    for output in told:
        text = text + output.logs if isinstance(output, CodeLogs) else _begun_line(text) + "A figure is shown to the user.\n"
    text = _without_middle(text, bytes_max) or "The code has put out nothing.\n"
    return "\n".join([files_line(written), text if not notes else _begun_line(text) + "\n".join(notes)])


def _begun_line(text: str) -> str:
    """A text to which lines can be added."""
    return text + "\n" if text and not text.endswith("\n") else text


def _without_middle(text: str, bytes_max: int) -> str:
    """The beginning and the end of a text that is too long: what it is about, and how it came out."""
    encoded = text.encode()
    if len(encoded) <= bytes_max:
        return text
    half = bytes_max // 2
    left_out = len(encoded) - 2 * half
    head, tail = encoded[:half].decode(errors="ignore"), encoded[len(encoded) - half :].decode(errors="ignore")
    return f"{head}\n[{left_out} bytes are left out here]\n{tail}"
