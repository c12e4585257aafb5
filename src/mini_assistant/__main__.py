"""The command line: `serve` runs the server, `chat` and `ingest` are clients of one, and the others keep its data in order.

What can be typed is in `command_line/parser.py`.
"""

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mini_assistant.command_line import client_commands
from mini_assistant.command_line.parser import OVERVIEW, command_parser, overview
from mini_assistant.errors import BackendError, ConfigError
from mini_assistant.logs import configure_logs
from mini_assistant.settings import load_settings

if TYPE_CHECKING:
    from mini_assistant.command_line.server_commands import Command

_FLAGS = ("host", "port", "data_dir", "database_url")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    options = command_parser().parse_args(arguments)
    try:
        return _run(options)
    except (ConfigError, BackendError, OSError) as exc:
        print(f"mini-assistant: {exc}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    if options.command == OVERVIEW:
        print(overview(), end="")
        return 0
    if options.command in client_commands.COMMANDS:
        return client_commands.COMMANDS[options.command](options)
    settings = load_settings(flags={name: getattr(options, name, None) for name in _FLAGS}, config_file=options.config)
    configure_logs(settings.log_level, settings.log_format)
    return _server_commands()[options.command](settings, options)


def _server_commands() -> "Mapping[str, Command]":
    from mini_assistant.command_line import server_commands

    return server_commands.COMMANDS


if __name__ == "__main__":
    sys.exit(main())
