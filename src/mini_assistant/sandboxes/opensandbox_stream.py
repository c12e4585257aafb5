"""Takes the stream of a call apart as execd sends it, and passes its output on up to the limits.

Events are JSON objects with a blank line after each. Nothing in them is trusted: a line that is too long or no event is left out, and no
event can do more than add to the output of its own call or end it.
"""

import binascii
import re
from collections.abc import Callable
from typing import Any

import msgspec

from mini_assistant.sandboxes.base import Image, Logs, Output
from mini_assistant.sandboxes.opensandbox_http import plain_words
from mini_assistant.settings import Settings

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOURS = re.compile(r"\x1b\[[0-9;:?]*[A-Za-z]")
# What is around the figure or the text in an event.
_LINE_BYTES_FREE = 64 * 1024


class _Results(msgspec.Struct):
    """One value in several forms. Each may be anything: the code makes them."""

    text: Any = None
    plain: Any = msgspec.field(default=None, name="text/plain")
    png: Any = msgspec.field(default=None, name="image/png")


class _Error(msgspec.Struct):
    ename: str = ""
    evalue: str = ""
    traceback: list[str] | None = None


class _Event(msgspec.Struct):
    type: str = ""
    text: str = ""
    results: _Results | None = None
    error: _Error | None = None
    # What execd itself could not do, when the stream has begun already.
    code: str = ""
    message: str = ""


_EVENT = msgspec.json.Decoder(_Event)


class CallOutput:
    """Output on its way to the caller, up to the limits; that something is left out is said once for logs and once for figures."""

    def __init__(self, settings: Settings, tell: Callable[[Output], None]) -> None:
        self._tell = tell
        self._log_bytes_max = settings.sandbox_log_bytes_max
        self._log_bytes_left = settings.sandbox_log_bytes_max
        self._image_bytes_max = settings.sandbox_image_bytes_max
        self._images_left = settings.sandbox_images_max
        self._is_image_left_out_said = False

    def write(self, text: str) -> None:
        """A piece of the logs."""
        if not text or self._log_bytes_left <= 0:
            return
        encoded = text.encode("utf-8", "replace")
        kept = encoded[: self._log_bytes_left].decode("utf-8", "ignore")
        if kept:
            self._tell(Logs(kept))
        if len(encoded) > self._log_bytes_left:
            self.leave_out()
        else:
            self._log_bytes_left -= len(encoded)

    def leave_out(self) -> None:
        """Drop the logs from here on."""
        if self._log_bytes_left > 0:
            self._log_bytes_left = 0
            self._tell(Logs(f"\n[Output beyond {self._log_bytes_max} bytes was left out.]\n"))

    def show(self, encoded: str) -> None:
        """A figure. encoded: a PNG in base64."""
        if self._images_left <= 0:
            self._say_image_left_out("There were more figures; they were left out.")
            return
        # 4 characters stand for 3 bytes, and there may be line breaks.
        if len(encoded) > self._image_bytes_max * 3 // 2:
            self._say_image_left_out(f"A figure of more than {self._image_bytes_max} bytes was left out.")
            return
        try:
            data = binascii.a2b_base64(encoded)
        except ValueError:
            return
        if len(data) > self._image_bytes_max:
            self._say_image_left_out(f"A figure of more than {self._image_bytes_max} bytes was left out.")
        elif data.startswith(_PNG_SIGNATURE):
            self._images_left -= 1
            self._tell(Image(data))

    def _say_image_left_out(self, sentence: str) -> None:
        if not self._is_image_left_out_said:
            self._is_image_left_out_said = True
            self._tell(Logs(f"[{sentence}]\n"))


class CallStream:
    """Bytes in, output on. What the stream has said about the end is in the attributes."""

    def __init__(self, settings: Settings, output: CallOutput) -> None:
        self._output = output
        self._lines = _Lines(settings.sandbox_image_bytes_max * 3 // 2 + _LINE_BYTES_FREE, output.leave_out)
        self.is_complete = False
        self.error_name: str | None = None
        self.error_value = ""
        self.failure: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the end of the code was told."""
        return self.is_complete or self.error_name is not None

    def feed(self, data: bytes) -> None:
        """The next bytes of the stream."""
        for line in self._lines.feed(data):
            try:
                event = _EVENT.decode(line.removeprefix(b"data:"))
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            self._take(event)

    def _take(self, event: _Event) -> None:
        match event.type:
            case "stdout" | "stderr":
                self._output.write(event.text)
            case "result" if event.results is not None:
                self._take_results(event.results)
            case "error" if event.error is not None:
                self._take_error(event.error)
            case "execution_complete":
                self.is_complete = True
            case "" if event.code:
                self.failure = plain_words(event.message)
            case _:
                pass

    def _take_results(self, results: _Results) -> None:
        text = results.text if results.text is not None else results.plain
        if isinstance(results.png, str):
            self._output.show(results.png)
        elif isinstance(text, str) and text:
            self._output.write(text + "\n")

    def _take_error(self, error: _Error) -> None:
        self.error_name = error.ename[:100]
        self.error_value = error.evalue[:1000]
        if error.ename == "SystemExit":  # a way to end, with a status or with words
            if not error.evalue.lstrip("-").isdecimal() and error.evalue != "None":
                self._output.write(f"{error.evalue}\n" if error.evalue else "")
            return
        lines = error.traceback or [f"{error.ename}: {error.evalue}"]
        self._output.write(_COLOURS.sub("", "\n".join(lines)).rstrip("\n") + "\n")


class _Lines:
    """Bytes in, lines out. The rest of a line that is too long is skipped."""

    def __init__(self, line_bytes_max: int, on_skipped: Callable[[], None]) -> None:
        self._line_bytes_max = line_bytes_max
        self._on_skipped = on_skipped
        # The beginning of the last line, in parts: one that comes in many small reads is not copied again for each of them.
        self._begun: list[bytes] = []
        self._begun_bytes = 0
        self._is_skipping = False

    def feed(self, data: bytes) -> list[bytes]:
        lines: list[bytes] = []
        *ends, rest = data.split(b"\n")
        for end in ends:
            self._add(end)
            if self._begun:
                lines.append(b"".join(self._begun))
            self._begun, self._begun_bytes, self._is_skipping = [], 0, False
        self._add(rest)
        return lines

    def _add(self, part: bytes) -> None:
        if self._is_skipping or not part:
            return
        self._begun_bytes += len(part)
        if self._begun_bytes > self._line_bytes_max:
            self._begun, self._is_skipping = [], True
            self._on_skipped()
        else:
            self._begun.append(part)
