"""What the commands do that run a server or work on its data: each gets the settings and its options, and returns the exit status."""

import argparse
import asyncio
import sys
from collections.abc import Callable

import uvloop

from mini_assistant import administration, app
from mini_assistant.errors import BackendError
from mini_assistant.settings import Settings

Command = Callable[[Settings, argparse.Namespace], int]


def _announce(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _note(text: str) -> None:
    """Say what is no result."""
    sys.stderr.write(text)
    sys.stderr.flush()


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


def _check(settings: Settings, _options: argparse.Namespace) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        parts = runner.run(administration.checked_parts(settings))
    for name, outcome in parts.items():
        _announce(f"{name}: {outcome}" if isinstance(outcome, BackendError) else f"{name}: ok ({outcome})")
    return 1 if any(isinstance(outcome, BackendError) for outcome in parts.values()) else 0


def _probe(settings: Settings, options: argparse.Namespace) -> int:
    def tell(line: str) -> None:
        _note(f"{line}\n")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(administration.probe_model(settings, options.name, tell))
    _announce(report.json() if options.json else report.text())
    return 0


def _create_key(settings: Settings, options: argparse.Namespace) -> int:
    made = asyncio.run(administration.create_key(settings, options.project, options.scopes, options.expires_days))
    _note(f"{made.record.id}, for the project {made.record.project_id}. The key is shown this once:\n")
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
        _note("mini-assistant: nothing was deleted.\n")
        return 1
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(administration.delete_project(settings, options.name, _announce))
    _announce(f"The project {options.name} is deleted.")
    return 0


def _is_sure(project: str) -> bool:
    """Ask a person at the terminal; nobody is there to be asked: no."""
    _note(f"This deletes all of the project {project}, for good. Type its name to go on: ")
    return sys.stdin.readline().strip() == project


def _usage(settings: Settings, options: argparse.Namespace) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(administration.usage_of_days(settings, options.project, options.days))
    _announce(report.json() if options.json else report.text())
    return 0


def _prepare(settings: Settings, options: argparse.Namespace) -> int:
    administration.prepare_sandbox(settings, options.environment, _announce)
    return 0


COMMANDS: dict[str, Command] = {
    "serve": _serve,
    "worker": _work,
    "migrate": _migrate,
    "check": _check,
    "sandbox prepare": _prepare,
    "models probe": _probe,
    "keys create": _create_key,
    "keys list": _list_keys,
    "keys revoke": _revoke_key,
    "usage": _usage,
    "projects delete": _delete_project,
    "export": _export,
    "import": _import,
}
"""By the names that the parser gives them."""
