"""What can be typed after `mini-assistant`: every command with its options, and a sentence on each.

A command is known by the name in its `command`; what it does is in `server_commands.py` and `client_commands.py`. Nothing of the server is
imported here, so that help comes at once.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mini_assistant import __version__

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # pyright: ignore[reportPrivateUsage]

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
OVERVIEW = "overview"
"""The command of a line without one."""

EXAMPLES = """\
  mini-assistant serve                                   the server, on http://127.0.0.1:8000/v1
  mini-assistant check                                   try each part of it, and say what is wrong
  mini-assistant chat                                    talk to an assistant, in a second terminal
  mini-assistant chat --file report.pdf                  about a file, with citations
  echo "What is 17 * 23?" | mini-assistant chat          one answer, on standard output
  mini-assistant ingest manuals --store manuals          make the files of a folder searchable
"""


def overview() -> str:
    """What is printed when no command is given."""
    return (
        f"mini-assistant {__version__}: the OpenAI Assistants API v2, self-hosted.\n\n{EXAMPLES}\n"
        "`mini-assistant --help` lists all commands, and `mini-assistant COMMAND --help` says what one takes.\n"
    )


def command_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="mini-assistant",
        description="The OpenAI Assistants API v2, self-hosted.",
        epilog=f"examples:\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mini-assistant {__version__}", help="print the version and leave")
    parser.set_defaults(command=OVERVIEW)
    commands = parser.add_subparsers(metavar="COMMAND")
    of_servers = [
        _serve(commands),
        _worker(commands),
        _migrate(commands),
        _check(commands),
        _sandbox_prepare(commands),
        _models_probe(commands),
        *_keys(commands),
        _usage(commands),
        _projects_delete(commands),
        _export(commands),
        _import(commands),
    ]
    for command in of_servers:
        command.add_argument("--data-dir", type=Path, metavar="DIR", help="folder of the embedded database (data)")
        command.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help="config file, TOML; see docs/settings.md (what MINI_ASSISTANT_CONFIG names, or none)",
        )
    for command in (_chat(commands), _ingest(commands)):
        command.add_argument("--url", default=DEFAULT_URL, help=f"address of the server ({DEFAULT_URL})")
        command.add_argument(
            "--key-env",
            default=DEFAULT_KEY_VARIABLE,
            metavar="NAME",
            help=f"environment variable that holds the key; a server without keys needs none ({DEFAULT_KEY_VARIABLE})",
        )
    return parser


# ---- the server -----------------------------------------------------------------------------------------------------------------------


def _serve(commands: "Commands") -> argparse.ArgumentParser:
    parser = commands.add_parser("serve", help="run the server", description="Run the server until Ctrl-C.")
    parser.add_argument("--host", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on; 0 takes a free one (8000)")
    parser.set_defaults(command="serve")
    return parser


def _worker(commands: "Commands") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "worker",
        help="execute runs and ingest files for servers that share a PostgreSQL",
        description="Execute runs and ingest files for servers that share a PostgreSQL, until Ctrl-C.",
    )
    parser.add_argument("--kinds", choices=("all", "runs", "ingest"), default="all", help="what to work on (all)")
    parser.add_argument("--probe-port", type=int, metavar="PORT", help="port on which GET /health and /health/live are answered (none)")
    parser.set_defaults(command="worker")
    return parser


def _migrate(commands: "Commands") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "migrate",
        help="bring a PostgreSQL to the shape that this version needs",
        description="Bring the PostgreSQL of database_url to the shape that this version needs. Servers may go on meanwhile.",
    )
    parser.add_argument(
        "--from",
        dest="source",
        metavar="URL",
        help="an embedded database to move into it, such as sqlite:data; its server is stopped (none)",
    )
    parser.add_argument(
        "--to",
        dest="database_url",
        metavar="URL",
        help="the PostgreSQL, as postgresql://user:password@host/name (the setting database_url)",
    )
    parser.set_defaults(command="migrate")
    return parser


def _check(commands: "Commands") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "check", help="try each part of the server", description="Try each part of the server and say what is wrong."
    )
    parser.set_defaults(command="check")
    return parser


def _sandbox_prepare(commands: "Commands") -> argparse.ArgumentParser:
    group = commands.add_parser(
        "sandbox", help="prepare what code_interpreter runs code in", description="Prepare what code_interpreter runs code in."
    )
    parser = group.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "prepare",
        help="install the Python that code runs in",
        description="Install the Python that code runs in. process: CPython and its scientific packages, a minute. "
        "wasm: CPython for WebAssembly, compiled ahead, several minutes and 2 GB of memory.",
    )
    parser.add_argument("environment", nargs="?", choices=("process", "wasm"), default="process", help="which (process)")
    parser.set_defaults(command="sandbox prepare")
    return parser


def _models_probe(commands: "Commands") -> argparse.ArgumentParser:
    group = commands.add_parser("models", help="find out what models can do", description="Find out what models can do.")
    parser = group.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "probe",
        help="ask an endpoint what it really does with a model",
        description="Ask the endpoint that serves a model what it really does, and print a table and the lines for the config file. "
        "It is sent up to 18 short requests, which cost tokens.",
    )
    parser.add_argument("name", metavar="NAME", help="the model, as a run names it")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(command="models probe")
    return parser


# ---- projects -------------------------------------------------------------------------------------------------------------------------


def _keys(commands: "Commands") -> list[argparse.ArgumentParser]:
    group = commands.add_parser(
        "keys", help="make, list and revoke the keys of clients", description="Make, list and revoke the keys of clients."
    )
    keys = group.add_subparsers(required=True, metavar="COMMAND")
    create = keys.add_parser(
        "create",
        help="make a key for a project",
        description="Make a key for a project and print it, once: it is not kept. A project is there as soon as it has a key.",
    )
    create.add_argument("--project", required=True, metavar="NAME", help="the project: small letters, digits, '-' and '_'")
    create.add_argument("--scopes", default="read,write", help="some of read,write,admin; write does not include read (read,write)")
    create.add_argument("--expires-days", type=int, metavar="DAYS", help="days after which it is refused (never)")
    create.set_defaults(command="keys create")
    listing = keys.add_parser("list", help="list keys, without what is secret", description="List keys, without what is secret.")
    listing.add_argument("--project", metavar="NAME", help="only of this project (all)")
    listing.set_defaults(command="keys list")
    revoke = keys.add_parser(
        "revoke", help="refuse a key from now on", description="Refuse a key from now on; servers notice within key_cache_seconds."
    )
    revoke.add_argument("id", metavar="ID", help="the key's id, as `keys list` prints it")
    revoke.set_defaults(command="keys revoke")
    return [create, listing, revoke]


def _usage(commands: "Commands") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "usage",
        help="print what projects have used, by day",
        description="Print what projects have used, by day (UTC): tokens, runs, tool calls, seconds of code, and bytes stored.",
    )
    parser.add_argument("--project", metavar="NAME", help="only of this project (all)")
    parser.add_argument("--days", type=_count, default=30, metavar="DAYS", help="of the last days, today included (30)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(command="usage")
    return parser


def _projects_delete(commands: "Commands") -> argparse.ArgumentParser:
    group = commands.add_parser(
        "projects", help="delete a project with all that is in it", description="Delete a project with all that is in it."
    )
    parser = group.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "delete",
        help="delete a project with all that is in it",
        description="Delete a project for good: assistants, threads, files and their bytes, vector stores, webhooks. Its keys are revoked. "
        "What it has used and its lines of the audit log stay. Servers may go on meanwhile.",
    )
    parser.add_argument("name", metavar="NAME", help="the project")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.set_defaults(command="projects delete")
    return parser


def _export(commands: "Commands") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "export",
        help="write a project to one file",
        description="Write all of a project to one file, beside a running server: assistants, threads, files, vector stores, webhooks. "
        "Keys, usage and the audit log are not in it. Whoever has the file has all that is in the project.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the file, which is not there yet")
    parser.add_argument("--project", metavar="NAME", default="default", help="which (default)")
    parser.set_defaults(command="export")
    return parser


def _import(commands: "Commands") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "import",
        help="bring a project from such a file",
        description="Bring a project from a file that `export` wrote: all of it or, after an error, nothing. "
        "An embedded server must be stopped; a cluster may go on.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the file")
    parser.add_argument("--project", metavar="NAME", help="the name of the project here (as it was)")
    parser.set_defaults(command="import")
    return parser


# ---- clients --------------------------------------------------------------------------------------------------------------------------


def _chat(commands: "Commands") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "chat",
        help="talk to an assistant in the terminal",
        description="Talk to an assistant of a running server: answers as they are written, its tools at work, sources below. "
        "With something on standard input it answers that and leaves: 0 when the run has completed, 1 when not, 130 after Ctrl-C.",
    )
    parser.add_argument("--assistant", metavar="ID", help="who answers (the thread's last one, or one that can search files and run code)")
    parser.add_argument("--model", metavar="NAME", help="the model (the assistant's, or the first that the server lists)")
    parser.add_argument(
        "--file", type=Path, action="append", default=[], metavar="FILE", help="goes with the first question; may be repeated (none)"
    )
    parser.add_argument("--thread", metavar="ID", help="the conversation to go on with (a new one)")
    parser.set_defaults(command="chat")
    return parser


def _ingest(commands: "Commands") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "ingest",
        help="make the files of a folder searchable",
        description="Upload the files of a folder to a running server and add them to a vector store. What is there already, with the same "
        "path and content, is left alone, so that the command may be repeated. Exit status 1 when a file failed, 130 after Ctrl-C.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder, with the folders in it")
    parser.add_argument("--store", required=True, metavar="NAME", help="name or id of the vector store; a new name makes one")
    parser.add_argument(
        "--glob",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only these files, such as '**/*.pdf'; may be repeated (all that can be searched, without hidden ones)",
    )
    parser.add_argument(
        "--attributes",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for filters of searches; numbers, true and false are such, text may be quoted; may be repeated (path alone)",
    )
    parser.add_argument("--replace", action="store_true", help="take out the earlier version of a file that has changed")
    parser.add_argument("--parallel", type=_count, default=4, metavar="FILES", help="files at the same time (4)")
    parser.set_defaults(command="ingest")
    return parser


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return count
