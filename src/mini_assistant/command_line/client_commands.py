"""What the commands do that are clients of a running server: each gets its options, and returns the exit status."""

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from typing import TextIO

from mini_assistant.terminal import INTERRUPTED
from mini_assistant.terminal.chat import Chat, answer_once
from mini_assistant.terminal.client import Client, Target
from mini_assistant.terminal.conversation import ChatOptions
from mini_assistant.terminal.folder_files import find_files, parsed_attributes
from mini_assistant.terminal.ingest import Ingest, IngestOptions
from mini_assistant.terminal.screen import Screen

with contextlib.suppress(ImportError):  # not every Python has it: then a line is typed without history
    import readline  # noqa: F401  # pyright: ignore[reportUnusedImport]

Command = Callable[[argparse.Namespace], int]


def _chat(options: argparse.Namespace) -> int:
    chat = ChatOptions(options.assistant or "", options.model or "", options.thread or "")
    client = Client(_target(options), keeps_connections=False)
    if sys.stdin.isatty() and sys.stdout.isatty():
        return Chat(client, chat, _screen(sys.stdout), input).converse(options.file)
    question = sys.stdin.buffer.read().decode("utf-8", "replace")
    return answer_once(client, chat, question, options.file, _screen(sys.stdout), _screen(sys.stderr))


def _ingest(options: argparse.Namespace) -> int:
    ingest = IngestOptions(options.store, parsed_attributes(options.attributes), options.replace, options.parallel)
    found = find_files(options.folder, options.glob)
    client = Client(_target(options), keeps_connections=True)
    return asyncio.run(Ingest(client, ingest, found, _screen(sys.stdout)).run())


def _target(options: argparse.Namespace) -> Target:
    return Target(options.url, os.environ.get(options.key_env, ""), options.key_env)


def _screen(out: TextIO) -> Screen:
    is_terminal = out.isatty() and os.environ.get("TERM") != "dumb"
    return Screen(out, is_terminal=is_terminal, has_colours=is_terminal and not os.environ.get("NO_COLOR"))


def _interruptible(command: Command) -> Command:
    """The command, ended by Ctrl-C without a traceback wherever it comes."""

    def run(options: argparse.Namespace) -> int:
        try:
            return command(options)
        except (KeyboardInterrupt, asyncio.CancelledError):
            return INTERRUPTED

    return run


COMMANDS: dict[str, Command] = {"chat": _interruptible(_chat), "ingest": _interruptible(_ingest)}
"""By the names that the parser gives them."""
