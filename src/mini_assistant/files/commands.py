"""What happens to files and their bytes, as several entry points need it: endpoints, uploads, the sweeper.

Bytes are written before the row that needs them, and deleted after the commit that drops it.
"""

import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from mini_assistant.assistants.tool_resources import drop_code_file
from mini_assistant.db.base import Bound, GuardFailed
from mini_assistant.errors import StoreUnavailable, TooLarge
from mini_assistant.files import store
from mini_assistant.files.blobs.base import BlobTooLarge, WrittenBlob
from mini_assistant.files.schema import File, FileExpirationAfter, expiry_of
from mini_assistant.ids import new_blob_key, new_file_id
from mini_assistant.services import Services
from mini_assistant.vector_stores.store import detach_file_everywhere

log = logging.getLogger("mini_assistant.files")


@dataclass(frozen=True, slots=True)
class NewBlob:
    """Bytes that no row has claimed yet."""

    key: str
    written: WrittenBlob


@contextlib.asynccontextmanager
async def new_blob(services: Services, write: Callable[[str], Awaitable[WrittenBlob]]) -> AsyncGenerator[NewBlob]:
    """A blob that `write` makes under the key that it is given; inside, a list of statements must claim it.

    When that does not happen because something is raised, nothing is kept.
    """
    key = new_blob_key()
    await services.db.write([store.reserve_blob(key, services.now())])
    try:
        yield NewBlob(key, await write(key))
    except BaseException:
        if await store.give_up_blob(services, key):
            await delete_blobs(services, [key])
        raise


def blob_of(services: Services, pieces: AsyncIterable[bytes], bytes_max: int) -> Callable[[str], Awaitable[WrittenBlob]]:
    """For `new_blob`: writes bytes that arrive. What it gives raises TooLarge."""

    async def write(key: str) -> WrittenBlob:
        try:
            return await services.blobs.write(key, pieces, bytes_max=bytes_max)
        except BlobTooLarge as exc:
            raise too_large(bytes_max) from exc

    return write


def too_large(bytes_max: int) -> TooLarge:
    """The error for a file, or part of one, that is larger than a setting allows."""
    return TooLarge(f"The file is larger than {bytes_max} bytes, the most that this server takes.", param="file", code="file_too_large")


def new_file(
    blob: NewBlob, filename: str, purpose: str, created_at: int, expires_after: FileExpirationAfter | None = None
) -> store.FileRecord:
    """A file of these bytes, not yet written."""
    file = File(
        id=new_file_id(),
        purpose=purpose,
        filename=filename,
        bytes=blob.written.size_bytes,
        created_at=created_at,
        expires_at=expiry_of(purpose, created_at, expires_after),
    )
    return store.FileRecord(file, blob.key, blob.written.sha256)


async def delete_file(services: Services, project_id: str, file_id: str, also: Sequence[Bound] = ()) -> None:
    """Delete a file, also out of every vector store and code_interpreter list. also: as for `remove_file`. Raises NotFound."""
    record = await store.get_file(services, project_id, file_id)
    if not await remove_file(services, project_id, file_id, also):
        raise store.file_not_found(file_id)
    await delete_blobs(services, [record.blob_key])


async def remove_file(services: Services, project_id: str, file_id: str, also: Sequence[Bound] = ()) -> bool:
    """Drop a file's row and all that points to it, expired or not; its bytes are left to the sweeper. False when it is gone already.

    also: statements that are applied together with it, such as the line of the audit log about it.
    """
    while True:
        now = services.now()
        lists = await drop_code_file(services, project_id, file_id)
        stores = detach_file_everywhere(project_id, file_id, now)
        try:
            await services.db.write([*lists, *stores, *store.drop_file(project_id, file_id, now), *also])
        except GuardFailed as exc:
            if exc.guard == "changed":
                continue  # an assistant or thread that lists it has changed in between
            return False
        return True


async def delete_blobs(services: Services, keys: Iterable[str]) -> None:
    """Delete the bytes of blobs that were given up. What cannot be deleted now is left to the next sweep."""
    for key in keys:
        try:
            await services.blobs.delete(key)
        except StoreUnavailable as exc:
            log.warning("%s It is tried again.", exc.message)
        else:
            await services.db.write([store.forget_blob(key)], durable=False)
