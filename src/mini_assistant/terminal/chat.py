"""`mini-assistant chat`: a conversation at a terminal, or one answer on a pipe."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from mini_assistant.errors import BackendError, ConfigError
from mini_assistant.terminal import INTERRUPTED
from mini_assistant.terminal.client import Client
from mini_assistant.terminal.conversation import ChatOptions, Conversation
from mini_assistant.terminal.printable import one_line
from mini_assistant.terminal.run_view import RunView, WaitingCall
from mini_assistant.terminal.screen import Screen

_PROMPT = "> "
_HELP = """\
/file PATH        send a file with the next question
/files            list the files of this conversation
/save ID [PATH]   keep a file that was made
/new              begin a new conversation
/quit             leave, as Ctrl-D does
Ctrl-C            cancel the answer; twice: leave
A question that begins with a slash is typed with a space before it."""

Read = Callable[[str], str]
"""Asks a person for a line; raises EOFError at the end and KeyboardInterrupt for Ctrl-C."""


class Chat:
    """The loop of questions, commands and answers."""

    def __init__(self, client: Client, options: ChatOptions, screen: Screen, read: Read) -> None:
        self._client = client
        self._screen = screen
        self._read = read
        self._conversation = Conversation(client, options, RunView(screen, shows_tools=True), screen)
        self._runner = asyncio.Runner()
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self._screen.line(_HELP),
            "/file": self._attach,
            "/files": self._list_files,
            "/save": self._save,
            "/new": self._begin_again,
        }

    def converse(self, files: Sequence[Path]) -> int:
        """Talk until the person leaves; returns the exit status."""
        with self._runner:
            self._runner.run(self._client.open())
            try:
                return self._talk(files)
            except EOFError:
                self._screen.line()
                return 0
            except asyncio.CancelledError:
                self._screen.end_line()
                return INTERRUPTED
            finally:
                self._runner.run(self._client.close())
                self._say_how_to_go_on()

    def _talk(self, files: Sequence[Path]) -> int:
        self._runner.run(self._conversation.open())
        self._screen.line(f"{self._conversation.title()}. /help lists what can be typed.", "quiet")
        if self._runner.run(self._conversation.show_earlier()):
            self._runner.run(self._conversation.resume())
            self._see_to_the_end()
        for file in files:
            self._attach(str(file))
        was_interrupted = False
        while True:
            try:
                line = self._read(_PROMPT)
                was_interrupted = False
                if line.strip() in ("/quit", "/exit"):
                    return 0
                self._do(line)
            except KeyboardInterrupt:
                self._screen.line()
                if was_interrupted:
                    return INTERRUPTED
                was_interrupted = True
                self._screen.line("Ctrl-C once more leaves.", "quiet")

    def _do(self, line: str) -> None:
        command, _, rest = line.rstrip().partition(" ")
        try:
            if command in self._commands:
                self._commands[command](rest.strip())
            elif command.startswith("/"):
                self._screen.line(f"There is no {command}. /help lists what there is.", "bad")
            elif line.strip():
                self._runner.run(self._conversation.ask(line.strip()))
                self._see_to_the_end()
        except (BackendError, ConfigError, OSError) as exc:
            self._screen.line(str(exc), "bad")

    def _see_to_the_end(self) -> None:
        """Answer the calls of functions for which a run waits, as often as it does."""
        view = self._conversation.view
        while view.waiting_calls:
            try:
                outputs = {call.id: self._output_of(call) for call in view.waiting_calls}
            except KeyboardInterrupt:
                self._screen.line()
                self._runner.run(self._conversation.cancel())
            except EOFError:
                self._runner.run(self._conversation.cancel())
                raise
            else:
                self._runner.run(self._conversation.answer_calls(outputs))
        view.end()

    def _output_of(self, call: WaitingCall) -> str:
        self._screen.line(f"{call.name} {call.arguments}", "strong")
        return self._read("output of the function: ")

    # ---- commands

    def _attach(self, path: str) -> None:
        if not path:
            self._screen.line("Name the file: /file PATH", "bad")
            return
        try:
            self._runner.run(self._conversation.attach(Path(path).expanduser()))
        except (BackendError, ConfigError, OSError) as exc:
            self._screen.line(str(exc), "bad")
        else:
            self._screen.line(f"{one_line(self._conversation.pending_files[-1].name)} goes with the next question.", "quiet")

    def _list_files(self, _rest: str) -> None:
        for file in self._conversation.pending_files:
            self._screen.line(f"{one_line(file.name)}: goes with the next question")
        for name in self._conversation.sent_files:
            self._screen.line(f"{one_line(name)}: sent")
        view = self._conversation.view
        for file_id, name in view.made_files.items():
            self._screen.line(f"{one_line(view.names.get(file_id, name))}: made, /save {file_id}")

    def _save(self, rest: str) -> None:
        file_id, _, place = rest.partition(" ")
        if not file_id:
            self._screen.line("Name the file: /save ID [PATH]", "bad")
            return
        kept = self._runner.run(self._conversation.save(file_id, Path(place.strip()).expanduser() if place.strip() else None))
        self._screen.line(f"Kept as {one_line(str(kept))}.", "quiet")

    def _begin_again(self, _rest: str) -> None:
        self._conversation.new_thread()
        self._screen.line("A new conversation.", "quiet")

    def _say_how_to_go_on(self) -> None:
        if self._conversation.thread_id:
            self._screen.line(f"Go on with: mini-assistant chat --thread {self._conversation.thread_id}", "quiet")


def answer_once(client: Client, options: ChatOptions, question: str, files: Sequence[Path], screen: Screen, notes: Screen) -> int:
    """Answer one question and leave: the answer on the screen, all else in the notes. Returns the exit status."""
    if not question.strip():
        raise ConfigError("There is no question on standard input.")
    return asyncio.run(_answer(client, Conversation(client, options, RunView(screen, shows_tools=False), notes), question, files, notes))


async def _answer(client: Client, conversation: Conversation, question: str, files: Sequence[Path], notes: Screen) -> int:
    await client.open()
    try:
        await conversation.open()
        for file in files:
            await conversation.attach(file)
        await conversation.ask(question.strip())
        view = conversation.view
        problem = view.problem()
        if view.waiting_calls:
            names = ", ".join(call.name for call in view.waiting_calls)
            problem = f"The run waits for what {one_line(names)} gives, and nobody is there to say it. It was cancelled."
            await conversation.cancel()
        view.end()
        if problem:
            notes.line(f"mini-assistant: {problem}")
        if conversation.was_interrupted:
            return INTERRUPTED
        return 1 if problem else 0
    finally:
        await client.close()
