"""What the built-in model takes for plain arithmetic, the code that it writes for it, and what it makes of the code's output."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mini_assistant.models.base import (
    ChatDelta,
    ChatMessage,
    ChatRequest,
    Finished,
    NamedTool,
    RequestedToolCall,
    TextDelta,
    ToolCallDelta,
    ToolDefinition,
)
from mini_assistant.models.builtin_arithmetic import calculation_or_none
from mini_assistant.models.builtin_code import LOOK_AT_FILES, code_answer_or_none

CODE_INTERPRETER = ToolDefinition("code_interpreter", {"type": "object"})
FILE_SEARCH = ToolDefinition("file_search", {"type": "object"})
RUN_TIMEOUT_SECONDS = 20

CALCULATED = [
    ("What is 12*(7+3)?", "12 * (7 + 3)", "120"),
    ("compute 2^10", "2^10", "1024"),
    ("17 % of 340", "17% of 340", "57.8"),
    ("What is 20 percent of 1,500?", "20% of 1,500", "300"),
    ("100 / 17% of 340 =", "100 / 17% of 340", "1.73010380622837"),
    ("sqrt(16)", "sqrt(16)", "4"),
    ("what is the square root of 16?", "sqrt(16)", "4"),
    ("\u221a16 + 1", "sqrt(16) + 1", "5"),
    ("5 factorial", "5!", "120"),
    ("what is 5!", "5!", "120"),
    ("factorial of 5", "factorial(5)", "120"),
    ("2+2", "2 + 2", "4"),
    ("0.1+0.2", "0.1 + 0.2", "0.3"),
    ("what's 7 times 8", "7 * 8", "56"),
    ("What\u2019s 7 \xd7 8 \u2212 1?", "7 * 8 - 1", "55"),
    ("Hi! Can you please tell me what is 12 x 7?", "12 * 7", "84"),
    ("how much is 100 divided by 8", "100 / 8", "12.5"),
    ("What is 17 mod 5?", "17 mod 5", "2"),
    ("calculate 3-4", "3 - 4", "-1"),
    ("Please compute 10-4, please.", "10 - 4", "6"),
    ("10/4=", "10 / 4", "2.5"),
    ("What is 10/4?", "10 / 4", "2.5"),
    ("10 / 4 = ?", "10 / 4", "2.5"),
    ("what is the value of 3 cubed?", "3^3", "27"),
    ("-3 squared + 1", "-3^2 + 1", "-8"),
    ("2^-3 + 1", "2^-3 + 1", "1.125"),
    ("2^(100-3)", "2^(100 - 3)", str(2**97)),
    ("What does 2+2 equal?", "2 + 2", "4"),
    ("floor(10/3)+ceil(1.5)", "floor(10 / 3) + ceil(1.5)", "5"),
    ("what is 25!", "25!", "15511210043330985984000000"),
]

OTHERWISE = [
    # dates, times, years
    "2024-01-15", "What is 2024-10-15?", "calculate 2024-10-15", "What is 12/25/2024?", "What is 2024-25?", "What is 2023-2024?",
    "12:30 - 14:00", "What is 1984?", "24.12.2024",
    # telephone numbers
    "555-1234", "What is 555-1234?", "(555) 123-4567", "What is (555)-123-4567?", "+1 555 123 4567", "+15551234567", "What is 1-800?",
    "0800 + 1",
    # versions, addresses, sizes
    "3.11.2", "What is 3.11.2?", "What is 3.11-3.13?", "What is 192.168.0.1/24?", "1920x1080", "What is 1920x1080?", "What is 802.11?",
    # ranges and sayings
    "10-20", "What is 10-20?", "10 - 20", "20\u201330", "24/7", "What is 24/7?", "What is 9/11?", "10 / 4", "1 x 2",
    # numbers in texts
    "2 questions: what is 1+1? And 2+2?", "2+2 apples", "What is C++?", "$5 + $3", "2,5 + 1", "1,2345 + 1", "section 4.3(c)", "5!", "-5",
    "What is 50%?", "What is 5?", "What is pi?", "What is (5)?", "What is 2 3 + 4?", "3 squared cubed", "5 squared ^ 3", "What is 1+1=2?",
    # nothing, and what is no calculation at all
    "", "?", "=", "what is", "print(2+2)", "__import__('os').system('x')", "1;2+2", "1+\nimport os", "sqrt", "sqrt(", "(1+2", "1+2)",
    # too long, too deep
    "(" * 100 + "1+1" + ")" * 100, "-" * 100 + "1+1", "2^" * 100 + "2", "1+" * 200 + "1",
]  # fmt: skip

HOSTILE = [
    "9**9**9",
    "9^9^9^9^9",
    "What is (9^9)^(9^9)?",
    "floor(10^300)^floor(10^300)",
    "compute 99999!",
    "3!^5!^7!",
    "factorial of (10 ^ 9)",
    "abs(9^999)^999",
    "2^(10^300)",
    "*".join(["999^999"] * 30),
    "9" * 200 + "^" + "9" * 20,
    "ceil(1.5)^999999999",
]


def printed_by(code: str) -> tuple[str, str]:
    """What code prints, and the last line of its error."""
    ended = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=RUN_TIMEOUT_SECONDS)
    return ended.stdout.strip(), ended.stderr.strip().rpartition("\n")[2]


@pytest.mark.parametrize(("question", "expression", "result"), CALCULATED)
def test_plain_arithmetic_is_calculated(question: str, expression: str, result: str) -> None:
    calculation = calculation_or_none(question)
    assert calculation is not None
    assert (calculation.expression, printed_by(calculation.code)) == (expression, (result, ""))


@pytest.mark.parametrize("text", OTHERWISE)
def test_other_numbers_are_left_alone(text: str) -> None:
    assert calculation_or_none(text) is None


@pytest.mark.parametrize("question", HOSTILE)
def test_what_would_never_end_overflows_at_once(question: str) -> None:
    calculation = calculation_or_none(question)
    assert calculation is not None
    printed, error = printed_by(calculation.code)
    assert printed == "" or len(printed) < 30
    assert error == "" or error.startswith("OverflowError")


@given(st.text(alphabet="0123456789+-*/^%!().,= x", max_size=60), st.sampled_from(["", "What is ", "Compute "]))
def test_whatever_is_read_becomes_a_small_program_of_python(expression: str, lead: str) -> None:
    calculation = calculation_or_none(lead + expression)
    if calculation is not None:
        compile(calculation.code, "code", "exec")
        assert len(calculation.code) < 1500


# ---- when code is called for, and what is answered


def deltas_of(request: ChatRequest) -> list[ChatDelta] | None:
    pieces = code_answer_or_none(request)
    return None if pieces is None else [delta for deltas in pieces for delta in deltas]


def asked(text: str, *tools: ToolDefinition, choice: object = "auto") -> str | None:
    """The code that a message makes the model call for; None when it calls for none."""
    told = deltas_of(ChatRequest("m", (ChatMessage("user", text),), tools or (CODE_INTERPRETER,), choice))  # type: ignore[arg-type]
    if told is None:
        return None
    [call, end] = told
    assert isinstance(call, ToolCallDelta)
    assert (call.index, call.name, end) == (0, "code_interpreter", Finished("tool_calls", None))
    return json.loads(call.arguments)["code"]


def answered(question: str, output: str) -> str:
    call = RequestedToolCall("call_1", "code_interpreter", "{}")
    messages = (
        ChatMessage("user", question),
        ChatMessage("assistant", "", tool_calls=(call,)),
        ChatMessage("tool", output, tool_call_id="call_1"),
    )
    told = deltas_of(ChatRequest("m", messages, (CODE_INTERPRETER,)))
    assert told is not None
    [text, end] = told
    assert isinstance(text, TextDelta)
    assert end == Finished("stop", None)
    return text.text


def test_code_is_called_for_when_it_is_offered_and_the_question_is_arithmetic() -> None:
    assert asked("What is 2+2?") == "print(2 + 2)"
    assert asked("What is 2+2?", FILE_SEARCH, CODE_INTERPRETER) == "print(2 + 2)"
    assert asked("What is 2+2?", FILE_SEARCH) is None
    assert asked("What is 2+2?", choice="none") is None
    assert asked("What is 2+2?", FILE_SEARCH, CODE_INTERPRETER, choice=NamedTool("file_search")) is None
    assert asked("Who are you?") is None


@pytest.mark.parametrize("choice", ["required", NamedTool("code_interpreter")])
def test_a_demanded_call_is_made_for_whatever_is_said(choice: object) -> None:
    assert asked("Who are you?", choice=choice) == LOOK_AT_FILES
    assert asked("", choice=choice) == LOOK_AT_FILES
    assert asked("compute 2^3", choice=choice) == "print(2 ** 3)"


def test_where_any_tool_will_do_files_are_searched() -> None:
    assert asked("Who are you?", FILE_SEARCH, CODE_INTERPRETER, choice="required") is None
    assert asked("Who are you?", FILE_SEARCH, CODE_INTERPRETER, choice=NamedTool("code_interpreter")) == LOOK_AT_FILES


def test_outputs_of_other_tools_are_not_answered() -> None:
    call = RequestedToolCall("call_1", "file_search", "{}")
    messages = (
        ChatMessage("user", "What is 2+2?"),
        ChatMessage("assistant", "", tool_calls=(call,)),
        ChatMessage("tool", "4", tool_call_id="call_1"),
    )
    request = ChatRequest("m", messages, (FILE_SEARCH,))
    assert code_answer_or_none(request) is None


def test_a_result_is_answered_with_its_expression() -> None:
    assert answered("What is 12*(7+3)?", "Files written: {}\n120\n") == "12 * (7 + 3) = 120"
    assert answered("What is 12*(7+3)?", "Files written: {}\n120\nThis call ran in a fresh session.") == "12 * (7 + 3) = 120"
    assert answered("What is 12*(7+3)?", "120") == "12 * (7 + 3) = 120"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ('Files written: {}\nTraceback (most recent call last):\n  File "<cell 1>", line 1\nZeroDivisionError: division by zero\n',
         "ZeroDivisionError: division by zero"),
        ('Files written: {}\nTraceback (most recent call last):\nKeyboardInterrupt\nThe code was stopped.\nVariables are gone.',
         "KeyboardInterrupt"),
        ("Error (timeout): The tool took longer than 120 seconds.", "Error (timeout): The tool took longer than 120 seconds."),
        ("Files written: {}\nThere is no sandbox here.\nAsk the operator.", "There is no sandbox here."),
        ("Files written: {}\n", "nothing came of the code."),
        ("", "nothing came of the code."),
        ("a word " * 100, ("a word " * 100)[:300] + " …"),
    ],
)  # fmt: skip
def test_what_went_wrong_is_said(output: str, reason: str) -> None:
    assert answered("calculate 1/0", output) == f"I could not calculate 1 / 0: {reason}"


def test_what_the_code_has_found_is_quoted() -> None:
    assert answered("What is in there?", "Files written: {}\n1 file\n") == "This is what came of the code:\n\n```\n1 file\n```"
    assert answered("What is in there?", "Files written: {}\n") == "Nothing came of the code."


def test_a_quote_is_bounded_and_cannot_be_closed_from_within() -> None:
    assert answered("Look", "```\n# A title").endswith("\n\n````\n```\n# A title\n````")
    assert len(answered("Look", "a" * 100_000)) < 4100


def test_the_program_that_looks_at_files_runs() -> None:
    assert printed_by(LOOK_AT_FILES.replace("/mnt/data", "/nonexistent"))[1].startswith("FileNotFoundError")


def test_the_program_that_looks_at_files_describes_tables(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,number\nx,1\ny,3\n")
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "broken.csv").write_bytes(b"\xff\xfe\x00,\x00\n")
    (tmp_path / "notes.txt").write_text("Hello")
    printed, error = printed_by(LOOK_AT_FILES.replace("/mnt/data", str(tmp_path)))
    assert error == ""
    assert printed.startswith(f"Files in {tmp_path}: 4\n")
    assert "a.csv: 20 bytes" in printed
    assert "number" in printed
    assert "notes.txt: 5 bytes" in printed
