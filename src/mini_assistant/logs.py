"""The log of a process: how a line looks, and of which request and run it speaks.

Whoever works on a request or a run says so once (`request_id`, `run_id`, `project_id`); what is logged meanwhile, by whatever part, bears
these ids. A line cannot be forged: characters that are not printable are escaped, and what belongs to the line above is indented.
"""

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

request_id: ContextVar[str] = ContextVar("request_id", default="")
run_id: ContextVar[str] = ContextVar("run_id", default="")
project_id: ContextVar[str] = ContextVar("project_id", default="")
_CONTEXT = {"request_id": request_id, "run_id": run_id, "project_id": project_id}

# Packages that say at `info` and `debug` what nobody needs, addresses with their queries among it.
_TALKATIVE = ("uvicorn", "alembic", "opentelemetry", "urllib3")
_INDENT = "    | "


def configure_logs(level: str, log_format: str) -> None:
    """Write the log to standard error from now on. level: as the setting `log_level`. log_format: `text` or `json`."""
    stream = logging.StreamHandler()
    stream.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[stream])
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
    # It warns of each form that is none, so that a client could fill the log.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)


class TextFormatter(logging.Formatter):
    """A line for people: `2026-11-25T14:51:43.123Z INFO mini_assistant.runs [run_id=run_… project_id=default] …`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and one more for each line of a traceback."""
        ids = " ".join(f"{name}={value}" for name, value in _ids().items())
        head = f"{_time(record)} {record.levelname} {record.name}"
        first = _printable(f"{head} [{ids}] {record.getMessage()}" if ids else f"{head} {record.getMessage()}")
        return "\n".join([first, *(_INDENT + _printable(line) for line in _exception_of(self, record).splitlines())])


class JsonFormatter(logging.Formatter):
    """A line for machines: one JSON object, in ASCII. Ids that are not known are left out, and `exception` where there is none."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_ids(),
        }
        exception = _exception_of(self, record)
        if exception:
            fields["exception"] = exception
        return json.dumps(fields)


def _ids() -> dict[str, str]:
    return {name: value for name, variable in _CONTEXT.items() if (value := variable.get())}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _exception_of(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The traceback of what is logged with its exception, else empty."""
    parts = [formatter.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join([char if char.isprintable() else char.encode("unicode_escape").decode() for char in text])
