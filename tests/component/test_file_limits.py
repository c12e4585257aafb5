"""Files at their limits: too large, too slow, broken off, expired, deleted in mid-use; and that nothing is left of any of it."""

import asyncio
import dataclasses
import io
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import psutil
import pytest

from mini_assistant.app import BLOBS_FOLDER, DATABASE_FILE, open_services
from mini_assistant.clock import ManualClock
from mini_assistant.db.base import GuardFailed
from mini_assistant.errors import NotFound
from mini_assistant.files import commands, store
from mini_assistant.files.blobs.base import WrittenBlob
from mini_assistant.files.schema import FileExpirationAfter, FilePage
from mini_assistant.files.sweep import sweep_files
from mini_assistant.files.uploads import store as upload_store
from mini_assistant.files.uploads.schema import Upload, UploadPart
from mini_assistant.pagination import EMPTY_LIST, Page
from mini_assistant.services import Services
from mini_assistant.settings import Settings
from tests.envelope import checked_error
from tests.server_process import ServerProcess

PROJECT = "default"
FILE_BYTES_MAX = 2_000_000
HEAD = (
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nassistants\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
)
TAIL = b"\r\n--b--\r\n"
MEGABYTE = 1024 * 1024


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return dataclasses.replace(settings, file_bytes_max=FILE_BYTES_MAX, body_timeout_seconds=0.5, stream_write_timeout_seconds=0.5)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(time.time())


@pytest.fixture
async def services(settings: Settings, clock: ManualClock) -> AsyncIterator[Services]:
    """The parts of a server without its HTTP side; its time stands still until a test moves it."""
    async with open_services(settings) as opened:
        yield dataclasses.replace(opened, clock=clock)


def blobs_on_disk(data_dir: Path) -> list[str]:
    """Everything in the folder of the blobs, finished or not."""
    return sorted(path.name for path in (data_dir / BLOBS_FOLDER).rglob("*") if path.is_file())


def rows(data_dir: Path, table: str) -> int:
    with sqlite3.connect(f"file:{data_dir / DATABASE_FILE}?mode=ro", uri=True) as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def assert_nothing_is_kept(data_dir: Path) -> None:
    assert blobs_on_disk(data_dir) == []
    assert [rows(data_dir, table) for table in ("files", "uploads", "upload_parts", "unneeded_blobs")] == [0, 0, 0, 0]


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is awaited is on the disk
            await asyncio.sleep(0.02)


class Connection:
    """A client that sends exactly what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, server: str) -> "Connection":
        host, port = server.removeprefix("http://").split(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def begin_upload(self, *, length: int | None) -> None:
        """length: what the client says of the body; None for a body in chunks."""
        said = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
        head = b"POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=b\r\n%b\r\n\r\n" % said
        await self.send(head)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, Any]]:
        async with asyncio.timeout(10):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            return int(head.split(b" ")[1]), checked_error(await self.reader.readexactly(length))


@pytest.fixture
async def connection(server: str) -> AsyncIterator[Connection]:
    connection = await Connection.to(server)
    yield connection
    connection.writer.transport.abort()


async def test_the_largest_file_is_taken_and_one_byte_more_is_not(sdk: openai.AsyncOpenAI, settings: Settings) -> None:
    file = await sdk.files.create(file=b"x" * FILE_BYTES_MAX, purpose="assistants")
    assert file.bytes == FILE_BYTES_MAX
    await sdk.files.delete(file.id)
    with pytest.raises(openai.APIStatusError) as caught:
        await sdk.files.create(file=b"x" * (FILE_BYTES_MAX + 1), purpose="assistants")
    assert caught.value.status_code == 413
    assert "larger than 2000000 bytes" in str(caught.value)
    assert_nothing_is_kept(settings.data_dir)


async def test_a_client_that_sends_far_too_much_gets_its_answer(sdk: openai.AsyncOpenAI, settings: Settings) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await sdk.files.create(file=b"x" * 10 * FILE_BYTES_MAX, purpose="assistants")
    assert caught.value.status_code == 413
    assert_nothing_is_kept(settings.data_dir)


async def test_a_size_that_is_announced_is_refused_before_it_comes(connection: Connection, settings: Settings) -> None:
    await connection.begin_upload(length=10**12)
    status, error = await connection.answer()
    assert (status, error["code"], error["param"]) == (413, "file_too_large", "file")
    assert_nothing_is_kept(settings.data_dir)


async def test_a_size_that_is_not_announced_is_refused_when_it_has_come(connection: Connection, settings: Settings) -> None:
    await connection.begin_upload(length=None)
    data = HEAD + b"x" * (FILE_BYTES_MAX + 1)
    await connection.send(b"%x\r\n%b\r\n" % (len(data), data))
    assert (await connection.answer())[0] == 413
    assert_nothing_is_kept(settings.data_dir)


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(
    connection: Connection, settings: Settings, http: aiohttp.ClientSession
) -> None:
    await connection.begin_upload(length=FILE_BYTES_MAX)
    await connection.send(HEAD + b"x" * 1_500_000)
    await until(lambda: blobs_on_disk(settings.data_dir))
    connection.writer.transport.abort()
    await until(lambda: not blobs_on_disk(settings.data_dir) and not rows(settings.data_dir, "unneeded_blobs"))
    assert_nothing_is_kept(settings.data_dir)
    async with http.get("/v1/files") as response:
        assert (await response.json())["data"] == []


async def test_a_client_that_stops_sending_is_told(connection: Connection, settings: Settings) -> None:
    await connection.begin_upload(length=FILE_BYTES_MAX)
    await connection.send(HEAD + b"x" * 1_500_000)
    status, error = await connection.answer()
    assert (status, error["code"]) == (400, "body_timeout")
    assert_nothing_is_kept(settings.data_dir)


async def test_a_body_that_ends_before_its_boundary_leaves_nothing(connection: Connection, settings: Settings) -> None:
    data = HEAD + b"x" * 1_500_000
    await connection.begin_upload(length=len(data))
    await connection.send(data)
    status, error = await connection.answer()
    assert (status, error["code"]) == (400, "invalid_multipart")
    assert_nothing_is_kept(settings.data_dir)


async def test_fields_that_are_wrong_behind_the_file_leave_nothing(http: aiohttp.ClientSession, settings: Settings) -> None:
    for fields in ({"purpose": "nonsense"}, {}, {"purpose": "assistants", "colour": "blue"}):
        data = aiohttp.FormData()
        data.add_field("file", io.BytesIO(b"x" * 1_500_000), filename="a.txt")
        for name, value in fields.items():
            data.add_field(name, value)
        async with http.post("/v1/files", data=data) as response:
            assert response.status == 400
            checked_error(await response.read())
    assert_nothing_is_kept(settings.data_dir)


async def test_the_connection_goes_on_after_a_refused_form(connection: Connection) -> None:
    data = HEAD.replace(b"assistants", b"nonsense") + b"x" * 1_500_000 + TAIL
    await connection.begin_upload(length=len(data))
    await connection.send(data)
    assert (await connection.answer())[1]["param"] == "purpose"
    await connection.send(b"GET /v1/files/file-x HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert (await connection.answer())[0] == 404


async def test_a_reader_that_takes_nothing_is_dropped(connection: Connection, sdk: openai.AsyncOpenAI) -> None:
    # As large as no buffer between the two.
    parts = [b"x" * FILE_BYTES_MAX] * 20
    upload = await sdk.uploads.create(filename="a", purpose="assistants", bytes=len(parts) * FILE_BYTES_MAX, mime_type="text/plain")
    part_ids = [(await sdk.uploads.parts.create(upload.id, data=part)).id for part in parts]
    file = (await sdk.uploads.complete(upload.id, part_ids=part_ids)).file
    assert file is not None
    await connection.send(f"GET /v1/files/{file.id}/content HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    assert (await connection.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    await asyncio.sleep(1.5)  # three times as long as it may take nothing
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await connection.reader.readexactly(file.bytes)
    assert len((await sdk.files.content(file.id)).content) == file.bytes


async def test_a_download_whose_bytes_are_gone_is_no_whole_answer(
    sdk: openai.AsyncOpenAI, http: aiohttp.ClientSession, settings: Settings
) -> None:
    file = await sdk.files.create(file=b"x" * 1_000_000, purpose="assistants")
    [blob] = [path for path in (settings.data_dir / BLOBS_FOLDER).rglob("*") if path.is_file()]
    blob.write_bytes(b"x" * 400_000)
    with pytest.raises(aiohttp.ClientPayloadError):
        async with http.get(f"/v1/files/{file.id}/content") as response:
            await response.read()
    blob.unlink()
    async with http.get(f"/v1/files/{file.id}/content") as response:
        assert response.status == 503
        assert (await response.json())["error"]["type"] == "server_error"


# ---- what the sweeper does ---------------------------------------------------------------------------------------------------------


async def kept_blob(services: Services, content: bytes = b"hello") -> AsyncIterator[bytes]:
    yield content


async def new_file(services: Services, *, expires_after: FileExpirationAfter | None = None) -> store.FileRecord:
    async with commands.new_blob(services, commands.blob_of(services, kept_blob(services), 100)) as blob:
        record = commands.new_file(blob, "a.txt", "assistants", services.now(), expires_after)
        await services.db.write(store.insert_file(PROJECT, record))
    return record


async def test_an_expired_file_is_gone_at_once_and_swept_later(services: Services, clock: ManualClock, settings: Settings) -> None:
    record = await new_file(services, expires_after=FileExpirationAfter("created_at", 3600))
    lasting = await new_file(services)
    ids = [record.file.id, lasting.file.id]
    assert await store.existing_file_ids(services, PROJECT, ids) == set(ids)
    clock.advance(3600)

    assert await store.existing_file_ids(services, PROJECT, ids) == {lasting.file.id}
    assert await store.get_file_or_none(services, PROJECT, record.file.id) is None
    for use in (store.get_file_json, commands.delete_file):
        with pytest.raises(NotFound):
            await use(services, PROJECT, record.file.id)
    scope = {"project_id": PROJECT, "now_seconds": services.now()}
    assert record.file.id not in await store.file_listing.page(services.db, Page(), scope)
    with pytest.raises(GuardFailed):
        await services.db.write([store.require_file(PROJECT, record.file.id, services.now())])

    await sweep_files(services)
    assert blobs_on_disk(settings.data_dir) == [lasting.blob_key]
    assert (rows(settings.data_dir, "files"), rows(settings.data_dir, "unneeded_blobs")) == (1, 0)


async def test_another_project_sees_nothing(services: Services) -> None:
    record = await new_file(services)
    other = {"project_id": "other", "now_seconds": services.now()}
    assert await store.get_file_or_none(services, "other", record.file.id) is None
    assert await store.existing_file_ids(services, "other", [record.file.id]) == set()
    assert await store.file_listing.page(services.db, Page(limit=FilePage().limit), other) == EMPTY_LIST
    with pytest.raises(NotFound):
        await commands.delete_file(services, "other", record.file.id)
    assert await store.get_file(services, PROJECT, record.file.id) == record


async def test_existing_ids_among_many(services: Services) -> None:
    there = {(await new_file(services)).file.id for _ in range(5)}
    wanted = [f"file-{number}" for number in range(700)] + sorted(there) * 2
    assert await store.existing_file_ids(services, PROJECT, wanted) == there
    assert await store.existing_file_ids(services, PROJECT, []) == set()


async def test_bytes_of_a_killed_upload_are_swept_a_day_later(services: Services, clock: ManualClock, settings: Settings) -> None:
    # As a kill leaves it: the blob is noted, some or all of its bytes are there, and no row has claimed it.
    await services.db.write([store.reserve_blob("c0ffee", services.now())])
    await services.blobs.write("c0ffee", kept_blob(services), bytes_max=100)
    await sweep_files(services)
    assert blobs_on_disk(settings.data_dir) == ["c0ffee"]
    clock.advance(86_401)
    await sweep_files(services)
    assert_nothing_is_kept(settings.data_dir)


async def test_a_blob_that_was_given_up_cannot_be_claimed(services: Services, clock: ManualClock, settings: Settings) -> None:
    async def write(key: str) -> WrittenBlob:
        return await services.blobs.write(key, kept_blob(services), bytes_max=100)

    with pytest.raises(GuardFailed, match="blob"):  # noqa: PT012 - what is raised inside is what is tested
        async with commands.new_blob(services, write) as blob:
            clock.advance(86_401)
            await sweep_files(services)
            record = commands.new_file(blob, "a.txt", "assistants", services.now())
            await services.db.write(store.insert_file(PROJECT, record))
    assert_nothing_is_kept(settings.data_dir)


async def test_a_writer_that_is_cancelled_after_its_commit_keeps_its_file(services: Services, settings: Settings) -> None:
    with pytest.raises(asyncio.CancelledError):  # noqa: PT012 - as above
        async with commands.new_blob(services, commands.blob_of(services, kept_blob(services), 100)) as blob:
            record = commands.new_file(blob, "a.txt", "assistants", services.now())
            await services.db.write(store.insert_file(PROJECT, record))
            raise asyncio.CancelledError
    assert blobs_on_disk(settings.data_dir) == [record.blob_key]
    assert await store.get_file(services, PROJECT, record.file.id) == record


async def test_a_deletion_that_is_cut_off_is_finished_by_the_sweeper(services: Services, settings: Settings) -> None:
    record = await new_file(services)
    assert await commands.remove_file(services, PROJECT, record.file.id)  # and the process dies here
    assert not await commands.remove_file(services, PROJECT, record.file.id)
    assert blobs_on_disk(settings.data_dir) == [record.blob_key]
    await sweep_files(services)
    assert_nothing_is_kept_but_cursors(settings.data_dir)


def assert_nothing_is_kept_but_cursors(data_dir: Path) -> None:
    assert_nothing_is_kept(data_dir)
    assert rows(data_dir, "deleted_cursors") == 1


async def test_expired_uploads_lose_their_parts_and_are_forgotten_a_day_later(
    services: Services, clock: ManualClock, settings: Settings
) -> None:
    now = services.now()
    upload = Upload(
        id="upload_1",
        object="upload",
        bytes=5,
        created_at=now,
        filename="a",
        purpose="assistants",
        status="pending",
        expires_at=now + 3600,
    )
    await services.db.write([upload_store.insert_upload(PROJECT, upload_store.UploadRecord(upload, "text/plain", None))])
    async with commands.new_blob(services, commands.blob_of(services, kept_blob(services), 100)) as blob:
        part = UploadPart(id="part_1", created_at=now, upload_id=upload.id)
        stored = upload_store.PartRecord(5, blob.key)
        inserts = upload_store.insert_part(PROJECT, part, stored, upload_bytes_max=100, now=now)
        await services.db.write([*inserts, store.claim_blob(blob.key)])
    await sweep_files(services)
    assert blobs_on_disk(settings.data_dir) == [blob.key]

    clock.advance(3600)
    assert (await upload_store.get_upload(services, PROJECT, upload.id)).upload.status == "expired"
    await sweep_files(services)
    assert blobs_on_disk(settings.data_dir) == []
    assert (await upload_store.get_upload(services, PROJECT, upload.id)).upload.status == "expired"
    with pytest.raises(GuardFailed, match="pending"):
        await services.db.write(upload_store.end_upload(PROJECT, upload.id, "completed", services.now()))
    clock.advance(86_401)
    await sweep_files(services)
    assert_nothing_is_kept(settings.data_dir)


async def test_memory_is_flat_while_a_large_file_goes_in_and_out(tmp_path: Path) -> None:
    process = ServerProcess(tmp_path / "data", {"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "OPENAI_API_KEY": "none"})
    await asyncio.to_thread(process.start)
    try:
        async with aiohttp.ClientSession(base_url=process.address, timeout=aiohttp.ClientTimeout(total=60)) as http:
            await carried(http, MEGABYTE)
            before = psutil.Process(process.pid).memory_info().rss
            await carried(http, 100 * MEGABYTE)
            peak = int((Path("/proc") / str(process.pid) / "status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
        assert peak - before < 32 * MEGABYTE
    finally:
        await asyncio.to_thread(process.stop)


async def carried(http: aiohttp.ClientSession, size_bytes: int) -> None:
    """Upload and download so many bytes."""

    async def content() -> AsyncIterator[bytes]:
        yield HEAD
        for _ in range(size_bytes // MEGABYTE):
            yield b"x" * MEGABYTE
        yield TAIL

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    async with http.post("/v1/files", data=content(), headers=headers) as response:
        file = await response.json()
    assert file["bytes"] == size_bytes
    received = 0
    async with http.get(f"/v1/files/{file['id']}/content") as response:
        async for piece in response.content.iter_any():
            received += len(piece)
    assert received == size_bytes
