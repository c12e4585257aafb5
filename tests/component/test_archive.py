"""`mini-assistant export` and `import`: the same project behind the same ids on another server, and bad archives that change nothing."""

import asyncio
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shlex
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import sqlalchemy as sa

from mini_assistant.__main__ import main
from mini_assistant.administration import delete_project, read_archive, write_archive
from mini_assistant.app import BLOBS_FOLDER, DATABASE_FILE, running_server
from mini_assistant.db.migrations import migrate_postgres
from mini_assistant.db.tables import metadata
from mini_assistant.errors import BlobMissing, ConfigError, StoreUnavailable
from mini_assistant.models.scripted import ScriptedEndpoint
from mini_assistant.projects.archived_rows import EXPORTED, NOT_EXPORTED
from mini_assistant.projects.deletion import decided_tables
from mini_assistant.queue.procrastinate_schema import apply_schema
from mini_assistant.settings import Settings
from tests.postgres_server import PostgresServer
from tests.s3_server import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3Server
from tests.server_contents import fill, seen


def nothing(_line: str) -> None:
    """Takes a line of the progress."""


def archives_in(folder: Path) -> list[Path]:
    return list(folder.glob("*.tar*"))


def test_every_table_is_decided_about() -> None:
    assert {table.name for table in EXPORTED} | set(NOT_EXPORTED) == set(metadata.tables)
    assert not {table.name for table in EXPORTED} & set(NOT_EXPORTED)
    assert decided_tables() == set(metadata.tables)
    for table in metadata.tables.values():
        assert {key.ondelete for key in table.foreign_keys} <= {"CASCADE"}, "rows go with the row that they hang on"


def test_parents_come_before_their_children() -> None:
    places = {table: place for place, table in enumerate(EXPORTED)}
    for table in EXPORTED:
        for key in table.foreign_keys:
            assert places[key.column.table] < places[table]


@pytest.fixture
def cluster(settings: Settings, postgres_url: str, s3: S3Server, s3_bucket: str, tmp_path: Path) -> Settings:
    """Another server, on PostgreSQL and S3."""
    apply_schema(postgres_url)
    return dataclasses.replace(
        settings,
        data_dir=tmp_path / "cluster",
        database_url=postgres_url,
        blobs_url=f"s3://{s3_bucket}/files",
        s3_endpoint_url=s3.url,
        s3_access_key_id=ACCESS_KEY_ID,
        s3_secret_access_key=SECRET_ACCESS_KEY,
    )


async def go_on(address: str, thread_id: str) -> None:
    """A run in an imported thread: new rows come behind the old ones."""
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="test-key", max_retries=0, timeout=30) as sdk:
        assistants = (await sdk.beta.assistants.list()).data
        await sdk.beta.threads.messages.create(thread_id, role="user", content="and on")
        run = await sdk.beta.threads.runs.create_and_poll(thread_id=thread_id, assistant_id=assistants[0].id, poll_interval_ms=20)
        assert run.status == "completed"
        newest = (await sdk.beta.threads.messages.list(thread_id)).data
        assert [message.role for message in newest[:3]] == ["assistant", "user", "assistant"]


async def deleted_thread(address: str) -> str:
    """A thread that was the newest, and is gone: its id goes on to be a cursor."""
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="test-key", max_retries=0, timeout=30) as sdk:
        thread = await sdk.beta.threads.create()
        await sdk.beta.threads.delete(thread.id)
        return thread.id


async def listed_after(address: str, cursor: str) -> list[str]:
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="test-key", max_retries=0, timeout=30) as sdk:
        page = await sdk.get("/threads", cast_to=object, options={"params": {"after": cursor}})
        return [thread["id"] for thread in page["data"]]  # type: ignore[index]


async def begin_upload(address: str) -> tuple[str, str]:
    """An upload with one part, not completed."""
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="test-key", max_retries=0, timeout=30) as sdk:
        upload = await sdk.uploads.create(filename="zebra.txt", bytes=5, mime_type="text/plain", purpose="assistants")
        part = await sdk.uploads.parts.create(upload.id, data=b"12345")
        return upload.id, part.id


async def complete_upload(address: str, upload_id: str, part_id: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="test-key", max_retries=0, timeout=30) as sdk:
        completed = await sdk.uploads.complete(upload_id, part_ids=[part_id])
        assert completed.file is not None
        assert (await sdk.files.content(completed.file.id)).read() == b"12345"


async def test_there_and_back_again(settings: Settings, cluster: Settings, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    first, second = tmp_path / "first.tar", tmp_path / "second.tar"
    async with running_server(settings) as address:
        store_id, thread_id = await fill(address)
        cursor = await deleted_thread(address)
        upload = await begin_upload(address)
        before = await seen(address, store_id)
        behind = await listed_after(address, cursor)
        assert before["search None"]["data"]
        assert len(behind) == 3
        await write_archive(settings, "default", first, nothing)  # beside the running server

    # Another project's rows are there already, with numbers of their own.
    async with running_server(cluster) as address:
        await fill(address)
    move_all_rows(cluster.database_url, "other")
    await read_archive(cluster, first, None, nothing)
    async with running_server(cluster) as address:
        assert await seen(address, store_id) == before
        assert await listed_after(address, cursor) == behind
        await write_archive(cluster, "default", second, nothing)
        await go_on(address, thread_id)
        await complete_upload(address, *upload)

    fresh = dataclasses.replace(settings, data_dir=tmp_path / "fresh")
    await read_archive(fresh, second, None, nothing)
    async with running_server(fresh) as address:
        assert await seen(address, store_id) == before
        assert await listed_after(address, cursor) == behind
        await go_on(address, thread_id)
        await complete_upload(address, *upload)


def move_all_rows(url: str, project: str) -> None:
    engine = sa.create_engine(f"postgresql+psycopg://{url.partition('://')[2]}")
    with engine.begin() as connection:
        for table in metadata.tables.values():
            if "project_id" in table.c:
                connection.execute(sa.update(table).values(project_id=project))
    engine.dispose()


async def test_after_delete_the_same_server_takes_it_again(settings: Settings, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    archive = tmp_path / "project.tar"
    async with running_server(settings) as address:
        store_id, thread_id = await fill(address)
        before = await seen(address, store_id)
    await write_archive(settings, "default", archive, nothing)
    with pytest.raises(ConfigError, match="is there already"):
        await read_archive(settings, archive, None, nothing)
    await delete_project(settings, "default", nothing)
    await read_archive(settings, archive, None, nothing)
    async with running_server(settings) as address:
        assert await seen(address, store_id) == before
        await go_on(address, thread_id)


async def test_it_may_get_another_name(settings: Settings, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    archive = tmp_path / "project.tar"
    async with running_server(settings) as address:
        await fill(address)
    await write_archive(settings, "default", archive, nothing)
    fresh = dataclasses.replace(settings, data_dir=tmp_path / "fresh")
    await read_archive(fresh, archive, "team-a", nothing)
    with sqlite3.connect(fresh.data_dir / DATABASE_FILE) as connection:
        for table in EXPORTED:
            if "project_id" in table.c:
                assert {name for (name,) in connection.execute(f"SELECT project_id FROM {table.name}")} <= {"team-a"}
        assert connection.execute("SELECT count(*) FROM threads").fetchone() == (3,)
    connection.close()


async def test_only_the_project_s_own_rows_are_in_it(settings: Settings, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    archive = tmp_path / "project.tar"
    async with running_server(settings) as address:
        await fill(address)
        with pytest.raises(ConfigError, match="nothing of a project 'team-b'"):
            await write_archive(settings, "team-b", archive, nothing)
    assert archives_in(tmp_path) == []
    with sqlite3.connect(settings.data_dir / DATABASE_FILE) as connection:
        connection.execute("UPDATE threads SET project_id = 'team-b'")
    connection.close()
    await write_archive(settings, "team-b", archive, nothing)
    with tarfile.open(archive) as tar:
        assert {name.split("/")[1] for name in tar.getnames() if name.startswith("rows/")} == {"threads"}
    assert archive.stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="is there already"):
        await write_archive(settings, "team-b", archive, nothing)


async def test_an_import_waits_for_nobody(settings: Settings, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    archive = tmp_path / "project.tar"
    async with running_server(settings) as address:
        await fill(address)
        await write_archive(settings, "default", archive, nothing)
        with pytest.raises(StoreUnavailable, match="in use by another server"):
            await read_archive(settings, archive, "team-b", nothing)


# ---- archives that are refused ----------------------------------------------------------------------------------------------------------


def members_of(archive: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(archive) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def tar_of(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def with_manifest(members: list[tuple[str, bytes]], change: Callable[[dict[str, Any]], None]) -> bytes:
    manifest = json.loads(members[-1][1])
    change(manifest)
    return tar_of([*members[:-1], ("manifest.json", json.dumps(manifest).encode())])


def with_row(members: list[tuple[str, bytes]], table: str, change: Callable[[list[Any]], None]) -> bytes:
    """The archive with another first row of a table, and the right hash for it."""
    name = f"rows/{table}/000000.jsonl"
    content = dict(members)[name]
    lines = content.splitlines()
    row = json.loads(lines[0])
    change(row)
    lines[0] = json.dumps(row).encode()
    changed = b"\n".join(lines)

    def describe(manifest: dict[str, Any]) -> None:
        [described] = [found for found in manifest["tables"] if found["name"] == table]
        described["members"][0] |= {"size_bytes": len(changed), "sha256": hashlib.sha256(changed).hexdigest()}

    return with_manifest([(found, changed if found == name else kept) for found, kept in members], describe)


def replace_project(row: list[Any]) -> None:
    row[5] = "thread_000000000000000000000000"


def set_seq(row: list[Any]) -> None:
    row[0] = 10**9


def set_text(row: list[Any]) -> None:
    row[3] = "yesterday"


def huge(members: list[tuple[str, bytes]], archive: bytes) -> bytes:
    name = members[0][0]
    info = tarfile.TarInfo(name)
    info.size = 8 * 10**12
    return info.tobuf(tarfile.GNU_FORMAT) + archive[512:]


def flipped(archive: bytes, place: int) -> bytes:
    return archive[:place] + bytes([archive[place] ^ 1]) + archive[place + 1 :]


BAD: dict[str, tuple[Callable[[list[tuple[str, bytes]], bytes], bytes], str]] = {
    "empty": (lambda _m, _a: b"", "not whole"),
    "no tar": (lambda _m, _a: b"x" * 4096, "no tar"),
    "truncated": (lambda _m, a: a[: len(a) // 2], "it ends within|not whole"),
    "without its end": (lambda m, _a: tar_of(m[:-1]), "no manifest"),
    "flipped byte in rows": (lambda _m, a: flipped(a, 512 + 40), "damaged"),
    "flipped byte in a blob": (lambda m, a: flipped(a, a.index(dict(m)["blobs/00000000"]) + 5), "damaged"),
    "flipped byte in a header": (lambda _m, a: flipped(a, 3), "damaged"),
    "path traversal": (lambda m, _a: tar_of([("../../etc/passwd", b"x"), *m]), "does not belong"),
    "absolute path": (lambda m, _a: tar_of([("/etc/passwd", b"x"), *m]), "does not belong"),
    "a member twice": (lambda m, _a: tar_of([m[0], *m]), "does not belong"),
    "a member too many": (lambda m, _a: tar_of([("blobs/99999999", b"x"), *m]), "does not describe"),
    "a member too few": (lambda m, _a: tar_of(m[1:]), "does not describe"),
    "huge size": (huge, "it ends within"),
    "another version": (lambda m, _a: with_manifest(m, lambda manifest: manifest.update(revision="0001")), "another version"),
    "another format": (lambda m, _a: with_manifest(m, lambda manifest: manifest.update(version=2)), "manifest is wrong"),
    "negative size": (lambda m, _a: with_manifest(m, lambda n: n["blobs"][0]["member"].update(size_bytes=-1)), "manifest is wrong"),
    "a table less": (lambda m, _a: with_manifest(m, lambda manifest: manifest["tables"].pop()), "does not describe|not the tables"),
    "a blob less": (lambda m, _a: with_manifest(m[:-2] + m[-1:], lambda manifest: manifest["blobs"].pop()), "bytes of"),
    "a row that is none": (lambda m, _a: with_row(m, "threads", set_text), "rows of threads are wrong"),
    "a number out of range": (lambda m, _a: with_row(m, "threads", set_seq), "belongs to no row"),
    "another count": (lambda m, _a: with_manifest(m, lambda n: n["tables"][0].update(count=7)), "instead of 7"),
    "another's parent": (lambda m, _a: with_row(m, "messages", replace_project), "there is no thread_"),
}


def left_in(data_dir: Path) -> tuple[int, list[str]]:
    """Rows of a project, and files in the blob folder."""
    connection = sqlite3.connect(data_dir / DATABASE_FILE)
    count = sum(connection.execute(f"SELECT count(*) FROM {table.name}").fetchone()[0] for table in EXPORTED)
    count += connection.execute("SELECT count(*) FROM unneeded_blobs").fetchone()[0]
    connection.close()
    return count, [path.name for path in (data_dir / BLOBS_FOLDER).rglob("*") if path.is_file()]


async def test_bad_archives_are_refused_and_nothing_is_written(settings: Settings, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    archive, bad = tmp_path / "project.tar", tmp_path / "bad.tar"
    async with running_server(settings) as address:
        await fill(address)
    await write_archive(settings, "default", archive, nothing)
    members, content = members_of(archive), archive.read_bytes()
    fresh = dataclasses.replace(settings, data_dir=tmp_path / "fresh")
    bad.write_bytes(tar_of(members))
    async with running_server(fresh):
        pass  # its tables are there

    for name, (make, reason) in BAD.items():
        bad.write_bytes(make(members, content))
        with pytest.raises(ConfigError, match=reason):
            await read_archive(fresh, bad, None, nothing)
        assert left_in(fresh.data_dir) == (0, []), name

    bad.write_bytes(tar_of(members))  # another program's tar of the same members is as good
    await read_archive(fresh, bad, None, nothing)
    assert left_in(fresh.data_dir)[0] > 0


async def test_an_import_that_is_cut_off_leaves_nothing(
    settings: Settings,
    cluster: Settings,
    s3: S3Server,
    s3_bucket: str,
    postgres: PostgresServer,
    endpoint: ScriptedEndpoint,
    tmp_path: Path,
) -> None:
    archive = tmp_path / "project.tar"
    async with running_server(settings) as address:
        await fill(address)
    await write_archive(settings, "default", archive, nothing)
    migrate_postgres(cluster.database_url)
    database = cluster.database_url.rpartition("/")[2]
    postgres.execute("ALTER TABLE passages ADD CONSTRAINT full_disk CHECK (ordinal < 0)", database)
    with pytest.raises((ConfigError, StoreUnavailable)):
        await read_archive(cluster, archive, None, nothing)
    for table in (*EXPORTED, metadata.tables["unneeded_blobs"]):
        assert postgres.execute(f"SELECT count(*) FROM {table.name}", database) == [(0,)]
    assert s3.keys(s3_bucket) == []


async def test_a_file_that_is_deleted_meanwhile_is_noticed(settings: Settings, endpoint: ScriptedEndpoint, tmp_path: Path) -> None:
    archive = tmp_path / "project.tar"
    async with running_server(settings) as address:
        await fill(address)
    [blob] = [path for path in (settings.data_dir / BLOBS_FOLDER).rglob("*") if path.is_file()]
    await asyncio.to_thread(blob.unlink)
    with pytest.raises(BlobMissing, match="export again"):
        await write_archive(settings, "default", archive, nothing)
    assert archives_in(tmp_path) == []


# ---- the commands -----------------------------------------------------------------------------------------------------------------------


def documented_commands() -> list[list[str]]:
    """The arguments of every `mini-assistant` in the page, in its order."""
    text = (Path(__file__).parents[2] / "docs" / "howto" / "retention.md").read_text(encoding="utf-8")
    return [shlex.split(line, comments=True)[1:] for line in text.splitlines() if line.startswith(".venv/bin/mini-assistant ")]


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, where the commands find `data`; settings of whoever runs the tests play no part."""
    for name in list(os.environ):
        if name.startswith(("OPENAI_", "MINI_ASSISTANT_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def fill_team_a(settings: Settings) -> None:
    async with running_server(settings) as address:
        await fill(address)
    with contextlib.closing(sqlite3.connect(settings.data_dir / DATABASE_FILE)) as connection, connection:
        for table in EXPORTED:
            if "project_id" in table.c:
                connection.execute(f"UPDATE {table.name} SET project_id = 'team-a'")


async def test_the_commands_of_the_page_work(
    settings: Settings, endpoint: ScriptedEndpoint, in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await fill_team_a(settings)
    commands = documented_commands()
    assert [command[0] for command in commands] == ["export", "import", "projects"]
    for command in commands:
        assert await asyncio.to_thread(main, command) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "threads: 3 rows" in said
    assert "The project team-a is deleted." in said
    assert left_in(in_folder / "data")[0] <= 1, "a deleted cursor of no project at most"
    assert left_in(in_folder / "elsewhere")[0] > 20


async def test_a_project_is_not_deleted_by_mistake(
    settings: Settings, endpoint: ScriptedEndpoint, in_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill_team_a(settings)
    before = left_in(in_folder / "data")
    for answer in ("", "yes\n", "team-b\n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        assert await asyncio.to_thread(main, ["projects", "delete", "team-a"]) == 1
        assert "nothing was deleted" in capsys.readouterr().err
    assert left_in(in_folder / "data") == before
    monkeypatch.setattr("sys.stdin", io.StringIO("team-a\n"))
    assert await asyncio.to_thread(main, ["projects", "delete", "team-a"]) == 0
    assert left_in(in_folder / "data")[1] == []
    assert await asyncio.to_thread(main, ["projects", "delete", "team-a", "--yes"]) == 1
    assert "nothing of a project 'team-a'" in capsys.readouterr().err
