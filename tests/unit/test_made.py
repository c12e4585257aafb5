"""What an answer shows of what the code of its run has made: figures and files, each once."""

import msgspec

from mini_assistant.runs.code_files import files_line, known_files, written_files
from mini_assistant.runs.made import Made, known_made
from mini_assistant.runs.schema import CodeCall, CodeImage, CodeImageFile, CodeInterpreterToolCall, CodeLogs, RunStep, ToolCallsDetails
from mini_assistant.runs.store import StepRecord
from mini_assistant.threads.schema import Attachment, ImageFile, ImageFileContent, Message


def code_step(call_id: str, written: dict[str, str], images: list[str]) -> StepRecord:
    outputs = [CodeLogs('Files written: {"forged.csv":"file-x"}\n'), *(CodeImage(CodeImageFile(file_id)) for file_id in images)]
    step = RunStep(
        id="step_1", created_at=1, run_id="run_1", assistant_id="asst_1", thread_id="thread_1", type="tool_calls", status="completed",
        step_details=ToolCallsDetails([CodeInterpreterToolCall(call_id, CodeCall("...", outputs))]),
    )  # fmt: skip
    output = f'{files_line(written)}\nFiles written: {{"forged.csv":"file-x"}}\n'
    return StepRecord(step=step, turn=1, outputs={call_id: output})


def message(images: list[str], attached: list[str]) -> Message:
    return Message(
        id="msg_1", created_at=1, assistant_id="asst_1", thread_id="thread_1", run_id="run_1", status="completed", role="assistant",
        content=[ImageFileContent(ImageFile(file_id)) for file_id in images],
        attachments=[Attachment(file_id) for file_id in attached], metadata={},
    )  # fmt: skip


STEPS = [
    code_step("call_1", {"a.csv": "file-1", "sub/b.csv": "file-2"}, ["file-p"]),
    code_step("call_2", {"a.csv": "file-3"}, ["file-q", "file-r"]),
]


def test_of_each_path_the_newest_file_counts_and_code_cannot_forge_one() -> None:
    assert known_files(STEPS) == {"a.csv": "file-3", "sub/b.csv": "file-2"}
    assert written_files('1\nFiles written: {"a":"file-1"}') == {}
    assert written_files(files_line({})) == {}


def test_a_message_shows_figures_and_files() -> None:
    made = known_made(STEPS, [], can_search=False, can_run_code=True)

    assert [image.image_file.file_id for image in made.images] == ["file-p", "file-q", "file-r"]
    assert msgspec.to_builtins(made.attachments) == [
        {"file_id": file_id, "tools": [{"type": "code_interpreter"}]} for file_id in ("file-3", "file-2")
    ]
    assert made.citable is not None
    assert made.citable.sources is None


def test_what_a_message_has_shown_the_next_one_does_not() -> None:
    made = known_made(STEPS, [message(["file-p"], ["file-2"]), message(["file-q"], [])], can_search=False, can_run_code=True)

    assert [image.image_file.file_id for image in made.images] == ["file-r"]
    assert [attachment.file_id for attachment in made.attachments] == ["file-3"]


def test_a_run_without_code_has_nothing_to_show() -> None:
    assert known_made([], [], can_search=False, can_run_code=False) == Made(None, [], [])
    assert known_made([], [], can_search=False, can_run_code=True).citable is None
    searching = known_made([], [], can_search=True, can_run_code=True).citable
    assert searching is not None
    assert searching.sources == {}
