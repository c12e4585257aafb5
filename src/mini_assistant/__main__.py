"""The command line: `serve` runs the server, `worker` works for servers that share a PostgreSQL, `migrate` brings that to the shape that
they need, `check` says whether all could run, `sandbox prepare` installs what runs code, `models probe` asks
an endpoint what it does with a model.
"""

import argparse
import asyncio
import logging
import sys
from pathlib import Path

import uvloop

from mini_assistant import __version__, app
from mini_assistant.errors import BackendError, ConfigError
from mini_assistant.settings import Settings, load_settings

_FLAGS = ("host", "port", "data_dir", "database_url")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        settings = load_settings(flags={name: getattr(options, name, None) for name in _FLAGS}, config_file=options.config)
        logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        for name in ("uvicorn", "alembic"):
            logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
        return options.run(settings, options)
    except (ConfigError, BackendError, OSError) as exc:
        print(f"mini-assistant: {exc}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mini-assistant", description="The OpenAI Assistants API v2, self-hosted.")
    parser.add_argument("--version", action="version", version=f"mini-assistant {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the server", description="Run the server until Ctrl-C.")
    serve.add_argument("--host", help="address to listen on (127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (8000); 0 takes a free one")
    serve.set_defaults(run=_serve)
    worker = commands.add_parser(
        "worker",
        help="execute runs and ingest files for servers that share a PostgreSQL",
        description="Execute runs and ingest files for servers that share a PostgreSQL, until Ctrl-C.",
    )
    worker.add_argument("--kinds", choices=("all", "runs", "ingest"), default="all", help="what to work on (all)")
    worker.add_argument("--probe-port", type=int, help="port on which GET /health and /health/live are answered (none)")
    worker.set_defaults(run=_work)
    migrate = commands.add_parser(
        "migrate",
        help="bring a PostgreSQL to the shape that this version needs",
        description="Bring the PostgreSQL of database_url to the shape that this version needs. Servers may go on meanwhile.",
    )
    migrate.add_argument("--from", dest="source", help="an embedded database to move into it, such as sqlite:data; its server is stopped")
    migrate.add_argument("--to", dest="database_url", help="the PostgreSQL, as postgresql://user:password@host/name (database_url)")
    migrate.set_defaults(run=_migrate)
    check = commands.add_parser(
        "check", help="try each part of the server", description="Try each part of the server and say what is wrong."
    )
    check.set_defaults(run=_check)
    sandbox = commands.add_parser("sandbox", help="prepare what code_interpreter runs code in")
    sandbox_commands = sandbox.add_subparsers(required=True, metavar="COMMAND")
    prepare = sandbox_commands.add_parser(
        "prepare",
        help="install the Python that code runs in",
        description="Install the Python that code runs in. process: CPython and its scientific packages, a minute. "
        "wasm: CPython for WebAssembly, compiled ahead, several minutes and 2 GB of memory.",
    )
    prepare.add_argument("environment", nargs="?", choices=("process", "wasm"), default="process", help="which (process)")
    prepare.set_defaults(run=_prepare)
    models = commands.add_parser("models", help="find out what models can do")
    models_commands = models.add_subparsers(required=True, metavar="COMMAND")
    probe = models_commands.add_parser(
        "probe",
        help="ask an endpoint what it really does with a model",
        description="Ask the endpoint that serves a model what it really does, and print a table and the lines for the config file. "
        "It is sent up to 18 short requests, which cost tokens.",
    )
    probe.add_argument("name", help="the model, as a run names it")
    probe.add_argument("--json", action="store_true", help="print one JSON object instead")
    probe.add_argument("--config", type=Path, help="config file (TOML); see docs/settings.md")
    probe.set_defaults(run=_probe)
    for command in (serve, worker, migrate, check, prepare):
        command.add_argument("--data-dir", type=Path, help="folder of the embedded database (data)")
        command.add_argument("--config", type=Path, help="config file (TOML); see docs/settings.md")
    return parser


def _serve(settings: Settings, _options: argparse.Namespace) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(app.serve(settings, _announce))
    return 0


def _work(settings: Settings, options: argparse.Namespace) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(app.work(settings, app.worker_kinds(options.kinds), options.probe_port, _announce))
    return 0


def _migrate(settings: Settings, options: argparse.Namespace) -> int:
    if options.source is None:
        _announce(app.migrate_database(settings))
    else:
        asyncio.run(app.transfer_database(settings, options.source, _announce))
    return 0


def _announce(line: str) -> None:
    print(line, flush=True)


def _check(settings: Settings, _options: argparse.Namespace) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        parts = runner.run(app.checked_parts(settings))
    for name, outcome in parts.items():
        print(f"{name}: {outcome}" if isinstance(outcome, BackendError) else f"{name}: ok ({outcome})")
    return 1 if any(isinstance(outcome, BackendError) for outcome in parts.values()) else 0


def _probe(settings: Settings, options: argparse.Namespace) -> int:
    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(app.probe_model(settings, options.name, tell))
    print(report.json() if options.json else report.text())
    return 0


def _prepare(settings: Settings, options: argparse.Namespace) -> int:
    app.prepare_sandbox(settings, options.environment, _announce)
    return 0


if __name__ == "__main__":
    sys.exit(main())
