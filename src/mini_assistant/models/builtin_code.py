"""How the built-in model uses code_interpreter: for plain arithmetic, for plots, and to look at files when it is told to.

It is too small to write code. So a calculation is read by a grammar (`builtin_arithmetic.py`) and made in the sandbox, a plot is drawn by a
fixed program (`builtin_plot.py`), and whoever demands a call gets one that says what files there are. The answer is what the program
printed, or why there is nothing. Pure; `builtin.py` asks here first.
"""

import re
from collections.abc import Sequence

import msgspec

from mini_assistant.models.base import ChatDelta, ChatMessage, ChatRequest, Finished, NamedTool, TextDelta, ToolCallDelta
from mini_assistant.models.builtin_arithmetic import calculation_or_none
from mini_assistant.models.builtin_plot import PLOT_TABLE, is_for_a_plot, plot_answer
from mini_assistant.models.builtin_quotes import FILE_SEARCH, last_user_text

CODE_INTERPRETER = "code_interpreter"

_QUOTED_CHARACTERS_MAX = 4000
_REASON_CHARACTERS_MAX = 300
_ERROR = re.compile(r"[A-Z]\w*(?:Error|Interrupt|Exception)\b")
_FILES_LINE = "Files written: "  # as runs/code_files.py begins the output of a call

LOOK_AT_FILES = """\
import csv
import itertools
import os

try:
    import pandas
except ImportError:
    pandas = None

names = sorted(name for name in os.listdir("/mnt/data") if os.path.isfile(os.path.join("/mnt/data", name)))
print(f"Files in /mnt/data: {len(names)}")
for name in names[:20]:
    path = os.path.join("/mnt/data", name)
    print(f"\\n{name}: {os.path.getsize(path):,} bytes")
    if not name.lower().endswith(".csv"):
        continue
    try:
        if pandas is not None:
            table = pandas.read_csv(path, nrows=100_000)
            print(f"{len(table):,} rows\\n{table.iloc[:, :12].describe(include='all').to_string()}")
        else:
            with open(path, newline="", encoding="utf-8") as file:
                for row in itertools.islice(csv.reader(file), 5):
                    print(", ".join(row[:12]))
    except (ValueError, csv.Error) as error:
        print(f"It cannot be read as a table: {error}")
"""
"""The program that looks at the files of a session."""


def code_answer_or_none(request: ChatRequest) -> list[list[ChatDelta]] | None:
    """The answer to a request that is about code, in the pieces in which it is streamed; None when it is not.

    The output of code is always answered here. A call is asked for when code_interpreter is offered, and either demanded or the last
    message is plain arithmetic or asks for a plot.
    """
    question = last_user_text(request.messages)
    if _is_code_output(request.messages):
        return [[TextDelta(_answer(question, _printed(request.messages[-1])))], [Finished("stop", None)]]
    calculation = calculation_or_none(question) if _may_call(request) else None
    wants_plot = calculation is None and _may_call(request) and is_for_a_plot(question)
    if calculation is None and not wants_plot and not _must_call(request):
        return None
    code = calculation.code if calculation else PLOT_TABLE if wants_plot else LOOK_AT_FILES
    arguments = msgspec.json.encode({"code": code}).decode()
    return [[ToolCallDelta(0, CODE_INTERPRETER, arguments)], [Finished("tool_calls", None)]]


def _may_call(request: ChatRequest) -> bool:
    is_offered = any(tool.name == CODE_INTERPRETER for tool in request.tools)
    return is_offered and request.tool_choice in ("auto", "required", NamedTool(CODE_INTERPRETER))


def _must_call(request: ChatRequest) -> bool:
    """Whether this tool is demanded. Where any will do and files can be searched, a search fits more questions."""
    has_search = any(tool.name == FILE_SEARCH for tool in request.tools)
    is_demanded = request.tool_choice == NamedTool(CODE_INTERPRETER) or (request.tool_choice == "required" and not has_search)
    return _may_call(request) and is_demanded


def _is_code_output(messages: Sequence[ChatMessage]) -> bool:
    last = messages[-1] if messages else None
    if last is None or last.role != "tool":
        return False
    return any(call.id == last.tool_call_id and call.name == CODE_INTERPRETER for message in messages for call in message.tool_calls)


def _printed(message: ChatMessage) -> str:
    """The output of a call without its first line, which names the files that the code has written."""
    text = message.content if isinstance(message.content, str) else ""
    first, _, rest = text.partition("\n")
    return (rest if first.startswith(_FILES_LINE) else text).strip()


def _answer(question: str, printed: str) -> str:
    calculation = calculation_or_none(question)
    if calculation is None and is_for_a_plot(question):
        return plot_answer(printed, _reason(printed))
    if calculation is None:
        return f"This is what came of the code:\n\n{_fenced(printed)}" if printed else "Nothing came of the code."
    first = printed.partition("\n")[0]
    if first and not any(character.isspace() for character in first):  # whatever went wrong is told in words
        return f"{calculation.expression} = {first}"
    return f"I could not calculate {calculation.expression}: {_reason(printed)}"


def _reason(printed: str) -> str:
    """Why there is no result: the error at the end of a traceback, else the first line. More lines may follow, which are for models."""
    lines = printed.splitlines() or ["nothing came of the code."]
    errors = [line for line in lines if _ERROR.match(line)]
    reason = errors[-1] if errors and lines[0].startswith("Traceback") else lines[0]
    return reason if len(reason) <= _REASON_CHARACTERS_MAX else f"{reason[:_REASON_CHARACTERS_MAX]} …"


def _fenced(printed: str) -> str:
    """Text as a block that nothing in it can close."""
    text = printed if len(printed) <= _QUOTED_CHARACTERS_MAX else f"{printed[:_QUOTED_CHARACTERS_MAX]}\n…"
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
