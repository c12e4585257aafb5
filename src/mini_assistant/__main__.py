"""The command line: `serve` runs the server, `worker` works for servers that share a PostgreSQL, `migrate` brings that to the shape that
they need, `check` says whether all could run, `sandbox prepare` installs what runs code, `models probe` asks
an endpoint what it does with a model, `keys` makes, lists and revokes the keys of clients, `usage`
prints what projects have used.
"""

import argparse
import asyncio
import sys
from pathlib import Path

import uvloop

from mini_assistant import __version__, administration, app
from mini_assistant.errors import BackendError, ConfigError
from mini_assistant.logs import configure_logs
from mini_assistant.settings import Settings, load_settings

_FLAGS = ("host", "port", "data_dir", "database_url")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        settings = load_settings(flags={name: getattr(options, name, None) for name in _FLAGS}, config_file=options.config)
        configure_logs(settings.log_level, settings.log_format)
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
    keys = commands.add_parser("keys", help="make, list and revoke the keys of clients")
    usage = commands.add_parser("usage", help="print what projects have used, by day")
    _add_usage(usage)
    projects = commands.add_parser("projects", help="delete a project with all that is in it")
    writing = commands.add_parser("export", help="write a project to one file")
    reading = commands.add_parser("import", help="bring a project from such a file")
    archives = _add_archives(writing, reading)
    for command in (serve, worker, migrate, check, prepare, usage, *_add_keys(keys), *archives, *_add_projects(projects)):
        command.add_argument("--data-dir", type=Path, help="folder of the embedded database (data)")
        command.add_argument("--config", type=Path, help="config file (TOML); see docs/settings.md")
    return parser


def _add_archives(writing: argparse.ArgumentParser, reading: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    writing.description = (
        "Write all of a project to one file, beside a running server: assistants, threads, files, vector stores, webhooks. "
        "Keys, usage and the audit log are not in it. Whoever has the file has all that is in the project."
    )
    writing.add_argument("file", type=Path, metavar="FILE", help="the file, which is not there yet")
    writing.add_argument("--project", metavar="NAME", default="default", help="which (default)")
    writing.set_defaults(run=_export)
    reading.description = (
        "Bring a project from a file that `export` wrote: all of it or, after an error, nothing. "
        "An embedded server must be stopped; a cluster may go on."
    )
    reading.add_argument("file", type=Path, metavar="FILE", help="the file")
    reading.add_argument("--project", metavar="NAME", help="the name of the project here (as it was)")
    reading.set_defaults(run=_import)
    return [writing, reading]


def _add_projects(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    deleting = commands.add_parser(
        "delete",
        help="delete a project with all that is in it",
        description="Delete a project for good: assistants, threads, files and their bytes, vector stores, webhooks. Its keys are revoked. "
        "What it has used and its lines of the audit log stay. Servers may go on meanwhile.",
    )
    deleting.add_argument("name", metavar="NAME", help="the project")
    deleting.add_argument("--yes", action="store_true", help="do not ask")
    deleting.set_defaults(run=_delete_project)
    return [deleting]


def _add_usage(parser: argparse.ArgumentParser) -> None:
    parser.description = "Print what projects have used, by day (UTC): tokens, runs, tool calls, seconds of code, and bytes stored."
    parser.add_argument("--project", metavar="NAME", help="only of this project (all)")
    parser.add_argument("--days", type=_count, default=30, metavar="N", help="of the last N days, today included (30)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(run=_usage)


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return count


def _add_keys(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The commands of `keys`."""
    keys = parser.add_subparsers(required=True, metavar="COMMAND")
    create = keys.add_parser(
        "create",
        help="make a key for a project",
        description="Make a key for a project and print it, once: it is not kept. A project is there as soon as it has a key.",
    )
    create.add_argument("--project", required=True, metavar="NAME", help="the project: small letters, digits, '-' and '_'")
    create.add_argument("--scopes", default="read,write", help="some of read,write,admin (read,write); write does not include read")
    create.add_argument("--expires-days", type=int, metavar="N", help="days after which it is refused (never)")
    create.set_defaults(run=_create_key)
    listing = keys.add_parser("list", help="list keys, without what is secret", description="List keys, without what is secret.")
    listing.add_argument("--project", metavar="NAME", help="only of this project (all)")
    listing.set_defaults(run=_list_keys)
    revoke = keys.add_parser(
        "revoke", help="refuse a key from now on", description="Refuse a key from now on; servers notice within key_cache_seconds."
    )
    revoke.add_argument("id", help="the key's id, as `keys list` prints it")
    revoke.set_defaults(run=_revoke_key)
    return [create, listing, revoke]


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
        _announce(administration.migrate_database(settings))
    else:
        asyncio.run(administration.transfer_database(settings, options.source, _announce))
    return 0


def _announce(line: str) -> None:
    print(line, flush=True)


def _check(settings: Settings, _options: argparse.Namespace) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        parts = runner.run(administration.checked_parts(settings))
    for name, outcome in parts.items():
        print(f"{name}: {outcome}" if isinstance(outcome, BackendError) else f"{name}: ok ({outcome})")
    return 1 if any(isinstance(outcome, BackendError) for outcome in parts.values()) else 0


def _probe(settings: Settings, options: argparse.Namespace) -> int:
    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(administration.probe_model(settings, options.name, tell))
    print(report.json() if options.json else report.text())
    return 0


def _create_key(settings: Settings, options: argparse.Namespace) -> int:
    made = asyncio.run(administration.create_key(settings, options.project, options.scopes, options.expires_days))
    print(f"{made.record.id}, for the project {made.record.project_id}. The key is shown this once:", file=sys.stderr, flush=True)
    _announce(made.key)
    return 0


def _list_keys(settings: Settings, options: argparse.Namespace) -> int:
    for line in asyncio.run(administration.list_keys(settings, options.project)):
        _announce(line)
    return 0


def _revoke_key(settings: Settings, options: argparse.Namespace) -> int:
    record = asyncio.run(administration.revoke_key(settings, options.id))
    _announce(f"The key {record.id} of the project {record.project_id} is revoked.")
    return 0


def _export(settings: Settings, options: argparse.Namespace) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(administration.write_archive(settings, options.project, options.file, _announce))
    _announce(f"The project {options.project} is in {options.file}.")
    return 0


def _import(settings: Settings, options: argparse.Namespace) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(administration.read_archive(settings, options.file, options.project, _announce))
    _announce(f"{options.file} is imported.")
    return 0


def _delete_project(settings: Settings, options: argparse.Namespace) -> int:
    if not options.yes and not _is_sure(options.name):
        print("mini-assistant: nothing was deleted.", file=sys.stderr)
        return 1
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(administration.delete_project(settings, options.name, _announce))
    _announce(f"The project {options.name} is deleted.")
    return 0


def _is_sure(project: str) -> bool:
    """Ask a person at the terminal; nobody is there to be asked: no."""
    print(f"This deletes all of the project {project}, for good. Type its name to go on: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip() == project


def _usage(settings: Settings, options: argparse.Namespace) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(administration.usage_of_days(settings, options.project, options.days))
    print(report.json() if options.json else report.text())
    return 0


def _prepare(settings: Settings, options: argparse.Namespace) -> int:
    administration.prepare_sandbox(settings, options.environment, _announce)
    return 0


if __name__ == "__main__":
    sys.exit(main())
