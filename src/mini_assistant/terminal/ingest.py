"""`mini-assistant ingest`: makes the files of a folder searchable in a vector store.

Each file goes its own way, a few at the same time: is it there already? If not, upload it, add it to the store, and wait until it can be
searched. So an ingest that was cut off leaves whole files behind, and the next one goes on with the rest.
"""

import asyncio
import signal
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mini_assistant.errors import BackendError, ConfigError
from mini_assistant.terminal import INTERRUPTED
from mini_assistant.terminal.client import ApiFailure, Client, Unreachable
from mini_assistant.terminal.folder_files import (
    PATH_ATTRIBUTE,
    AttributeValue,
    FolderFile,
    FoundFiles,
    attributes_of,
    sha256_of,
    stored_path,
)
from mini_assistant.terminal.ingest_progress import IngestProgress
from mini_assistant.terminal.printable import one_line
from mini_assistant.terminal.screen import Screen

_POLL_SECONDS_FIRST = 0.1
_POLL_SECONDS_MAX = 2.0
# After these nothing else would go better.
_FATAL_STATUSES = (401, 403)


class IngestOptions(NamedTuple):
    """What to do. store: its name or id. attributes: of every file, beside its path."""

    store: str
    attributes: dict[str, AttributeValue]
    replaces: bool
    parallel: int


class _Stored(NamedTuple):
    """A file that is in the store already. has_path: an ingest has put it there."""

    file_id: str
    status: str
    size_bytes: int
    has_path: bool


class Ingest:
    """One ingest of a folder. Nothing is kept between two."""

    def __init__(self, client: Client, options: IngestOptions, found: FoundFiles, screen: Screen) -> None:
        self._client = client
        self._options = options
        self._found = found
        self._screen = screen
        self._progress = IngestProgress(screen, found.files)
        self._store_id = ""
        # By the path, or by the name where a file was added without one.
        self._stored: dict[str, list[_Stored]] = defaultdict(list)
        self._earlier_kept: list[str] = []
        self._replaced = 0
        self._fatal: BackendError | None = None
        self._is_stopping = False

    async def run(self) -> int:
        """Bring all files; returns the exit status. Raises BackendError when the server cannot be used."""
        await self._client.open()
        try:
            work = asyncio.ensure_future(self._run())
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGINT, self._interrupt, work)
            try:
                return await work
            except asyncio.CancelledError:
                if not self._is_stopping:
                    raise
                self._tell_end()
                return INTERRUPTED
            finally:
                loop.remove_signal_handler(signal.SIGINT)
        finally:
            await self._client.close()

    def _interrupt(self, work: "asyncio.Future[int]") -> None:
        """Ctrl-C: uploads that are under way are ended well, unless it is pressed once more."""
        if self._is_stopping:
            work.cancel()
            return
        self._is_stopping = True
        self._screen.line("Stopping when what is being uploaded has arrived. Ctrl-C once more leaves at once.")

    async def _run(self) -> int:
        for path in self._found.leading_out:
            self._screen.line(one_line(f"left out {path}: a link that leads out of the folder"))
        if not self._found.files:
            raise ConfigError("No file of the folder fits. --glob says which ones are meant.")
        self._store_id = await self._find_store()
        await self._read_stored()
        waiting = iter(self._found.files)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._options.parallel, len(self._found.files))):
                group.create_task(self._work(waiting))
        self._tell_end()
        if self._fatal is not None:
            raise self._fatal
        if self._is_stopping:
            return INTERRUPTED
        return 1 if self._progress.problems else 0

    # ---- the store

    async def _find_store(self) -> str:
        """The id of the store that is meant. Raises ConfigError when that is not certain."""
        name = self._options.store
        if name.startswith("vs_"):
            try:
                return (await self._client.get(f"/vector_stores/{name}"))["id"]
            except ApiFailure as exc:
                if exc.status != 404:
                    raise
        ids = [store["id"] async for store in self._client.listed("/vector_stores") if store["name"] == name]
        if len(ids) > 1:
            raise ConfigError(one_line(f"Several vector stores are named {name}. Give --store the id of one: {', '.join(ids)}."))
        if ids:
            return ids[0]
        return (await self._client.post("/vector_stores", {"name": name}))["id"]

    async def _read_stored(self) -> None:
        """Learn what is in the store. Files of the server are listed only when the store has some."""
        in_store = [file async for file in self._client.listed(f"/vector_stores/{self._store_id}/files")]
        if not in_store:
            return
        uploaded = {file["id"]: file async for file in self._client.listed("/files", purpose="assistants")}
        for item in in_store:
            file: dict[str, Any] | None = uploaded.get(item["id"])
            if file is not None:
                path = str(item["attributes"].get(PATH_ATTRIBUTE, ""))
                stored = _Stored(item["id"], item["status"], file["bytes"], bool(path))
                self._stored[path or file["filename"]].append(stored)

    # ---- a file

    async def _work(self, waiting: Iterator[FolderFile]) -> None:
        for file in waiting:
            if self._fatal is not None or self._is_stopping:
                return
            self._progress.begin(file)
            try:
                await self._bring(file)
            except (BackendError, OSError) as exc:
                if isinstance(exc, Unreachable) or (isinstance(exc, ApiFailure) and exc.status in _FATAL_STATUSES):
                    self._fatal = exc
                    return
                self._progress.fail(file, str(exc))

    async def _bring(self, file: FolderFile) -> None:
        earlier = self._stored[stored_path(file.path)]
        same = await self._same_content(file, earlier)
        if same is not None and same.status == "completed":
            await self._see_to_earlier(file, same.file_id, earlier)
            self._progress.skip(file)
            return
        file_id = same.file_id if same is not None else await self._upload(file)
        if same is None or same.status != "in_progress":
            await self._add(file, file_id, is_new=same is None)
        state = await self._ingested(file_id)
        if state["status"] == "in_progress":
            return
        if state["status"] != "completed":
            error = state["last_error"] or {"message": state["status"]}
            self._progress.fail(file, one_line(error["message"]))
            return
        await self._see_to_earlier(file, file_id, earlier)
        self._progress.add(file)

    async def _see_to_earlier(self, file: FolderFile, kept_id: str, earlier: Sequence[_Stored]) -> None:
        """Take the earlier versions of a file out of the store, if that is wanted; only files of an ingest are deleted for it."""
        for stored in earlier:
            if stored.file_id == kept_id:
                continue
            if not self._options.replaces:
                self._earlier_kept.append(file.path)
                continue
            await self._client.delete(f"/vector_stores/{self._store_id}/files/{stored.file_id}")
            if stored.has_path:
                await self._client.delete(f"/files/{stored.file_id}")
            self._replaced += 1

    async def _same_content(self, file: FolderFile, earlier: Sequence[_Stored]) -> _Stored | None:
        """The stored file with the same content. Where the server does not tell, the same size is enough."""
        alike = [stored for stored in earlier if stored.size_bytes == file.size_bytes]
        if not alike:
            return None
        sha256 = await asyncio.to_thread(sha256_of, file.file)
        for stored in sorted(alike, key=lambda stored: stored.status != "completed"):
            if await self._client.has_content(stored.file_id, sha256) is not False:
                return stored
        return None

    async def _upload(self, file: FolderFile) -> str:
        uploaded = await self._client.upload(file.file, "assistants", lambda count: self._progress.read(file, count))
        return uploaded["id"]

    async def _add(self, file: FolderFile, file_id: str, *, is_new: bool) -> None:
        """Add an uploaded file to the store. One that is not added after all is not left behind."""
        body = {"file_id": file_id, "attributes": attributes_of(file, self._options.attributes)}
        try:
            await self._client.post(f"/vector_stores/{self._store_id}/files", body)
        except (BackendError, asyncio.CancelledError):
            if is_new:
                await asyncio.shield(self._client.delete(f"/files/{file_id}"))
            raise

    async def _ingested(self, file_id: str) -> dict[str, Any]:
        """A file of the store after it has been ingested; as it is when the ingest is being stopped. The server goes on by itself."""
        pause = _POLL_SECONDS_FIRST
        path = f"/vector_stores/{self._store_id}/files/{file_id}"
        while (state := await self._client.get(path))["status"] == "in_progress" and not self._is_stopping:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _POLL_SECONDS_MAX)
        return state

    # ---- the end

    def _tell_end(self) -> None:
        progress = self._progress
        self._screen.clear_passing()
        left = len(self._found.files) - progress.done
        parts = [f"{progress.added} added", f"{progress.present} present already", f"{len(progress.problems)} failed"]
        if self._replaced:
            parts.append(f"{self._replaced} earlier versions taken out")
        if left:
            parts.append(f"{left} not done")
        self._screen.line(one_line(f"{', '.join(parts)}: the vector store {self._options.store} ({self._store_id or 'not made'})."))
        if self._screen.is_terminal:
            for path, problem in progress.problems.items():
                self._screen.line(one_line(f"failed   {path}: {problem}"), "bad")
        if self._earlier_kept:
            self._screen.line("Earlier versions of these are in the store too; --replace takes them out:")
            for path in dict.fromkeys(self._earlier_kept):
                self._screen.line(one_line(f"earlier  {path}"))
        if left:
            self._screen.line("The same command goes on where this one has stopped.")
