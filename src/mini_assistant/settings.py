"""Every setting of the server: one frozen table, and the only reader of the environment and the config file.

Order of precedence: command-line flag, environment variable `MINI_ASSISTANT_<NAME>`, config file, default.
`docs/settings.md` is generated from this table (`make docs`).
"""

import dataclasses
import ipaddress
import math
import os
import sys
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from mini_assistant.errors import ConfigError
from mini_assistant.models.base import Capabilities

ENVIRONMENT_PREFIX = "MINI_ASSISTANT_"


def _setting(default: Any, help: str, *, minimum: float | None = None, maximum: float | None = None, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"help": help, "minimum": minimum, "maximum": maximum})


class ProviderSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[providers.NAME]` of the config file: an OpenAI-compatible endpoint. The key itself stays in the environment.

    concurrency_max: requests of one process at a time. runs_max: runs in progress at a time, over all workers; None: no limit.
    """

    base_url: str
    api_key_env: str | None = None
    connect_timeout_seconds: float | None = None
    first_token_timeout_seconds: float | None = None
    chunk_timeout_seconds: float | None = None
    retries_max: int | None = None
    concurrency_max: int | None = None
    runs_max: int | None = None
    proxy: str | None = None


class ProjectSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[projects.NAME]` of the config file: limits of one project; None: as the setting for all projects says. 0 is no limit."""

    requests_per_minute_max: int | None = None
    runs_per_minute_max: int | None = None
    runs_max: int | None = None
    runs_waiting_max: int | None = None
    tokens_per_day_max: int | None = None
    storage_bytes_max: int | None = None
    vector_bytes_max: int | None = None
    thread_ttl_days: int | None = None
    file_ttl_days: int | None = None


class ModelSettings(Capabilities, frozen=True, forbid_unknown_fields=True):
    """`[models."NAME"]` of the config file: where a model name is served, and what the model can do.

    provider: a `[providers.NAME]`, or `builtin`. upstream_name: the provider's own name; the same when None. fallbacks: other models of
    the config file, asked in their order when this one fails before its answer has begun.
    """

    provider: str = ""
    upstream_name: str | None = None
    fallbacks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings. Units are in the names; sizes are bytes, times seconds."""

    host: str = _setting("127.0.0.1", "Address to listen on. Anything but loopback needs keys, or `serve_without_keys`.")
    port: int = _setting(8000, "Port to listen on; 0 takes a free one.", minimum=0, maximum=65_535)
    data_dir: Path = _setting(Path("data"), "Folder of the embedded database and of the files.")
    database_url: str = _setting(
        "", "PostgreSQL, as postgresql://user:password@host/name: for many servers and workers; empty: SQLite in `data_dir`.", secret=True
    )
    database_connections_max: int = _setting(10, "Connections of one process that read PostgreSQL at a time.", minimum=1)
    database_wait_seconds: float = _setting(10.0, "Longest wait for PostgreSQL to accept a connection.", minimum=0.1)
    blobs_url: str = _setting("", "Where the bytes of files are kept, as s3://bucket/prefix; empty: a folder of `data_dir`.")
    s3_endpoint_url: str = _setting("", "Address of an S3 server that is not Amazon's, such as http://127.0.0.1:9000.")
    s3_region: str = _setting("", "Region of the bucket; empty: as the environment says (AWS_REGION), or us-east-1.")
    s3_access_key_id: str = _setting(
        "", "Key of S3; empty: as the environment (AWS_ACCESS_KEY_ID), a web identity or the machine's role say.", secret=True
    )
    s3_secret_access_key: str = _setting("", "The secret of that key.", secret=True)
    workers: str = _setting("all", "What `serve` executes itself: all, runs, ingest, or none (`mini-assistant worker` does it).")
    log_level: str = _setting("info", "One of debug, info, warning, error.")
    log_format: str = _setting("text", "How a line of the log is written: text, or json.")
    request_log: bool = _setting(False, "Log one line for each request (method, path, status, milliseconds).")
    api_keys: tuple[str, ...] = _setting(
        (),
        "Keys of the project `default` with all scopes, separated by commas, beside those of `mini-assistant keys`. "
        "Without any key none is asked for, and only loopback is served.",
        secret=True,
    )
    serve_without_keys: bool = _setting(False, "Serve everybody who can reach `host`, whatever it is, while there is no key.")
    key_cache_seconds: float = _setting(
        5.0, "How long a process believes what it has read of a key: so long a revoked one may go on.", minimum=0.0
    )
    cors_origins: tuple[str, ...] = _setting(
        (), "Web sites whose pages may call this server from a browser, such as https://app.example, separated by commas; `*`: all."
    )
    connections_max: int = _setting(10_000, "Open connections of clients to one process; further ones are closed at once.", minimum=1)
    playground: bool = _setting(True, "Show the page at `/playground/`, which calls the API with the key of whoever looks at it.")
    metrics_public: bool = _setting(False, "Answer `GET /metrics` without a key of the scope `admin`.")
    traces_url: str = _setting(
        "", "Where traces are sent, as OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces; empty: none are made."
    )
    traces_sample_ratio: float = _setting(
        1.0, "Share of the runs that are traced, of those whose caller does not say.", minimum=0.0, maximum=1.0
    )
    traces_content: bool = _setting(False, "Whether traces hold what users and models say, and what tools are given and answer.")
    strict_beta_header: bool = _setting(False, "Refuse calls without `OpenAI-Beta: assistants=v2`, as the hosted API did.")

    body_bytes_max: int = _setting(16 * 1024 * 1024, "Largest JSON body of a request; above it the answer is 413.", minimum=1024)
    head_bytes_max: int = _setting(128 * 1024, "Largest request line and headers together; above it the answer is 431.", minimum=1024)
    headers_max: int = _setting(1000, "Headers of one request; above it the answer is 431.", minimum=20)
    pipelined_requests_max: int = _setting(100, "Requests that a client may send ahead of answers; with more it is sent away.", minimum=1)
    body_timeout_seconds: float = _setting(60.0, "Longest pause while a request's body arrives.", minimum=0.1)
    body_bytes_per_second_min: int = _setting(500, "Slowest body that is taken, beside one such pause; 0: any.", minimum=0)
    idle_connection_seconds: int = _setting(
        75, "How long a connection may wait for its next request; longer than clients keep theirs, so that they end it.", minimum=1
    )
    idempotency_ttl_seconds: int = _setting(86_400, "How long an `Idempotency-Key` is remembered.", minimum=1)
    deleted_cursor_ttl_seconds: int = _setting(
        86_400, "How long a deleted object's id still works as `after` or `before` in lists.", minimum=0
    )

    run_expiry_seconds: int = _setting(600, "Time from a run's creation until it expires.", minimum=1)
    run_turns_max: int = _setting(64, "Model turns in one run; a run that wants more fails.", minimum=1)
    run_messages_max: int = _setting(10_000, "Newest messages of a thread that a run reads; older ones are not in its prompt.", minimum=1)
    run_concurrency_max: int = _setting(1000, "Runs that one process executes at a time.", minimum=1)
    project_requests_per_minute_max: int = _setting(0, "Requests of one project in a minute, over all processes; 0: no limit.", minimum=0)
    project_runs_per_minute_max: int = _setting(0, "Runs that one project may begin in a minute; 0: no limit.", minimum=0)
    project_runs_max: int = _setting(0, "Runs of one project in progress at a time, over all workers; others wait. 0: no limit.", minimum=0)
    project_runs_waiting_max: int = _setting(
        0, "Runs of one project that wait at a time; further ones are refused. 0: no limit.", minimum=0
    )
    project_tokens_per_day_max: int = _setting(
        0, "Tokens of one project in a day (UTC), of prompts and answers together; 0: no limit.", minimum=0
    )
    project_storage_bytes_max: int = _setting(0, "Files and open uploads of one project together; 0: no limit.", minimum=0)
    project_vector_bytes_max: int = _setting(0, "Vector stores of one project together, as their `usage_bytes`; 0: no limit.", minimum=0)
    thread_ttl_days: int = _setting(0, "Days after which a thread is deleted in which nothing has happened; 0: never.", minimum=0)
    file_ttl_days: int = _setting(0, "Days after which a file is deleted that does not say itself when it expires; 0: never.", minimum=0)
    usage_ttl_days: int = _setting(400, "Days for which usage is kept.", minimum=1)
    audit_ttl_days: int = _setting(400, "Days for which the audit log is kept.", minimum=1)

    webhooks_per_project_max: int = _setting(10, "Webhooks of one project.", minimum=0)
    webhook_timeout_seconds: float = _setting(15.0, "Longest wait for the answer to one call of a webhook.", minimum=0.1)
    webhook_attempts_max: int = _setting(10, "Times that an event is sent before it is given up.", minimum=1)
    webhook_retry_seconds: float = _setting(5.0, "Pause after the first call that failed; it doubles with each further one.", minimum=0.05)
    webhook_retry_seconds_max: float = _setting(3600.0, "Longest of these pauses.", minimum=0.05)
    webhook_concurrency_max: int = _setting(20, "Calls of webhooks that one process makes at a time.", minimum=1)
    claim_interval_seconds: float = _setting(
        0.5, "Pause between two looks at runs that wait although this process has places: for those that a limit holds back.", minimum=0.02
    )
    lease_seconds: float = _setting(30.0, "How long a worker owns a run without a sign of life.", minimum=0.5)
    sweep_interval_seconds: float = _setting(5.0, "Pause between two sweeps for lost, expired and waiting runs.", minimum=0.05)
    tool_timeout_seconds: float = _setting(120.0, "Longest time of one call of a hosted tool.", minimum=0.1)
    tool_calls_per_turn_max: int = _setting(128, "Tool calls in one turn of a model; a run that wants more fails.", minimum=1)
    tool_calls_parallel_max: int = _setting(8, "Calls of hosted tools that run at a time in one turn.", minimum=1)
    tool_output_bytes_max: int = _setting(
        512 * 1024, "Largest output of one tool call; a function's output above it is refused.", minimum=1024
    )
    answer_characters_max: int = _setting(
        4_000_000, "Largest answer of a model in one turn, tool arguments included; a longer one fails the run.", minimum=1000
    )
    shutdown_grace_seconds: float = _setting(10.0, "How long open requests may go on after SIGTERM.", minimum=0.0)
    drain_seconds: float = _setting(
        0.0, "How long runs in progress may go on after SIGTERM before another worker is left to go on with them.", minimum=0.0
    )

    event_ring_bytes_max: int = _setting(2 * 1024 * 1024, "Events of one run kept in memory for re-attaching.", minimum=4096)
    event_memory_bytes_max: int = _setting(
        64 * 1024 * 1024, "Events of runs that have stopped kept in memory; above it the oldest are told from the rows.", minimum=0
    )
    event_retention_seconds: float = _setting(
        300.0, "How long a run that has stopped can be re-attached to; its events are deleted later.", minimum=0.0
    )
    event_flush_interval_seconds: float = _setting(
        0.01, "Pause between two batches of events that a process tells the others through PostgreSQL.", minimum=0.0
    )
    event_poll_interval_seconds: float = _setting(
        2.0, "Pause between two looks at PostgreSQL for events whose wake-up was lost with a process or a connection.", minimum=0.05
    )
    stream_ping_interval_seconds: float = _setting(15.0, "Silence on a stream before a heart-beat is sent.", minimum=0.05)
    stream_write_timeout_seconds: float = _setting(30.0, "How long a reader of a stream may take nothing; then it is dropped.", minimum=0.1)

    openai_base_url: str = _setting(
        "", "Endpoint that serves every model name when the config file names no provider. Also read from `OPENAI_BASE_URL`."
    )
    openai_api_key: str = _setting("", "Key of that endpoint. Also read from `OPENAI_API_KEY`.", secret=True)
    model_connect_timeout_seconds: float = _setting(5.0, "Longest wait for a connection to a provider.", minimum=0.1)
    model_first_token_timeout_seconds: float = _setting(120.0, "Longest wait for the first piece of an answer.", minimum=0.1)
    model_chunk_timeout_seconds: float = _setting(60.0, "Longest silence between two pieces of an answer.", minimum=0.1)
    model_retries_max: int = _setting(2, "Further attempts at a turn whose answer has not begun.", minimum=0)
    image_bytes_max: int = _setting(20 * 1024 * 1024, "Largest image that is shown to a model.", minimum=1024)
    images_per_prompt_max: int = _setting(20, "Images of one prompt; older ones are left out, and the model is told so.", minimum=0)
    image_bytes_per_prompt_max: int = _setting(
        40 * 1024 * 1024, "All images of one prompt together; older ones are left out, and the model is told so.", minimum=1024
    )
    remote_images: str = _setting(
        "pass", "Images by address: pass (the provider fetches them), fetch (this server fetches them), or refuse."
    )
    remote_image_timeout_seconds: float = _setting(10.0, "Longest time for fetching one image.", minimum=0.1)
    private_addresses: bool = _setting(
        False, "Whether addresses that clients name (images, MCP servers, webhooks) may lead to this machine and its networks."
    )
    mcp_timeout_seconds: float = _setting(60.0, "Longest call of a tool of an MCP server.", minimum=0.1)
    mcp_connect_timeout_seconds: float = _setting(10.0, "Longest wait until an MCP server has listed its tools.", minimum=0.1)
    mcp_output_characters_max: int = _setting(100_000, "Longest output of a tool of an MCP server; the rest is cut off.", minimum=100)
    mcp_tools_max: int = _setting(128, "Tools that one MCP server may offer to a run.", minimum=1)
    builtin_context_tokens: int = _setting(2048, "Context window of the built-in model.", minimum=256)
    builtin_parallel_max: int = _setting(2, "Answers that the built-in model writes at a time.", minimum=1)
    builtin_threads: int = _setting(0, "Threads of the built-in model; 0 takes one for each core, at most 4.", minimum=0)
    builtin_start_timeout_seconds: float = _setting(60.0, "Longest wait until the built-in model is loaded.", minimum=1.0)

    file_bytes_max: int = _setting(512 * 1024 * 1024, "Largest file of `POST /files`; above it the answer is 413.", minimum=1)
    upload_bytes_max: int = _setting(8 * 1024**3, "Largest file that is uploaded in parts.", minimum=1)
    upload_part_bytes_max: int = _setting(64 * 1024 * 1024, "Largest part of an upload.", minimum=1)
    upload_expiry_seconds: int = _setting(3600, "Time from an upload's creation until it expires.", minimum=1)
    strict_file_downloads: bool = _setting(
        False, "Refuse to download files of the purposes `assistants` and `user_data`, as the hosted API did."
    )

    ingest_concurrency_max: int = _setting(2, "Files that one process ingests at a time.", minimum=1)
    ingest_attempts_max: int = _setting(3, "Times that the ingest of a file is tried before it fails.", minimum=1)
    parse_timeout_seconds: float = _setting(300.0, "Longest time to parse one file.", minimum=0.1)
    parse_memory_bytes_max: int = _setting(2 * 1024**3, "Memory that the parser of one file may take.", minimum=64 * 1024 * 1024)
    file_tokens_max: int = _setting(5_000_000, "Longest text of a file in a vector store, in tokens; a longer one fails.", minimum=1)
    vector_store_file_ids_max: int = _setting(500, "Files that a vector store can be created with.", minimum=1)
    file_batch_files_max: int = _setting(2000, "Files of one batch.", minimum=1)
    thread_store_expiry_days: int = _setting(7, "Days without a run after which a store made through a thread expires.", minimum=1)

    index_cache_bytes_max: int = _setting(512 * 1024 * 1024, "Memory for the vectors and postings of recently searched stores.", minimum=0)
    index_exact_passages_max: int = _setting(
        50_000, "Passages of a store that are searched exactly in memory; larger ones in PostgreSQL are searched with pgvector.", minimum=0
    )
    embedder: str = _setting(
        "builtin", "What makes the vectors: builtin (in the package), openai (an endpoint), or fastembed (a download)."
    )
    embeddings_base_url: str = _setting("", "Endpoint of the embedder `openai`, such as http://127.0.0.1:11434/v1.")
    embeddings_api_key: str = _setting("", "Key of that endpoint.", secret=True)
    embeddings_model: str = _setting("", "Name of the embedding model at that endpoint, or of fastembed's model.")
    embeddings_timeout_seconds: float = _setting(60.0, "Longest wait for one answer of the embeddings endpoint.", minimum=0.1)
    rerank_url: str = _setting("", "A `/rerank` endpoint as Jina and Cohere have it; empty: passages keep the order of the index.")
    rerank_api_key: str = _setting("", "Key of that endpoint.", secret=True)
    rerank_model: str = _setting("", "Name of the re-ranking model at that endpoint.")
    rerank_timeout_seconds: float = _setting(10.0, "Longest wait for the re-ranker; after it passages keep their order.", minimum=0.1)
    file_summaries: str = _setting(
        "auto", "Summaries of files: auto (by the model when a real one is configured), extractive (without a model), or off."
    )
    summary_model: str = _setting("", "Model that writes them; empty: that of the alias `*`, or the first real one of `[models]`.")
    summary_timeout_seconds: float = _setting(30.0, "Longest wait for one; after it an extract stands in.", minimum=0.1)
    file_search_tokens_max: int = _setting(16_000, "Tokens of passages that one search gives to the model.", minimum=100)
    file_search_wait_seconds: float = _setting(60.0, "How long a run waits for files of its thread that are still ingested.", minimum=0.0)

    sandbox: str = _setting(
        "auto",
        "Where code_interpreter runs code: process, wasm, jupyter, opensandbox, unsafe (no isolation at all), none, "
        "or auto (process where it works, else wasm where it is prepared, else none).",
    )
    sandbox_environments_dir: str = _setting(
        "", "Folder of what `mini-assistant sandbox prepare` installs; empty: `sandboxes` in the server's own Python environment."
    )
    sandbox_call_timeout_seconds: float = _setting(60.0, "Longest time that code runs in one call.", minimum=0.1)
    sandbox_memory_bytes_max: int = _setting(2 * 1024**3, "Memory of one session.", minimum=256 * 1024 * 1024)
    sandbox_disk_bytes_max: int = _setting(
        512 * 1024 * 1024, "Files of one session; they lie in memory where the sandbox is `process`.", minimum=1024 * 1024
    )
    sandbox_files_max: int = _setting(2000, "Files and folders of one session.", minimum=10)
    sandbox_processes_max: int = _setting(64, "Processes and threads of one session.", minimum=8)
    sandbox_log_bytes_max: int = _setting(256 * 1024, "Logs of one call that are kept.", minimum=1024)
    sandbox_image_bytes_max: int = _setting(8 * 1024 * 1024, "Largest figure that code may show.", minimum=1024)
    sandbox_images_max: int = _setting(20, "Figures of one call that are kept.", minimum=0)
    sandbox_idle_seconds: float = _setting(3600.0, "How long a thread's session is kept without a call.", minimum=1.0)
    sandbox_sessions_max: int = _setting(20, "Sessions of one process; the one that was idle longest makes room.", minimum=1)
    sandbox_pool_sessions: int = _setting(1, "Sessions kept ready, from the first run with code_interpreter on.", minimum=0)
    sandbox_output_files_max: int = _setting(20, "Files of one call that are kept as files of the project.", minimum=0)
    sandbox_url: str = _setting(
        "", "Address of the gateways of `jupyter`, several with commas or a name with several addresses; or of the server of `opensandbox`."
    )
    sandbox_token: str = _setting("", "Its token or key.", secret=True)
    sandbox_image: str = _setting("opensandbox/code-interpreter:latest", "Image of the containers of `opensandbox`.")

    providers: Mapping[str, ProviderSettings] = field(default_factory=dict[str, ProviderSettings])
    models: Mapping[str, ModelSettings] = field(default_factory=dict[str, ModelSettings])
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    projects: Mapping[str, ProjectSettings] = field(default_factory=dict[str, ProjectSettings])
    # Keys of the providers, read from the variables that `api_key_env` names.
    provider_keys: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)

    @property
    def sandbox_environments(self) -> Path:
        """The folder that `sandbox_environments_dir` names."""
        return Path(self.sandbox_environments_dir or Path(sys.prefix) / "sandboxes").absolute()

    def project_limit(self, project_id: str, name: str) -> int:
        """A limit of a project by the name of its field in `[projects.NAME]`; what holds for all when it has none of its own."""
        own = self.projects.get(project_id)
        value = None if own is None else getattr(own, name)
        return getattr(self, name if name.endswith("ttl_days") else f"project_{name}") if value is None else value

    @property
    def is_loopback(self) -> bool:
        """Whether `host` can be reached from this machine only."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


# How a type is called, and what it may be made of. A variable is always text.
_KINDS: dict[type, tuple[str, Any]] = {
    int: ("a whole number", int | str),
    float: ("a number", float | int | str),
    str: ("a text", str),
    Path: ("a path", str | Path),
}
_TABLES = {"providers": ProviderSettings, "models": ModelSettings, "aliases": str, "projects": ProjectSettings}
_NOT_DESCRIBED = {*_TABLES, "provider_keys"}


def described_settings() -> list[dataclasses.Field[Any]]:
    """The settings that have a flag-like name, in the order of the table; the config file's tables are left out."""
    return [item for item in dataclasses.fields(Settings) if item.name not in _NOT_DESCRIBED]


def load_settings(
    *,
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    config_file: Path | None = None,
) -> Settings:
    """Put the settings together.

    flags: values from the command line, None meaning not given. environment: `os.environ` when None.
    Raises ConfigError for an unknown name, a wrong type, a value out of range or an unreadable file.
    """
    environment = os.environ if environment is None else environment
    config_file = config_file or _path_or_none(environment.get(ENVIRONMENT_PREFIX + "CONFIG"))
    values: dict[str, Any] = {}
    if config_file is not None:
        values.update(_without_secrets(_read_config_file(config_file)))
    values.update(_read_environment(environment))
    values.update({name: value for name, value in (flags or {}).items() if value is not None})

    parsed = {name: _parse(name, value) for name, value in values.items()}
    providers: Mapping[str, ProviderSettings] = parsed.get("providers", {})
    settings = Settings(**parsed, provider_keys=_provider_keys(providers, environment))
    _check_references(settings)
    return settings


def _provider_keys(providers: Mapping[str, ProviderSettings], environment: Mapping[str, str]) -> dict[str, str]:
    keys: dict[str, str] = {}
    for name, provider in providers.items():
        if provider.api_key_env is not None:
            key = _secret_of(environment, provider.api_key_env)
            if not key:
                raise ConfigError(f"[providers.{name}] takes its key from the variable {provider.api_key_env}, which is not set.")
            keys[name] = key
    return keys


def _secret_of(environment: Mapping[str, str], variable: str) -> str | None:
    """A secret: the text of a variable, or what lies in the file that its neighbour with `_FILE` at the end names."""
    file = environment.get(variable + "_FILE")
    if not file:
        return environment.get(variable)
    if environment.get(variable):
        raise ConfigError(f"{variable} and {variable}_FILE are both set; which of them counts?")
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise ConfigError(f"The file that {variable}_FILE names cannot be read: {reason}.") from None


def secret_names() -> list[str]:
    """The settings that are never shown, and that the config file may not hold."""
    return [item.name for item in described_settings() if not item.repr]


def _without_secrets(values: dict[str, Any]) -> dict[str, Any]:
    for name in secret_names():
        if name in values:
            variable = ENVIRONMENT_PREFIX + name.upper()
            raise ConfigError(
                f"'{name}' is a secret, which a config file may not hold: "
                f"set {variable}, or {variable}_FILE with the path of a file that holds nothing else."
            )
    return values


def _path_or_none(text: str | None) -> Path | None:
    return Path(text) if text else None


def _read_config_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"The config file {path} cannot be read: {exc.strerror}.") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"The config file {path} is not valid TOML: {exc}.") from exc


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, variable in (("openai_base_url", "OPENAI_BASE_URL"), ("openai_api_key", "OPENAI_API_KEY")):
        if environment.get(variable):
            values[name] = environment[variable]
    known = {item.name for item in described_settings()}
    secret_files = {f"{ENVIRONMENT_PREFIX}{name.upper()}_FILE": name for name in secret_names()}
    for variable, text in environment.items():
        if variable in secret_files:
            values[secret_files[variable]] = _secret_of(environment, variable.removesuffix("_FILE"))
            continue
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable == ENVIRONMENT_PREFIX + "CONFIG":
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if name not in known:
            raise ConfigError(f"{variable} is not a setting. See docs/settings.md for the names.")
        values[name] = text
    return values


def _parse(name: str, value: Any) -> Any:
    """Turn a flag, a variable's text or a TOML value into the setting's type."""
    if name in _TABLES:
        return _parse_table(name, value)
    fields = {item.name: item for item in described_settings()}
    if name not in fields:
        raise ConfigError(f"'{name}' is not a setting. See docs/settings.md for the names.")
    wanted = typing.get_type_hints(Settings)[name]
    parsed = _parse_value(name, value, wanted)
    minimum, maximum = fields[name].metadata["minimum"], fields[name].metadata["maximum"]
    if minimum is not None and parsed < minimum:
        raise ConfigError(f"'{name}' must be at least {minimum}, but is {parsed}.")
    if maximum is not None and parsed > maximum:
        raise ConfigError(f"'{name}' must be at most {maximum}, but is {parsed}.")
    if name == "log_level" and parsed not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"'log_level' must be debug, info, warning or error, but is '{parsed}'.")
    if name == "log_format" and parsed not in ("text", "json"):
        raise ConfigError(f"'log_format' must be text or json, but is '{parsed}'.")
    return parsed


def _parse_value(name: str, value: Any, wanted: Any) -> Any:
    if isinstance(wanted, types.GenericAlias):  # the only collection: a tuple of texts
        return _parse_texts(name, value)
    if wanted is bool:
        spelled = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        answer = value if isinstance(value, bool) else spelled.get(str(value).lower())
        if answer is None:
            raise ConfigError(f"'{name}' must be true or false, but is '{value}'.")
        return answer
    noun, accepted = _KINDS[wanted]
    if isinstance(value, bool) or not isinstance(value, accepted):
        raise ConfigError(f"'{name}' must be {noun}.")  # without the value, which may be a secret
    try:
        parsed = wanted(value)
    except ValueError:
        parsed = None
    if parsed is None or (isinstance(parsed, float) and not math.isfinite(parsed)):
        raise ConfigError(f"'{name}' must be {noun}, but is '{value}'.")
    return parsed


def _parse_texts(name: str, value: Any) -> tuple[str, ...]:
    try:
        items = value.split(",") if isinstance(value, str) else msgspec.convert(value, list[str])
    except msgspec.ValidationError:
        raise ConfigError(f"'{name}' must be texts separated by commas, or an array of texts in the config file.") from None
    return tuple(item.strip() for item in items if item.strip())


def _parse_table(name: str, value: Any) -> dict[str, Any]:
    try:
        return msgspec.convert(value, dict[str, _TABLES[name]])
    except msgspec.ValidationError as exc:
        raise ConfigError(f"The table [{name}] of the config file is wrong: {exc}.") from exc


def _check_references(settings: Settings) -> None:
    for name, model in settings.models.items():
        if model.provider not in settings.providers and model.provider != "builtin":
            known = ", ".join(["builtin", *settings.providers])
            raise ConfigError(f"[models.\"{name}\"] names the provider '{model.provider}'; known are: {known}.")
        for fallback in model.fallbacks:
            if fallback not in settings.models:
                raise ConfigError(f'[models."{name}"] falls back to \'{fallback}\', which has no [models."{fallback}"] table.')
    for name, provider in settings.providers.items():
        if provider.proxy is not None and not provider.proxy.startswith(("http://", "https://")):
            raise ConfigError(f"[providers.{name}] proxy must begin with http:// or https://.")
        if not provider.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"[providers.{name}] base_url must begin with http:// or https://.")
    if settings.remote_images not in ("pass", "fetch", "refuse"):
        raise ConfigError(f"'remote_images' must be pass, fetch or refuse, but is '{settings.remote_images}'.")
    if settings.openai_base_url and not settings.openai_base_url.startswith(("http://", "https://")):
        raise ConfigError("'openai_base_url' must begin with http:// or https://, as in http://127.0.0.1:11434/v1.")
    for alias, target in settings.aliases.items():
        if target not in settings.models:
            raise ConfigError(f'[aliases] "{alias}" points to \'{target}\', which has no [models."{target}"] table.')
    for name, project in settings.projects.items():
        if any(value is not None and value < 0 for value in msgspec.structs.astuple(project)):
            raise ConfigError(f"The limits of [projects.{name}] must be at least 0.")


def settings_page() -> str:
    """The text of `docs/settings.md`."""
    lines = [
        "# Settings",
        "",
        "Each setting can be given as an environment variable or in the config file (TOML); the main ones are flags too.",
        "A flag wins over the environment, the environment over the config file. This page is generated by `make docs`.",
        "",
        "| config file | environment | default | what it does |",
        "|---|---|---|---|",
    ]
    for item in described_settings():
        default = item.default if item.default not in ("", ()) else "empty"
        if isinstance(default, bool):
            default = str(default).lower()
        variable = ENVIRONMENT_PREFIX + item.name.upper()
        lines.append(f"| `{item.name}` | `{variable}` | {default} | {item.metadata['help']} |")
    lines += [
        "",
        "Secrets are refused in the config file: " + ", ".join(f"`{name}`" for name in secret_names()) + ". Each of their variables, and",
    ]
    lines += [
        "those that `api_key_env` names, may have `_FILE` at its end instead: then it names a file that holds the secret and nothing else."
    ]
    lines += ["", _TABLES_HELP.strip(), ""]
    return "\n".join(lines)


_TABLES_HELP = """
## Providers, models and aliases

Only in the config file. A provider is an OpenAI-compatible endpoint; its key stays in the environment.

```toml
[providers.local]
base_url = "http://127.0.0.1:11434/v1"
# api_key_env = "LOCAL_KEY"             the variable that holds the key
# connect_timeout_seconds, first_token_timeout_seconds, chunk_timeout_seconds, retries_max: instead of the settings above
# concurrency_max = 8                   answers at a time; who waits is served in turn by project
# proxy = "http://127.0.0.1:3128"       the HTTP proxy that leads there

[models."llama3.1"]
provider = "local"                      # or "builtin"
# upstream_name = "llama3.1:8b"         the provider's own name
context_window_tokens = 8192            # prompts are cut to fit; unknown when absent
# completion_tokens_max = 1024          the longest answer that may be asked for
# tools, tool_choice, parallel_tool_calls, images, json_schema, json_object, reasoning_effort, temperature,
# stream_usage = false                  what the model cannot do (default: everything); a model without tools gets them all the same
# max_tokens_parameter = "max_tokens"   the name under which the endpoint takes the limit of an answer
# system_role = "developer"             the role of instructions; "user" for models that know no other
# think_tags = "opened"                 answers begin within <think>; false: <think> is a word like any other
# fallbacks = ["other"]                 asked in this order when this model fails before its answer has begun

[aliases]
"gpt-4o" = "llama3.1"
"gpt-*" = "llama3.1"                    # `*` at the end matches the rest; the longest match wins
"*" = "llama3.1"
```

## Projects

Only in the config file: what holds for one project instead of the settings `project_…`, `thread_ttl_days` and `file_ttl_days`. 0: no limit.

```toml
[projects.team-a]
requests_per_minute_max = 600
runs_per_minute_max = 60
runs_max = 20                           # in progress at a time; others wait
runs_waiting_max = 1000
tokens_per_day_max = 2000000
storage_bytes_max = 10737418240
vector_bytes_max = 1073741824
thread_ttl_days = 60
file_ttl_days = 0
```

## Without a provider

Without any provider, `OPENAI_BASE_URL` (and `OPENAI_API_KEY`) serve every model name; without them the built-in model does.
"""
