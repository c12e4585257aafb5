"""Deletes what nobody needs any more: expired files and uploads, and the bytes of blobs that no row has. Called by the worker's sweep."""

from mini_assistant.files import store
from mini_assistant.files.commands import delete_blobs, remove_file
from mini_assistant.files.uploads.store import expire_uploads
from mini_assistant.services import Services

# Of each kind in one sweep; the next one goes on.
_SWEPT_MAX = 200


async def sweep_files(services: Services) -> None:
    """Sweep once. Safe in several processes at a time, and when it is cut off anywhere."""
    for project_id, file_id in await store.expired_files(services, _SWEPT_MAX):
        await remove_file(services, project_id, file_id)
    await services.db.write(expire_uploads(services.now()), durable=False)
    await delete_blobs(services, await store.doomed_blobs(services, _SWEPT_MAX))
