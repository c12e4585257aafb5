"""How a run looks on a terminal while it goes on: the answer, the code and the searches behind it, and its sources below."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mini_assistant.terminal.event_frames import Event
from mini_assistant.terminal.printable import fitted, one_line
from mini_assistant.terminal.screen import Screen, Style

_MARGIN = "  | "
_NAME_COLUMNS = 60
_PASSAGES_SHOWN = 5


class WaitingCall(NamedTuple):
    """A call of a function that waits for its output. arguments: JSON text."""

    id: str
    name: str
    arguments: str


class RunView:
    """Shows the events of runs in the order in which they come. shows_tools: whether more than the answer is shown."""

    def __init__(self, screen: Screen, *, shows_tools: bool) -> None:
        self.status = ""
        self.names: dict[str, str] = {}
        self.waiting_calls: list[WaitingCall] = []
        # By id, of the whole conversation. `_citations` and `_made` are those of the run.
        self.made_files: dict[str, str] = {}
        self._screen = screen
        self._shows_tools = shows_tools
        self._run: dict[str, Any] = {}
        self._problem = ""
        self._open: tuple[str, ...] = ()
        self._citations: dict[str, str] = {}
        self._made: list[str] = []
        self._shows: dict[str, Callable[[Any], None]] = {
            "thread.message.delta": self._message_delta,
            "thread.run.step.delta": self._step_delta,
            "thread.run.step.completed": self._step_end,
            "error": self._error,
        }

    def begin(self) -> None:
        """A new run, which has neither answer nor sources yet."""
        self.status, self._problem, self._run, self.waiting_calls = "", "", {}, []
        self._citations, self._made = {}, []

    def show(self, event: Event) -> None:
        """Show what has happened."""
        if event.data is None:
            return
        if event.name.startswith("thread.run.") and not event.name.startswith("thread.run.step."):
            self.take_run(event.data)
        elif event.name in self._shows:
            self._shows[event.name](event.data)

    def take_run(self, run: Mapping[str, Any]) -> None:
        """Take notice of how far the run has come."""
        self._run = dict(run)
        self.status = run["status"]
        action: dict[str, Any] = run.get("required_action") or {}
        calls: list[dict[str, Any]] = action.get("submit_tool_outputs", {}).get("tool_calls", [])
        self.waiting_calls = [WaitingCall(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls]

    def show_message(self, message: Mapping[str, Any]) -> None:
        """Show a whole message, such as one of an earlier run."""
        self._close()
        is_question = message["role"] == "user"
        for part in message["content"]:
            if part["type"] == "text":
                value = self._with_numbers(part["text"]["value"], part["text"]["annotations"])
                self._screen.line(f"> {value}" if is_question else value, "strong" if is_question else "plain")
            elif part["type"] == "image_file":
                self._take_file(part["image_file"]["file_id"], "picture")

    def unknown_files(self) -> list[str]:
        """Files that the answer names and whose names are not known."""
        wanted = [*self._citations.values(), *self._made]
        return [file_id for file_id in dict.fromkeys(wanted) if file_id not in self.names]

    def end(self) -> None:
        """Show what the answer is made from, and how the run has ended when that was not well."""
        self._close()
        if self._citations:
            self._screen.line()
            for place, file_id in enumerate(self._citations.values(), start=1):
                self._screen.line(f"[{place}] {one_line(self.names.get(file_id, file_id))}", "quiet")
        if self._made and self._shows_tools:
            self._screen.line()
            for file_id in self._made:
                name = self.names.get(file_id, self.made_files[file_id])
                self._screen.line(f"{one_line(name)}: /save {file_id}", "quiet")
        problem = self.problem()
        if problem and self._shows_tools:
            self._screen.line(problem, "bad")

    def problem(self) -> str:
        """Why there is no whole answer; empty when there is."""
        error: dict[str, Any] = self._run.get("last_error") or {}
        details: dict[str, Any] = self._run.get("incomplete_details") or {}
        match self.status:
            case "completed" | "requires_action":
                return ""
            case "failed":
                return one_line(f"The run failed ({error.get('code')}): {error.get('message')}")
            case "incomplete":
                return one_line(f"The answer is not complete: {details.get('reason')}.")
            case "cancelled":
                return "The run was cancelled."
            case "expired":
                return "The run took too long and has expired."
            case _:
                return self._problem or "The stream of the run has ended early."

    # ---- the answer

    def _message_delta(self, data: dict[str, Any]) -> None:
        for part in data["delta"].get("content", []):
            if part["type"] == "text":
                text = part.get("text", {})
                self._piece(("text", data["id"]), self._with_numbers(text.get("value", ""), text.get("annotations", [])))
            elif part["type"] == "image_file":
                self._take_file(part["image_file"]["file_id"], "picture")

    def _with_numbers(self, value: str, annotations: list[dict[str, Any]]) -> str:
        """The text with `[1]` for each citation, which is listed below."""
        for annotation in annotations:
            if annotation["type"] == "file_citation":
                marker = annotation["text"]
                self._citations.setdefault(marker, annotation["file_citation"]["file_id"])
                value = value.replace(marker, f"[{list(self._citations).index(marker) + 1}]")
            elif annotation["type"] == "file_path":
                self._take_file(annotation["file_path"]["file_id"], annotation["text"].rsplit("/", 1)[-1])
        return value

    def _take_file(self, file_id: str, name: str) -> None:
        self.made_files.setdefault(file_id, name)
        if file_id not in self._made:
            self._made.append(file_id)

    # ---- the tools

    def _step_delta(self, data: dict[str, Any]) -> None:
        details: dict[str, Any] = data["delta"].get("step_details", {})
        calls: list[dict[str, Any]] = details.get("tool_calls") or []
        for call in calls:
            if call["type"] == "code_interpreter":
                self._code_delta((data["id"], str(call["index"])), call.get("code_interpreter", {}))
            elif call["type"] == "function" and call.get("function", {}).get("name"):
                self._tool_line(f"asks for {call['function']['name']}")

    def _code_delta(self, call: tuple[str, str], code: dict[str, Any]) -> None:
        if code.get("input"):
            self._piece(("code", *call), code["input"], "runs code")
        outputs: list[dict[str, Any]] = code.get("outputs") or []
        for output in outputs:
            if output["type"] == "logs":
                self._piece(("logs", *call), output.get("logs", ""), "prints")
            elif output["type"] == "image":
                self._take_file(output["image"]["file_id"], "figure")

    def _step_end(self, step: dict[str, Any]) -> None:
        calls: list[dict[str, Any]] = step["step_details"].get("tool_calls") or []
        for call in calls:
            if call["type"] == "file_search":
                self._search_end(call["file_search"].get("results") or [])

    def _search_end(self, results: list[dict[str, Any]]) -> None:
        self.names.update({result["file_id"]: result["file_name"] for result in results})
        self._tool_line(f"searched files: {len(results)} passages" if results else "searched files: nothing found")
        if self._shows_tools:
            self._screen.set_margin(_MARGIN)
            for result in results[:_PASSAGES_SHOWN]:
                self._screen.line(f"{result['score']:.2f} {fitted(one_line(result['file_name']), _NAME_COLUMNS)}", "quiet")
            self._screen.set_margin("")

    # ---- pieces

    def _tool_line(self, text: str) -> None:
        self._close()
        if self._shows_tools:
            self._screen.line(f"* {one_line(text)}", "quiet")

    def _piece(self, block: tuple[str, ...], text: str, title: str = "") -> None:
        """Write a piece of what is being written; another block begins on a line of its own."""
        style: Style = "quiet" if title else "plain"
        if title and not self._shows_tools:
            return
        if block != self._open:
            self._close()
            if title:
                self._screen.line(f"* {title}", "quiet")
                self._screen.set_margin(_MARGIN)
            self._open = block
        self._screen.write(text, style)

    def _close(self) -> None:
        self._screen.end_line()
        self._screen.set_margin("")
        self._open = ()

    def _error(self, data: dict[str, Any]) -> None:
        error = data.get("error", data)
        self._problem = one_line(str(error.get("message", error)))
