"""The endpoints of uploads: files that arrive in parts. Source: behaviour §5."""

import msgspec

from mini_assistant.db.base import GuardFailed
from mini_assistant.errors import BlobMissing, InvalidRequest
from mini_assistant.files import commands
from mini_assistant.files import store as file_store
from mini_assistant.files.schema import check_purpose, plain_filename
from mini_assistant.files.uploads import store
from mini_assistant.files.uploads.schema import AddUploadPart, CompleteUpload, CreateUpload, Upload, UploadPart
from mini_assistant.files.uploads.store import PartRecord
from mini_assistant.http.multipart import MultipartForm
from mini_assistant.http.routing import Request, Route
from mini_assistant.ids import new_hex_id
from mini_assistant.projects import quotas
from mini_assistant.services import Services


async def create_upload(request: Request[CreateUpload, None]) -> str:
    services, body = request.services, request.body
    check_purpose(body.purpose)
    bytes_max = services.settings.upload_bytes_max
    if body.bytes > bytes_max:
        raise InvalidRequest(
            f"Invalid 'bytes': integer above maximum value. Expected a value <= {bytes_max}, but got {body.bytes} instead.",
            param="bytes",
            code="integer_above_max_value",
        )
    now = services.now()
    upload = Upload(
        id=new_hex_id("upload"),
        object="upload",
        bytes=body.bytes,
        created_at=now,
        filename=plain_filename(body.filename),
        purpose=body.purpose,
        status="pending",
        expires_at=now + services.settings.upload_expiry_seconds,
    )
    answer = msgspec.json.encode(upload).decode()
    record = store.UploadRecord(upload, body.mime_type, body.expires_after)
    await services.db.write([store.insert_upload(request.project_id, record), *request.remember(answer)])
    return answer


async def add_upload_part(request: Request[MultipartForm, None]) -> str:
    services, form, upload_id = request.services, request.body, request.path["upload_id"]
    settings = services.settings
    await _require_pending(services, request.project_id, upload_id)
    if form.is_certainly_above(settings.upload_part_bytes_max):
        raise commands.too_large(settings.upload_part_bytes_max)
    await quotas.check_storage_left(services, request.project_id, form.is_certainly_above)
    await form.find_file()
    async with commands.new_blob(services, commands.blob_of(services, form.file_pieces(), settings.upload_part_bytes_max)) as blob:
        await form.read_fields(AddUploadPart)
        size_bytes = blob.written.size_bytes
        if size_bytes == 0:
            raise InvalidRequest("The part is empty.", param="data", code="empty_file")
        part = UploadPart(id=new_hex_id("part"), created_at=services.now(), upload_id=upload_id)
        inserts = store.insert_part(
            request.project_id,
            part,
            PartRecord(size_bytes, blob.key),
            upload_bytes_max=settings.upload_bytes_max,
            now=services.now(),
        )
        try:
            await quotas.write_stored(services, request.project_id, [*inserts, file_store.claim_blob(blob.key)])
        except GuardFailed as exc:
            if exc.guard == "room":
                raise InvalidRequest(f"The parts of an upload can be {settings.upload_bytes_max} bytes in total.", param="data") from exc
            await _require_pending(services, request.project_id, upload_id)
            raise
    return msgspec.json.encode(part).decode()


async def complete_upload(request: Request[CompleteUpload, None]) -> str:
    services, upload_id = request.services, request.path["upload_id"]
    record = await _require_pending(services, request.project_id, upload_id)
    upload = record.upload
    parts = await _chosen_parts(services, request.project_id, upload, request.body.part_ids)
    keys = [part.blob_key for part in parts]
    try:
        async with commands.new_blob(services, lambda key: services.blobs.join(key, keys)) as blob:
            _check_md5(request.body.md5, blob.written.md5)
            file = commands.new_file(blob, upload.filename, upload.purpose, upload.created_at, record.expires_after)
            upload.status, upload.file = "completed", file.file
            answer = msgspec.json.encode(upload).decode()
            await quotas.write_stored(
                services,
                request.project_id,
                [
                    *store.end_upload(request.project_id, upload_id, "completed", services.now()),
                    *file_store.insert_file(request.project_id, file),
                    *request.remember(answer),
                ],
            )
    except (GuardFailed, BlobMissing):
        # Somebody else has ended the upload while its parts were put together.
        await _require_pending(services, request.project_id, upload_id)
        raise
    await commands.delete_blobs(services, keys)
    return answer


async def cancel_upload(request: Request[None, None]) -> str:
    services, upload_id = request.services, request.path["upload_id"]
    upload = (await store.get_upload(services, request.project_id, upload_id)).upload
    if upload.status != "pending":
        raise _cannot_cancel(upload)
    upload.status = "cancelled"
    answer = msgspec.json.encode(upload).decode()
    keys = [part.blob_key for part in (await store.get_parts(services, request.project_id, upload_id)).values()]
    try:
        await services.db.write([*store.end_upload(request.project_id, upload_id, "cancelled", services.now()), *request.remember(answer)])
    except GuardFailed as exc:
        raise _cannot_cancel((await store.get_upload(services, request.project_id, upload_id)).upload) from exc
    await commands.delete_blobs(services, keys)
    return answer


async def _require_pending(services: Services, project_id: str, upload_id: str) -> store.UploadRecord:
    """An upload that has not ended. Raises NotFound and InvalidRequest."""
    record = await store.get_upload(services, project_id, upload_id)
    if record.upload.status != "pending":
        raise InvalidRequest(f"Upload {upload_id} has status '{record.upload.status}' and cannot be added to or completed.")
    return record


async def _chosen_parts(services: Services, project_id: str, upload: Upload, part_ids: list[str]) -> list[PartRecord]:
    """The named parts in this order. Raises InvalidRequest unless together they are what the upload was announced as."""
    parts = await store.get_parts(services, project_id, upload.id)
    for place, part_id in enumerate(part_ids):
        if part_id not in parts:
            raise InvalidRequest(f"No such part of {upload.id}: {part_id[:100]}", param=f"part_ids[{place}]", code="invalid_value")
    chosen = [parts[part_id] for part_id in part_ids]
    size_bytes = sum(part.size_bytes for part in chosen)
    if size_bytes != upload.bytes:
        raise InvalidRequest(f"The parts have {size_bytes} bytes, but the upload was created with {upload.bytes}.", param="part_ids")
    return chosen


def _check_md5(wanted: str | None, found: str) -> None:
    if wanted is not None and wanted.lower() != found:
        raise InvalidRequest(f"The md5 of the bytes is {found}, and not {wanted}.", param="md5", code="invalid_value")


def _cannot_cancel(upload: Upload) -> InvalidRequest:
    return InvalidRequest(f"Cannot cancel upload with status '{upload.status}'.")


ROUTES = [
    Route(
        method="POST",
        path="/uploads",
        name="createUpload",
        summary="Announce a file that is uploaded in parts",
        call=create_upload,
        body=CreateUpload,
        answer=Upload,
    ),
    Route(
        method="POST",
        path="/uploads/{upload_id}/parts",
        name="addUploadPart",
        summary="Upload a part of a file",
        call=add_upload_part,
        form=AddUploadPart,
        file_field="data",
        answer=UploadPart,
    ),
    Route(
        method="POST",
        path="/uploads/{upload_id}/complete",
        name="completeUpload",
        summary="Make a file of parts",
        call=complete_upload,
        body=CompleteUpload,
        answer=Upload,
    ),
    Route(
        method="POST",
        path="/uploads/{upload_id}/cancel",
        name="cancelUpload",
        summary="Cancel an upload",
        call=cancel_upload,
        answer=Upload,
    ),
]
