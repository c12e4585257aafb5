"""A conversation with an assistant: its thread, the files that go with a question, and the run that answers it."""

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mini_assistant.errors import BackendError, ConfigError
from mini_assistant.terminal.client import ApiFailure, Client, Unreachable
from mini_assistant.terminal.printable import one_line
from mini_assistant.terminal.run_view import RunView
from mini_assistant.terminal.screen import Screen
from mini_assistant.vector_stores.schema import SUPPORTED_EXTENSIONS

MADE_BY = "mini-assistant chat"
_IMAGE_EXTENSIONS = frozenset((".png", ".jpg", ".jpeg", ".gif", ".webp"))
_INSTRUCTIONS = "You are a helpful assistant. Answer in plain text, for a terminal. Search the files when there are any."
_ACTIVE = ("queued", "in_progress", "requires_action", "cancelling")
_STOPPED = ("requires_action", "completed", "failed", "cancelled", "incomplete", "expired")
_MESSAGES_SHOWN = 6
_MODELS_SHOWN = 20
# A server that is started again is back after some seconds.
_ATTACHMENTS_MAX = 60
_ATTACHMENTS_BEFORE_NOTE = 3
_ATTACH_AGAIN_SECONDS = 1.0


class ChatOptions(NamedTuple):
    """What a conversation begins with. Empty: as the command's help says."""

    assistant_id: str
    model: str
    thread_id: str


class _PendingFile(NamedTuple):
    """An uploaded file that goes with the next question."""

    name: str
    attachment: dict[str, Any] | None
    content: dict[str, Any] | None


class Conversation:
    """One thread at a time. What happens is shown by the view; notes are for the person, not part of the answer."""

    def __init__(self, client: Client, options: ChatOptions, view: RunView, notes: Screen) -> None:
        self.view = view
        self.thread_id = options.thread_id
        self.pending_files: list[_PendingFile] = []
        self.sent_files: list[str] = []
        self.was_interrupted = False
        self._client = client
        self._options = options
        self._notes = notes
        self._assistant: dict[str, Any] = {}
        self._run_id = ""
        self._last_event_id = ""
        self._cancelling: asyncio.Task[None] | None = None

    # ---- the beginning

    async def open(self) -> None:
        """Find the thread and the assistant. Raises BackendError and ConfigError."""
        if self.thread_id:
            await self._client.get(f"/threads/{self.thread_id}")
        self._assistant = await self._find_assistant()

    def title(self) -> str:
        """Who answers."""
        model = self._options.model or self._assistant["model"]
        return one_line(f"{self._assistant['name'] or self._assistant['id']}, model {model}")

    async def show_earlier(self) -> bool:
        """Show the end of what was said. Returns whether a run goes on, which `resume` follows."""
        if not self.thread_id:
            return False
        page = await self._client.get(f"/threads/{self.thread_id}/messages", limit=str(_MESSAGES_SHOWN))
        runs = await self._client.get(f"/threads/{self.thread_id}/runs", limit="1")
        is_active = bool(runs["data"]) and runs["data"][0]["status"] in _ACTIVE
        self._run_id = runs["data"][0]["id"] if is_active else ""
        self.view.begin()
        for message in reversed(page["data"]):
            if not is_active or message["run_id"] != self._run_id:
                self.view.show_message(message)
        return is_active

    async def _find_assistant(self) -> dict[str, Any]:
        if self._options.assistant_id:
            return await self._client.get(f"/assistants/{self._options.assistant_id}")
        if self.thread_id:
            runs = await self._client.get(f"/threads/{self.thread_id}/runs", limit="1")
            for run in runs["data"]:
                try:
                    return await self._client.get(f"/assistants/{run['assistant_id']}")
                except ApiFailure as exc:
                    if exc.status != 404:
                        raise
        return await self._own_assistant()

    async def _own_assistant(self) -> dict[str, Any]:
        """The assistant that an earlier conversation has made, or a new one. So there is one for each model, however many conversations."""
        models = [self._options.model] if self._options.model else await self._listed_models()
        async for assistant in self._client.listed("/assistants"):
            if assistant["metadata"].get("made_by") == MADE_BY and assistant["model"] in models:
                return assistant
        if len(models) != 1:
            names = ", ".join(models[:_MODELS_SHOWN]) or "none"
            raise ConfigError(one_line(f"Name a model with --model. The server lists {names}."))
        return await self._client.post(
            "/assistants",
            {
                "name": "Terminal",
                "model": models[0],
                "instructions": _INSTRUCTIONS,
                "tools": [{"type": "file_search"}, {"type": "code_interpreter"}],
                "metadata": {"made_by": MADE_BY},
            },
        )

    async def _listed_models(self) -> list[str]:
        return [model["id"] for model in (await self._client.get("/models"))["data"]]

    # ---- files

    async def attach(self, file: Path) -> None:
        """Upload a file for the next question. Raises BackendError, and OSError for a file that cannot be read."""
        if file.suffix.lower() in _IMAGE_EXTENSIONS:
            uploaded = await self._client.upload(file, "vision")
            part = {"type": "image_file", "image_file": {"file_id": uploaded["id"]}}
            self.pending_files.append(_PendingFile(uploaded["filename"], None, part))
            return
        tools = self._tools_for(file)
        if not tools:
            raise ConfigError(f"{one_line(file.name)} cannot be read by this assistant: it has no tool for such a file.")
        uploaded = await self._client.upload(file, "assistants")
        self.view.names[uploaded["id"]] = uploaded["filename"]
        self.pending_files.append(_PendingFile(uploaded["filename"], {"file_id": uploaded["id"], "tools": tools}, None))

    def _tools_for(self, file: Path) -> list[dict[str, str]]:
        has = {tool["type"] for tool in self._assistant["tools"]}
        fitting = ["code_interpreter", *(["file_search"] if file.suffix.lower() in SUPPORTED_EXTENSIONS else [])]
        return [{"type": name} for name in fitting if name in has]

    async def save(self, file_id: str, place: Path | None) -> Path:
        """Keep a file of the server, under its own name when no place is given. Raises OSError for a file that is there already."""
        file = await self._client.get(f"/files/{file_id}")
        place = place or Path(_safe_name(file["filename"]))
        with await asyncio.to_thread(open, place, "xb") as kept:
            try:
                await self._client.download(f"/files/{file_id}/content", kept.write)
            except BaseException:
                place.unlink()
                raise
        return place

    # ---- runs

    def new_thread(self) -> None:
        """Begin again. Files that were not sent yet stay for the next question."""
        self.thread_id = ""
        self.sent_files = []

    async def ask(self, text: str) -> None:
        """Put a question and show the answer, until the run stops."""
        self.was_interrupted = False
        with self._interruptible():
            self.view.begin()
            if not self.thread_id:
                self.thread_id = (await self._client.post("/threads"))["id"]
            run = await self._client.post(f"/threads/{self.thread_id}/runs", self._run_with(text))
            self.sent_files += [file.name for file in self.pending_files]
            self.pending_files = []
            self._run_id, self._last_event_id = run["id"], ""
            if self.was_interrupted:
                self._cancel_soon()
            await self._follow()

    async def resume(self) -> None:
        """Show the run that goes on in the thread, from its beginning until it stops."""
        self.was_interrupted = False
        self._last_event_id = ""
        with self._interruptible():
            self.view.begin()
            await self._follow()

    async def answer_calls(self, outputs: Mapping[str, str]) -> None:
        """Send what the functions gave, by call id, and show how the run goes on."""
        with self._interruptible():
            body = {"tool_outputs": [{"tool_call_id": call_id, "output": output} for call_id, output in outputs.items()]}
            self.view.take_run(await self._client.post(f"{self._run_path()}/submit_tool_outputs", body))
            await self._follow()

    async def cancel(self) -> None:
        """Cancel a run that waits for outputs, and show its end."""
        with self._interruptible():
            self.view.take_run(await self._client.post(f"{self._run_path()}/cancel"))
            await self._follow()

    def _run_with(self, text: str) -> dict[str, Any]:
        parts = [file.content for file in self.pending_files if file.content is not None]
        message: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": text}, *parts] if parts else text}
        attachments = [file.attachment for file in self.pending_files if file.attachment is not None]
        if attachments:
            message["attachments"] = attachments
        body: dict[str, Any] = {"assistant_id": self._assistant["id"], "additional_messages": [message]}
        return {**body, "model": self._options.model} if self._options.model else body

    def _run_path(self) -> str:
        return f"/threads/{self.thread_id}/runs/{self._run_id}"

    async def _follow(self) -> None:
        """Show events until the run stops, through whatever cuts the stream off."""
        await self._attach()
        if self._cancelling is not None:
            await self._cancelling
        for file_id in self.view.unknown_files():
            self.view.names[file_id] = await self._name_of(file_id)

    async def _attach(self) -> None:
        for attempt in range(_ATTACHMENTS_MAX):
            if attempt:
                await asyncio.sleep(_ATTACH_AGAIN_SECONDS)
            if attempt == _ATTACHMENTS_BEFORE_NOTE:
                self._notes.line("The server does not answer; trying again.", "quiet")
            try:
                async for event in self._client.events(f"{self._run_path()}/events", self._last_event_id):
                    self._last_event_id = event.id or self._last_event_id
                    self.view.show(event)
            except Unreachable:
                continue
            except ApiFailure as exc:
                if exc.code != "events_gone":
                    raise
                await self._show_whole()
            if self.view.status in _STOPPED:
                return
        raise Unreachable(f"The run cannot be followed. It may go on at the server: `mini-assistant chat --thread {self.thread_id}`.")

    async def _show_whole(self) -> None:
        """Where events cannot be told exactly any more: wait for the run's end, then show what it wrote."""
        while self.view.status not in _STOPPED:
            await asyncio.sleep(_ATTACH_AGAIN_SECONDS)
            self.view.take_run(await self._client.get(self._run_path()))
        self._notes.line("The stream was lost for a while. The whole answer:", "quiet")
        messages = await self._client.get(f"/threads/{self.thread_id}/messages", run_id=self._run_id, order="asc")
        for message in messages["data"]:
            self.view.show_message(message)

    async def _name_of(self, file_id: str) -> str:
        try:
            return (await self._client.get(f"/files/{file_id}"))["filename"]
        except ApiFailure:
            return file_id

    # ---- Ctrl-C

    def _interruptible(self) -> "_Interrupts":
        return _Interrupts(self)

    def interrupt(self, work: "asyncio.Task[Any]") -> None:
        """Ctrl-C: the first one cancels the run, the second one leaves it alone."""
        if self.was_interrupted:
            work.cancel()
            return
        self.was_interrupted = True
        self._notes.line("Cancelling. Ctrl-C once more leaves at once.", "quiet")
        if self._run_id:
            self._cancel_soon()

    def _cancel_soon(self) -> None:
        if self._cancelling is None:
            self._cancelling = asyncio.get_running_loop().create_task(self._cancel())

    def forget_run(self) -> None:
        """The run has stopped, or nobody waits for it any more."""
        if self._cancelling is not None:
            self._cancelling.cancel()
        self._cancelling = None
        if self.view.status != "requires_action":
            self._run_id = ""

    async def _cancel(self) -> None:
        try:
            await self._client.post(f"{self._run_path()}/cancel")
        except BackendError as exc:
            # A run that has stopped in this moment cannot be cancelled, and need not.
            if not isinstance(exc, ApiFailure):
                self._notes.line(str(exc), "bad")


class _Interrupts:
    """While it lasts, Ctrl-C goes to the conversation."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    def __enter__(self) -> None:
        work = asyncio.current_task()
        assert work is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._conversation.interrupt, work)

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
        self._conversation.forget_run()


def _safe_name(name: str) -> str:
    """The name under which a file is kept here: one in this folder, and none that is hidden."""
    plain = one_line(name.replace("\\", "/").rsplit("/", 1)[-1]).lstrip(".")
    return plain or "file"
