"""What commands do with the parts of a server without running one: look after its database, its keys and its models.

Beside app.py, which makes the parts, and with it the composition root.
"""

import contextlib
import datetime
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from pathlib import Path

import msgspec

from mini_assistant.app import (
    BLOBS_FOLDER,
    DATABASE_FILE,
    build_blobs,
    build_embedder,
    build_models,
    build_reranker,
    build_sandbox,
    load_cluster,
)
from mini_assistant.clock import SystemClock
from mini_assistant.db.base import Database
from mini_assistant.db.engines import RowEngine, postgres_engine, sqlite_engine
from mini_assistant.db.sqlite import SqliteDatabase
from mini_assistant.errors import BackendError, ConfigError
from mini_assistant.files.blobs.base import BlobStore
from mini_assistant.files.blobs.disk import DiskBlobStore
from mini_assistant.models.builtin import builtin_capabilities
from mini_assistant.models.endpoint_session import EndpointSession
from mini_assistant.models.probe import known_report, probe
from mini_assistant.models.probe_report import ProbeReport, provider_toml
from mini_assistant.models.provider_limits import limits_of
from mini_assistant.models.routing import BUILTIN, find_route
from mini_assistant.projects import deletion, keys
from mini_assistant.projects.archive import export_project
from mini_assistant.projects.archive_file import ArchiveReader
from mini_assistant.projects.archive_import import import_project
from mini_assistant.projects.keys import NewKey, checked_project, checked_scopes, insert_key, key_table, new_key
from mini_assistant.projects.store import KeyRecord, get_keys
from mini_assistant.projects.usage import BEGINNING, Place, UsageDay, day_of, first_of_days, get_days, roll_up_usage
from mini_assistant.projects.usage_report import UsageReport
from mini_assistant.sandboxes.environments import prepare_process
from mini_assistant.sandboxes.wasm_prepare import prepare_wasm
from mini_assistant.settings import ModelSettings, ProviderSettings, Settings

_DAYS_PER_READ = 1000


@contextlib.asynccontextmanager
async def open_rows(settings: Settings, *, is_made: bool = False) -> AsyncGenerator[Database]:
    """The rows of the server, for a command that reads or writes some of them; a running server goes on meanwhile.

    is_made: whether an embedded database is made when it is not there yet. Raises StoreUnavailable when they cannot be reached, and when a
    running server has another version.
    """
    async with contextlib.AsyncExitStack() as stack:
        if settings.database_url:
            yield (await load_cluster().open_cluster(settings, (), stack)).db
            return
        db = SqliteDatabase(settings.data_dir / DATABASE_FILE)
        await (db.open() if is_made and not db.path.is_file() else db.open_beside_server())
        stack.push_async_callback(db.close)
        yield db


async def create_key(settings: Settings, project: str, scopes: str, expires_days: int | None) -> NewKey:
    """Make a key for a project. scopes: such as `read,write`. expires_days: None for a key that does not expire.

    Raises ConfigError for what is no project, scope or number of days, and as `open_rows`.
    """
    made = new_key(checked_project(project), checked_scopes(scopes), int(SystemClock().now()), expires_days)
    async with open_rows(settings, is_made=True) as db:
        await db.write(insert_key(made.record))
    return made


async def list_keys(settings: Settings, project: str | None) -> list[str]:
    """The keys of all projects, or of one, as lines of a table. Raises as `open_rows`."""
    async with open_rows(settings) as db:
        return list(key_table(await get_keys(db, project), int(SystemClock().now())))


async def revoke_key(settings: Settings, key_id: str) -> KeyRecord:
    """Revoke a key; servers take it for `key_cache_seconds` more at most. Raises ConfigError when there is none, and as `open_rows`."""
    async with open_rows(settings) as db:
        return await keys.revoke_key(db, key_id, int(SystemClock().now()))


async def usage_of_days(settings: Settings, project_id: str | None, count: int) -> UsageReport:
    """What projects have used in the last days, today included. project_id: None for all. Raises StoreUnavailable."""
    last = datetime.date.fromisoformat(day_of(SystemClock().now()))
    first, days, after = first_of_days(last, count), list[UsageDay](), BEGINNING
    async with open_rows(settings) as db:
        await roll_up_usage(db)
        while page := await get_days(db, first.isoformat(), last.isoformat(), limit=_DAYS_PER_READ, project_id=project_id, after=after):
            days += page
            after = Place(page[-1].date, page[-1].project_id)
    return UsageReport(days)


@contextlib.asynccontextmanager
async def _open_blobs(settings: Settings) -> AsyncGenerator[BlobStore]:
    blobs = build_blobs(settings)
    try:
        yield blobs
    finally:
        await blobs.close()


@contextlib.contextmanager
def _row_engine(settings: Settings) -> Generator[RowEngine]:
    """Connections of its own to rows that are there; see `db/engines.py`."""
    url = settings.database_url
    engine = postgres_engine(url) if url else sqlite_engine(settings.data_dir / DATABASE_FILE)
    try:
        yield engine
    finally:
        engine.close()


async def write_archive(settings: Settings, project: str, path: Path, tell: Callable[[str], None]) -> None:
    """Export a project to a file; a running server goes on meanwhile. tell: told of what is in it, a line at a time.

    Raises ConfigError and StoreUnavailable as `export_project`; no file is left then.
    """
    await _check_rows(settings)
    async with _open_blobs(settings) as blobs:
        with _row_engine(settings) as rows:
            await export_project(rows, blobs, project, path, now=int(SystemClock().now()), tell=tell)


async def _check_rows(settings: Settings) -> None:
    """Raise StoreUnavailable when the rows cannot be reached, or have not the shape of this version."""
    async with open_rows(settings):
        pass


async def read_archive(settings: Settings, path: Path, project: str | None, tell: Callable[[str], None]) -> None:
    """Import a project from a file. project: its name here; None for the one that it had. An embedded server must be stopped.

    Raises ConfigError and StoreUnavailable as `import_project`; nothing is written then.
    """
    with ArchiveReader(path) as archive:
        async with _rows_to_import_into(settings), _open_blobs(settings) as blobs:
            with _row_engine(settings) as rows:
                name = checked_project(archive.manifest.project if project is None else project)
                await import_project(rows, blobs, archive, name, now=int(SystemClock().now()), tell=tell)


@contextlib.asynccontextmanager
async def _rows_to_import_into(settings: Settings) -> AsyncGenerator[None]:
    """They have the shape of this version, and an embedded server does not use them: an import is one long write."""
    if settings.database_url:
        await _check_rows(settings)
        yield
        return
    db = SqliteDatabase(settings.data_dir / DATABASE_FILE)
    await db.open()
    try:
        yield
    finally:
        await db.close()


async def delete_project(settings: Settings, project: str, tell: Callable[[str], None]) -> None:
    """Delete all of a project; running servers go on meanwhile. tell: told of what was deleted, a line at a time.

    Raises ConfigError when there is nothing of it, and StoreUnavailable: what is left then is deleted by the next call.
    """
    async with open_rows(settings) as db, _open_blobs(settings) as blobs:
        if not await deletion.delete_project(db, blobs, project, now=int(SystemClock().now()), tell=tell):
            raise ConfigError(f"There is nothing of a project '{project}'.")


def migrate_database(settings: Settings) -> str:
    """Bring the PostgreSQL of the settings to the shape that this version needs; returns a line about it.

    Servers of the version before may go on beside it. Raises ConfigError without `database_url`, and StoreUnavailable.
    """
    if not settings.database_url:
        raise ConfigError("Only PostgreSQL is migrated by hand: set database_url. SQLite is migrated by the start of its server.")
    return load_cluster().migrate_database(settings)


async def transfer_database(settings: Settings, source: str, announce: Callable[[str], None]) -> None:
    """Move everything from an embedded server that is stopped to the PostgreSQL of the settings.

    source: `sqlite:` and its data folder, or the file in it. Files go to `blobs_url`; without one they stay where they are, and `data_dir`
    must be that folder. Raises ConfigError and StoreUnavailable.
    """
    file = _embedded_file(source)
    if not settings.database_url:
        raise ConfigError("--to (or database_url) must name a PostgreSQL, as in postgresql://user:password@host/name.")
    if not settings.blobs_url and file.parent.resolve() != settings.data_dir.resolve():
        raise ConfigError(f"Without blobs_url the files stay in {file.parent}: set --data-dir to it, for all servers and workers.")
    cluster = load_cluster()
    embedded = SqliteDatabase(file)
    async with contextlib.AsyncExitStack() as stack:
        await embedded.open()  # nobody else may write, and it has the shape of this version
        stack.push_async_callback(embedded.close)
        blobs = DiskBlobStore(file.parent / BLOBS_FOLDER)
        stack.push_async_callback(blobs.close)
        target_blobs = await stack.enter_async_context(_open_blobs(settings)) if settings.blobs_url else None
        await cluster.transfer(settings, file, blobs, target_blobs, announce)


def _embedded_file(source: str) -> Path:
    scheme, _, place = source.partition(":")
    path = Path(place.removeprefix("//"))
    file = path / DATABASE_FILE if path.is_dir() else path
    if scheme != "sqlite" or not file.is_file():
        raise ConfigError(f"--from must name an embedded database that is there, such as sqlite:data, but is '{source}'.")
    return file


def prepare_sandbox(settings: Settings, environment: str, tell: Callable[[str], None]) -> None:
    """Install what a sandbox runs code in. environment: process or wasm. tell: told of the progress, a line at a time.

    Raises ConfigError when it cannot be installed.
    """
    prepare = {"process": prepare_process, "wasm": prepare_wasm}[environment]
    prepare(settings.sandbox_environments, tell)


async def checked_parts(settings: Settings) -> Mapping[str, str | BackendError]:
    """Try each part of the server; what it says of itself, or why it cannot be used."""
    models, _ = build_models(settings)
    embedder = build_embedder(settings)
    reranker = build_reranker(settings)
    sandbox = build_sandbox(settings)
    try:
        parts = {
            "database": await _outcome(_check_database(settings)),
            "files": await _outcome(_check_blobs(settings)),
            "model": await _outcome(models.check()),
            "embedder": await _outcome(embedder.check()),
            "sandbox": await _outcome(sandbox.check()),
            "queue": await _outcome(_check_queue(settings)),
        }
        return parts if reranker is None else {**parts, "re-ranker": await _outcome(reranker.check())}
    finally:
        await models.close()
        await embedder.close()
        await sandbox.close()
        if reranker is not None:
            await reranker.close()


async def _check_database(settings: Settings) -> str:
    if not settings.database_url:
        return await SqliteDatabase(settings.data_dir / DATABASE_FILE).check()
    async with contextlib.AsyncExitStack() as stack:
        return await (await load_cluster().open_cluster(settings, (), stack)).db.check()


async def _check_blobs(settings: Settings) -> str:
    blobs = build_blobs(settings)
    try:
        return await blobs.check()
    finally:
        await blobs.close()


async def _check_queue(settings: Settings) -> str:
    if not settings.database_url:
        return "in this process; runs that wait are rows of the database"
    return await load_cluster().check_queue(settings)


async def _outcome(check: Awaitable[str]) -> str | BackendError:
    try:
        return await check
    except BackendError as exc:
        return exc


async def probe_model(settings: Settings, name: str, tell: Callable[[str], None]) -> ProbeReport:
    """Ask the endpoint behind a model's name what it really does. tell: told of the progress, a line at a time.

    Raises ModelError when no provider serves the name, or the endpoint does not answer at all.
    """
    route = find_route(settings, name)
    if route.provider == BUILTIN:
        return known_report(name, BUILTIN, builtin_capabilities(settings))
    is_named = route.provider in settings.providers
    provider = settings.providers[route.provider] if is_named else ProviderSettings(base_url=settings.openai_base_url)
    key = settings.provider_keys.get(route.provider, "") if is_named else settings.openai_api_key
    limits = limits_of(settings, route.provider)
    session = EndpointSession(
        route.provider,
        provider.base_url,
        api_key=key,
        connect_timeout_seconds=limits.connect_timeout_seconds,
        proxy=provider.proxy,
    )
    configured = route.capabilities if isinstance(route.capabilities, ModelSettings) else ModelSettings()
    model = msgspec.structs.replace(configured, provider=route.provider, upstream_name=route.upstream_name)
    try:
        report = await probe(session, limits, name, model, tell)
    finally:
        await session.close()
    if is_named:
        return report
    is_shortened = any(mark in provider.base_url for mark in "?@#")
    table = provider_toml(route.provider, report.address, "OPENAI_API_KEY" if key else None, is_shortened=is_shortened)
    return msgspec.structs.replace(report, toml=f"{table}\n\n{report.toml}")
