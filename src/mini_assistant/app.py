"""The composition root: the only file that names concrete backends. `serve` runs the whole server until it is told to stop."""

import asyncio
import contextlib
import dataclasses
import gc
import importlib.util
import logging
import signal
import socket
import types
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Sequence
from typing import TYPE_CHECKING

import uvicorn

from mini_assistant.assistants import routes as assistant_routes
from mini_assistant.clock import SystemClock
from mini_assistant.db.sqlite import SqliteDatabase
from mini_assistant.errors import ConfigError, ModelError
from mini_assistant.events.local import LocalEventBus
from mini_assistant.files import routes as file_routes
from mini_assistant.files.blobs.base import BlobStore
from mini_assistant.files.blobs.disk import DiskBlobStore
from mini_assistant.files.uploads import routes as upload_routes
from mini_assistant.http import health, model_list
from mini_assistant.http.api import Api
from mini_assistant.http.connection import HttpConnection
from mini_assistant.http.metrics_page import metrics_routes
from mini_assistant.http.openapi import openapi_route
from mini_assistant.http.playground import playground_routes
from mini_assistant.http.routing import Route
from mini_assistant.metrics import watch_event_loop
from mini_assistant.models.base import ChatProvider
from mini_assistant.models.builtin import BuiltinModel, builtin_capabilities
from mini_assistant.models.embeddings.base import Embedder
from mini_assistant.models.embeddings.fastembed import FastembedEmbedder
from mini_assistant.models.embeddings.openai_compatible import EmbeddingsEndpoint
from mini_assistant.models.embeddings.wordllama import WordllamaEmbedder
from mini_assistant.models.endpoint_session import public_address
from mini_assistant.models.openai_compatible import OpenAICompatible
from mini_assistant.models.provider_limits import ProviderLimits, limits_of
from mini_assistant.models.rerank.base import Reranker
from mini_assistant.models.rerank.endpoint import RerankEndpoint
from mini_assistant.models.routing import BUILTIN, OPENAI, RoutedModels, provider_names
from mini_assistant.projects import routes as project_routes
from mini_assistant.projects import usage_routes
from mini_assistant.projects.store import is_any_key
from mini_assistant.queue.base import TaskKind
from mini_assistant.queue.local import LocalTaskQueue
from mini_assistant.runs import routes as run_routes
from mini_assistant.runs.leases import free_all_leases
from mini_assistant.runs.worker import Worker
from mini_assistant.sandboxes.absent import NoSandbox
from mini_assistant.sandboxes.auto import AutoSandbox
from mini_assistant.sandboxes.base import Sandbox
from mini_assistant.sandboxes.jupyter import JupyterSandbox
from mini_assistant.sandboxes.opensandbox import OpenSandboxService
from mini_assistant.sandboxes.process import ProcessSandbox
from mini_assistant.sandboxes.unsafe import UnsafeSandbox
from mini_assistant.sandboxes.wasm import WasmSandbox
from mini_assistant.services import Backends, Services
from mini_assistant.settings import Settings
from mini_assistant.threads import routes as thread_routes
from mini_assistant.tools.code_interpreter import CodeInterpreter
from mini_assistant.tools.file_search import FileSearch
from mini_assistant.tools.sandbox_sessions import SandboxSessions
from mini_assistant.tracing import open_traces
from mini_assistant.vector_stores import ingest_tasks
from mini_assistant.vector_stores import routes as vector_store_routes
from mini_assistant.vector_stores.indexes.segments import SegmentIndex
from mini_assistant.vector_stores.ingest_worker import IngestWorker
from mini_assistant.vector_stores.parsers.process import ParserProcesses
from mini_assistant.webhooks import routes as webhook_routes
from mini_assistant.webhooks.worker import Deliverer

if TYPE_CHECKING:
    from mini_assistant.files.blobs.s3 import S3BlobStore

log = logging.getLogger("mini_assistant")

DATABASE_FILE = "mini-assistant.sqlite3"
BLOBS_FOLDER = "blobs"
EMBEDDING_MODELS_FOLDER = "embedding-models"
_S3_MODULE = "mini_assistant.files.blobs.s3"


def all_routes(*, metrics_public: bool = False) -> list[Route]:
    """Every route of the server. metrics_public: as the setting."""
    routes = [
        *assistant_routes.ROUTES,
        *thread_routes.ROUTES,
        *run_routes.ROUTES,
        *file_routes.ROUTES,
        *upload_routes.ROUTES,
        *vector_store_routes.ROUTES,
        *webhook_routes.ROUTES,
        *model_list.ROUTES,
        *project_routes.ROUTES,
        *usage_routes.ROUTES,
        *health.ROUTES,
        *metrics_routes(public=metrics_public),
    ]
    return [*routes, openapi_route(routes)]


async def _open_embedded(settings: Settings, stack: contextlib.AsyncExitStack) -> Backends:
    """Everything in this process, which owns its database alone."""
    db = SqliteDatabase(settings.data_dir / DATABASE_FILE)
    await db.open()
    stack.push_async_callback(db.close)
    index = SegmentIndex(db, cache_bytes_max=settings.index_cache_bytes_max)
    stack.push_async_callback(index.close)
    events = LocalEventBus(
        ring_bytes_max=settings.event_ring_bytes_max,
        memory_bytes_max=settings.event_memory_bytes_max,
        retention_seconds=settings.event_retention_seconds,
    )
    return Backends(db, LocalTaskQueue(), events, index, SystemClock())


def load_cluster() -> types.ModuleType:
    """The module of the backends for many processes; see there. Raises ConfigError when its packages are not installed."""
    _check_installed("database_url", "postgres", ("asyncpg", "procrastinate", "psycopg"))
    from mini_assistant import cluster  # here, because the embedded server needs none of it, and may not have it

    return cluster


def _check_installed(setting: str, extra: str, packages: Sequence[str]) -> None:
    """Raise ConfigError when packages that a setting asks for are not here. extra: of this package, which brings them."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"'{setting}' needs packages that are not installed ({', '.join(missing)}): run `pip install \"mini-assistant[{extra}]\"`, "
            "or `make setup-scale-out` in a checkout."
        )


def build_blobs(settings: Settings) -> BlobStore:
    """Where the settings keep the bytes of files. Raises ConfigError for an address that is none, and when S3's client is not installed."""
    if not settings.blobs_url:
        return DiskBlobStore(settings.data_dir / BLOBS_FOLDER)
    _check_installed("blobs_url", "s3", ("obstore",))
    # By name, because few servers need it, and those that do not may not have its package.
    store: type[S3BlobStore] = importlib.import_module(_S3_MODULE).S3BlobStore
    return store(
        settings.blobs_url,
        endpoint_url=settings.s3_endpoint_url,
        region=settings.s3_region,
        access_key_id=settings.s3_access_key_id,
        secret_access_key=settings.s3_secret_access_key,
    )


def worker_kinds(named: str) -> Collection[TaskKind]:
    """What `workers`, or `--kinds`, names: all, runs, ingest or none. Raises ConfigError for anything else."""
    kinds: dict[str, Collection[TaskKind]] = {"all": ("run", "ingest"), "runs": ("run",), "ingest": ("ingest",), "none": ()}
    if named not in kinds:
        raise ConfigError(f"'workers' must be all, runs, ingest or none, but is '{named}'.")
    return kinds[named]


def _check_cluster(settings: Settings, kinds: Collection[TaskKind]) -> None:
    if settings.database_url and not settings.database_url.startswith(("postgresql://", "postgres://")):
        raise ConfigError("'database_url' must begin with postgresql://, as in postgresql://user:password@host/name.")
    if not settings.database_url and len(kinds) < 2:
        raise ConfigError("Without database_url nobody else can do the work of this server: 'workers' must be all.")


def build_models(settings: Settings) -> tuple[RoutedModels, BuiltinModel | None]:
    """All models, and among them the built-in one when some name leads to it."""
    providers: dict[str, ChatProvider] = {}
    builtin: BuiltinModel | None = None
    for name in provider_names(settings):
        if name == BUILTIN:
            builtin = providers[name] = BuiltinModel(settings)
        else:
            providers[name] = _endpoint(settings, name)
    return RoutedModels(settings, providers, builtin_capabilities(settings)), builtin


def _endpoint(settings: Settings, name: str) -> OpenAICompatible:
    if name == OPENAI and name not in settings.providers:
        return OpenAICompatible(name, settings.openai_base_url, api_key=settings.openai_api_key, limits=limits_of(settings, name))
    provider = settings.providers[name]
    key = settings.provider_keys.get(name, "")
    return OpenAICompatible(name, provider.base_url, api_key=key, limits=limits_of(settings, name), proxy=provider.proxy)


def build_embedder(settings: Settings) -> Embedder:
    """The embedder that the settings name. Raises ConfigError for an unknown one, or one without its address or model."""
    model = settings.embeddings_model
    match settings.embedder:
        case "builtin":
            return WordllamaEmbedder()
        case "openai":
            if not (settings.embeddings_base_url.startswith(("http://", "https://")) and model):
                raise ConfigError(
                    "embedder = openai needs embeddings_base_url, such as http://127.0.0.1:11434/v1, and embeddings_model, "
                    "such as nomic-embed-text."
                )
            limits = ProviderLimits(
                connect_timeout_seconds=settings.model_connect_timeout_seconds,
                first_token_timeout_seconds=settings.embeddings_timeout_seconds,
                retries_max=settings.model_retries_max,
            )
            return EmbeddingsEndpoint(settings.embeddings_base_url, model, api_key=settings.embeddings_api_key, limits=limits)
        case "fastembed":
            if not model:
                raise ConfigError("embedder = fastembed needs embeddings_model, such as BAAI/bge-small-en-v1.5.")
            return FastembedEmbedder(model, str(settings.data_dir / EMBEDDING_MODELS_FOLDER))
        case _:
            raise ConfigError(f"'embedder' must be builtin, openai or fastembed, but is '{settings.embedder}'.")


def build_reranker(settings: Settings) -> Reranker | None:
    """The re-ranker that the settings name; None without one. Raises ConfigError when its address is no URL."""
    if not settings.rerank_url:
        return None
    if not settings.rerank_url.startswith(("http://", "https://")):
        raise ConfigError("'rerank_url' must begin with http:// or https://, as in http://127.0.0.1:8080/rerank.")
    limits = ProviderLimits(
        connect_timeout_seconds=min(settings.model_connect_timeout_seconds, settings.rerank_timeout_seconds),
        first_token_timeout_seconds=settings.rerank_timeout_seconds,
        retries_max=settings.model_retries_max,
    )
    return RerankEndpoint(settings.rerank_url, settings.rerank_model, api_key=settings.rerank_api_key, limits=limits)


def build_sandbox(settings: Settings) -> Sandbox:
    """The sandbox that the settings name, not tried yet. Raises ConfigError for an unknown one, or one without its address."""
    if settings.sandbox in ("jupyter", "opensandbox") and not settings.sandbox_url.startswith(("http://", "https://")):
        raise ConfigError(f"sandbox = {settings.sandbox} needs sandbox_url, such as http://127.0.0.1:8888.")
    match settings.sandbox:
        case "auto":
            return AutoSandbox([ProcessSandbox(settings), WasmSandbox(settings)])
        case "process":
            return ProcessSandbox(settings)
        case "wasm":
            return WasmSandbox(settings)
        case "jupyter":
            return JupyterSandbox(settings)
        case "opensandbox":
            return OpenSandboxService(settings)
        case "unsafe":
            return UnsafeSandbox(settings)
        case "none":
            return NoSandbox("This server runs no code: its setting `sandbox` is none.")
        case _:
            raise ConfigError(f"'sandbox' must be auto, process, wasm, jupyter, opensandbox, unsafe or none, but is '{settings.sandbox}'.")


async def _try_named_sandbox(settings: Settings, sandbox: Sandbox) -> None:
    """What the settings ask for by its name works, or the server does not start. Raises SandboxUnavailable."""
    if settings.sandbox not in ("auto", "none"):
        await sandbox.check()
    if settings.sandbox == "unsafe":
        log.warning("sandbox = unsafe: code that models write runs as this user, with all that this user may do.")


@contextlib.asynccontextmanager
async def open_services(settings: Settings, kinds: Collection[TaskKind] = ("run", "ingest")) -> AsyncGenerator[Services]:
    """All parts, ready to be used. kinds: what this process works on. Raises StoreUnavailable when the database cannot be opened."""
    _check_cluster(settings, kinds)
    async with contextlib.AsyncExitStack() as stack:
        backends = await (load_cluster().open_cluster(settings, kinds, stack) if settings.database_url else _open_embedded(settings, stack))
        models, builtin = build_models(settings)
        stack.push_async_callback(models.close)
        if builtin is not None:
            warming_up = asyncio.create_task(_warm_up(builtin))
            stack.callback(warming_up.cancel)
        blobs = build_blobs(settings)
        stack.push_async_callback(blobs.close)
        parser = ParserProcesses(settings)
        stack.push_async_callback(parser.close)
        embedder = build_embedder(settings)
        stack.push_async_callback(embedder.close)
        reranker = build_reranker(settings)
        if reranker is not None:
            stack.push_async_callback(reranker.close)
        sandbox = build_sandbox(settings)
        stack.push_async_callback(sandbox.close)
        await _try_named_sandbox(settings, sandbox)
        sandbox_sessions = SandboxSessions(sandbox, settings)
        stack.push_async_callback(sandbox_sessions.close)
        services = Services(
            db=backends.db,
            queue=backends.queue,
            events=backends.events,
            models=models,
            blobs=blobs,
            parser=parser,
            embedder=embedder,
            reranker=reranker,
            index=backends.index,
            tools={"file_search": FileSearch(), "code_interpreter": CodeInterpreter(sandbox_sessions)},
            clock=backends.clock,
            settings=settings,
        )
        if not settings.database_url:
            # The database is locked to this process, so whoever held a run or a file before is gone.
            await free_all_leases(services)
            await ingest_tasks.free_all_leases(services)
        yield services


async def _warm_up(builtin: BuiltinModel) -> None:
    """Load the built-in model while nobody waits for it. A failure shows again, to the owner, in the first run."""
    try:
        await builtin.start()
    except ModelError as exc:
        log.warning("The built-in model cannot be loaded: %s", exc.message)


@contextlib.asynccontextmanager
async def running_server(settings: Settings) -> AsyncGenerator[str]:
    """The server inside this process, accepting requests; gives its address.

    Raises ConfigError when it cannot listen, or may not for want of keys, and StoreUnavailable when the database cannot be opened.
    """
    # Clients can connect as soon as the address is taken; they are answered when all is open.
    kinds = worker_kinds(settings.workers)
    with contextlib.closing(_listener(settings)) as listener:
        async with open_services(settings, kinds) as services:
            await _check_keys(services)
            routes = all_routes(metrics_public=settings.metrics_public) + (playground_routes() if settings.playground else [])
            async with _working(services, kinds) as worker, _answering(services, listener, routes) as address:
                try:
                    yield address
                finally:
                    await _drain(services, worker)


async def _check_keys(services: Services) -> None:
    """Raise ConfigError when others can reach the address and nobody would be asked for a key."""
    settings = services.settings
    if settings.is_loopback or settings.api_keys or settings.serve_without_keys or await is_any_key(services.db):
        return
    raise ConfigError(
        f"host is {settings.host}, which others can reach, but no key is set. Make one with `mini-assistant keys create --project NAME`, "
        "set MINI_ASSISTANT_API_KEYS=choose-a-long-secret, or listen on 127.0.0.1."
    )


@contextlib.asynccontextmanager
async def running_worker(settings: Settings, kinds: Collection[TaskKind], port: int | None) -> AsyncGenerator[str]:
    """A worker inside this process; gives the address of its probes, empty when `port` is None. Raises as `running_server`."""
    async with contextlib.AsyncExitStack() as stack:
        listener = None
        if port is not None:
            listener = stack.enter_context(contextlib.closing(_listener(dataclasses.replace(settings, port=port))))
        services = await stack.enter_async_context(open_services(settings, kinds))
        worker = await stack.enter_async_context(_working(services, kinds))
        probes = [*health.ROUTES, *metrics_routes(public=settings.metrics_public)]
        address = await stack.enter_async_context(_answering(services, listener, probes)) if listener else ""
        try:
            yield address
        finally:
            await _drain(services, worker)


async def _drain(services: Services, worker: Worker) -> None:
    """Ask for nothing new any more, and let the runs in progress go on for `drain_seconds`, with requests still answered."""
    services.draining.set()
    await worker.drain(services.settings.drain_seconds)


@contextlib.asynccontextmanager
async def _answering(services: Services, listener: socket.socket, routes: list[Route]) -> AsyncGenerator[str]:
    """Requests are answered; at the end open ones may go on for `shutdown_grace_seconds`. Gives the address."""
    settings = services.settings
    server = _HttpServer(_uvicorn_config(settings, Api(services, routes)))
    serving = asyncio.create_task(server.serve([listener]))
    try:
        host, port = listener.getsockname()[:2]
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        server.should_exit = True
        await asyncio.wait([serving], timeout=settings.shutdown_grace_seconds)
        services.events.close()  # streams that are still open end in order
        await serving


@contextlib.asynccontextmanager
async def _working(services: Services, kinds: Collection[TaskKind]) -> AsyncGenerator[Worker]:
    """Runs are executed, files ingested and webhooks called; at the end what is in progress is handed back, for others to go on with."""
    settings = services.settings
    traces = open_traces(settings.traces_url, sample_ratio=settings.traces_sample_ratio, tells_content=settings.traces_content)
    run_worker = Worker(services, traces)
    works = {"run": run_worker.run, "ingest": IngestWorker(services).run}
    workers = [asyncio.create_task(works[kind]()) for kind in kinds]
    if "run" in kinds:
        workers.append(asyncio.create_task(Deliverer(services).run()))
    workers.append(asyncio.create_task(watch_event_loop()))
    for worker in workers:
        worker.add_done_callback(_report_end)
    try:
        yield run_worker
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        if traces is not None:
            await traces.close()


def _report_end(worker: "asyncio.Task[None]") -> None:
    """A worker ends only when it is cancelled; anything else must not go unnoticed, for runs or files would wait for ever."""
    if not worker.cancelled() and worker.exception() is not None:
        log.critical("A worker has died. Runs or files will wait until the server is started again.", exc_info=worker.exception())


class _HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: `serve` waits for signals itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def _uvicorn_config(settings: Settings, api: Callable[..., object]) -> uvicorn.Config:
    return uvicorn.Config(
        api,  # type: ignore[arg-type]
        http=HttpConnection.with_limits(settings),
        ws="none",
        lifespan="off",
        access_log=False,
        proxy_headers=False,  # nobody here reads the client's address, so nobody needs to believe a header about it
        log_config=None,
        server_header=False,
        date_header=False,
        timeout_keep_alive=settings.idle_connection_seconds,
        # Open streams are ended after `shutdown_grace_seconds`; what is still there then is cut off.
        timeout_graceful_shutdown=int(settings.shutdown_grace_seconds) + 3,
    )


def _listener(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With the protocol named, asyncio switches the delay of small packets off; without, answers on a kept connection wait 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(2048)
    except OSError as exc:
        listener.close()
        raise ConfigError(f"The server cannot listen on {settings.host} port {settings.port}: {exc.strerror}. Try --port 8001.") from exc
    return listener


async def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Run the server until SIGINT or SIGTERM. announce: told each line that a person at the terminal should see."""
    stopping = _stop_signal()
    announce(model_line(settings))
    async with running_server(settings) as address:
        # What is here now stays until the end: the collector need not walk it again and again while requests are served.
        gc.collect()
        gc.freeze()
        announce(f"mini-assistant is ready at {address}/v1")
        if settings.playground:
            announce(f"playground: {address}/playground/")
        await stopping.wait()


async def work(settings: Settings, kinds: Collection[TaskKind], port: int | None, announce: Callable[[str], None]) -> None:
    """Run a worker until SIGINT or SIGTERM. port: where its probes are answered, None for nowhere. announce: as in `serve`.

    Raises ConfigError without `database_url`: a worker works for servers that are other processes.
    """
    if not settings.database_url:
        raise ConfigError("A worker needs database_url, as in postgresql://user:password@host/name; with SQLite the server works itself.")
    stopping = _stop_signal()
    async with running_worker(settings, kinds, port) as address:
        announce(f"The worker is ready{f', its probes at {address}/health' if address else ''}.")
        await stopping.wait()


def model_line(settings: Settings) -> str:
    """One line that says which model answers, and how to have another."""
    if provider_names(settings) == [BUILTIN]:
        return (
            "Every model name is answered by the built-in SmolLM2-135M: small, offline and often wrong. "
            "For a real model set OPENAI_BASE_URL and OPENAI_API_KEY, or write a config file (docs/settings.md)."
        )
    if not settings.providers:
        return f"Every model name is answered by {public_address(settings.openai_base_url)}."
    return f"Models are answered by: {', '.join(provider_names(settings))}."


def _stop_signal() -> asyncio.Event:
    """Set by SIGINT and SIGTERM, from now on."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told.set)
    return told
