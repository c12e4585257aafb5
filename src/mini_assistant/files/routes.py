"""The endpoints of files. Source: behaviour §5."""

import msgspec

from mini_assistant.errors import InvalidRequest
from mini_assistant.files import commands, store
from mini_assistant.files.commands import blob_of
from mini_assistant.files.schema import (
    PURPOSES_NOT_DOWNLOADED,
    CreateFile,
    DeletedFile,
    File,
    FilePage,
    check_purpose,
    plain_filename,
)
from mini_assistant.http.multipart import MultipartForm
from mini_assistant.http.routing import Download, Request, Route
from mini_assistant.pagination import Page, list_schema
from mini_assistant.projects import quotas


async def create_file(request: Request[MultipartForm, None]) -> str:
    services, form = request.services, request.body
    file_bytes_max = services.settings.file_bytes_max
    if form.is_certainly_above(file_bytes_max):
        raise commands.too_large(file_bytes_max)
    await quotas.check_storage_left(services, request.project_id, form.is_certainly_above)
    await form.find_file()
    if "purpose" in form.fields:
        check_purpose(form.fields["purpose"])  # before hundreds of megabytes are read for nothing
    async with commands.new_blob(services, blob_of(services, form.file_pieces(), file_bytes_max)) as blob:
        fields = await form.read_fields(CreateFile)
        check_purpose(fields.purpose)
        if blob.written.size_bytes == 0:
            raise InvalidRequest("The file is empty.", param="file", code="empty_file")
        filename = plain_filename(form.filename or "")
        record = commands.new_file(blob, filename, fields.purpose, services.now(), fields.expires_after)
        await quotas.write_stored(services, request.project_id, store.insert_file(request.project_id, record))
    return msgspec.json.encode(record.file).decode()


async def list_files(request: Request[None, FilePage]) -> str:
    services, query = request.services, request.query
    page = Page(limit=query.limit, order=query.order, after=query.after)
    filters = {} if query.purpose is None else {"purpose": query.purpose}
    return await store.file_listing.page(services.db, page, {"project_id": request.project_id, "now_seconds": services.now()}, filters)


async def get_file(request: Request[None, None]) -> str:
    return await store.get_file_json(request.services, request.project_id, request.path["file_id"])


async def delete_file(request: Request[None, None]) -> str:
    file_id = request.path["file_id"]
    await commands.delete_file(request.services, request.project_id, file_id, [request.audit("file.deleted", file_id)])
    return msgspec.json.encode(DeletedFile(file_id)).decode()


async def get_file_content(request: Request[None, None]) -> Download:
    services = request.services
    record = await store.get_file(services, request.project_id, request.path["file_id"])
    file = record.file
    if services.settings.strict_file_downloads and file.purpose in PURPOSES_NOT_DOWNLOADED:
        raise InvalidRequest(f"Not allowed to download files of purpose: {file.purpose}")
    return Download(record.blob_key, file.bytes, record.sha256, file.filename)


ROUTES = [
    Route(
        method="POST",
        path="/files",
        name="createFile",
        summary="Upload a file",
        call=create_file,
        form=CreateFile,
        answer=File,
    ),
    Route(
        method="GET",
        path="/files",
        name="listFiles",
        summary="List files",
        call=list_files,
        query=FilePage,
        answer=list_schema(File),
    ),
    Route(
        method="GET",
        path="/files/{file_id}",
        name="retrieveFile",
        summary="Get a file",
        call=get_file,
        answer=File,
    ),
    Route(
        method="DELETE",
        path="/files/{file_id}",
        name="deleteFile",
        summary="Delete a file, also out of every vector store",
        call=delete_file,
        answer=DeletedFile,
    ),
    Route(
        method="GET",
        path="/files/{file_id}/content",
        name="downloadFile",
        summary="Download a file",
        call=get_file_content,
        answer=None,
        downloads=True,
    ),
]
