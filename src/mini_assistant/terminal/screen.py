"""Where a client writes: a terminal, or a pipe. All text passes through here, so none reaches a terminal with control characters."""

from typing import Literal, TextIO

from mini_assistant.terminal.printable import printable

Style = Literal["plain", "quiet", "strong", "bad"]
_CODES = {"plain": "", "quiet": "\x1b[2m", "strong": "\x1b[1m", "bad": "\x1b[31m"}
_RESET = "\x1b[0m"
_CLEAR_LINE = "\r\x1b[K"


class Screen:
    """Lines and pieces of lines. has_colours: whether styles are shown. is_terminal: whether a line can be written anew."""

    def __init__(self, out: TextIO, *, is_terminal: bool, has_colours: bool) -> None:
        self._out = out
        self.is_terminal = is_terminal
        self._has_colours = has_colours
        self._margin = ""
        self._is_at_line_start = True
        self._has_passing_line = False

    def write(self, text: str, style: Style = "plain") -> None:
        """Write a piece of text as it comes."""
        self._take_away()
        code = _CODES[style] if self._has_colours else ""
        for line in printable(text).splitlines(keepends=True):
            if self._is_at_line_start and self._margin:
                self._put(self._margin, _CODES["quiet"] if self._has_colours else "")
            self._put(line.removesuffix("\n"), code)
            self._is_at_line_start = line.endswith("\n")
            if self._is_at_line_start:
                self._out.write("\n")
        self._out.flush()

    def line(self, text: str = "", style: Style = "plain") -> None:
        """Write a line of its own."""
        self.end_line()
        self.write(f"{text}\n", style)

    def end_line(self) -> None:
        """Go to the beginning of a line, unless that is where writing goes on anyway."""
        if not self._is_at_line_start:
            self.write("\n")

    def set_margin(self, margin: str) -> None:
        """Begin the lines from here on with this."""
        self.end_line()
        self._margin = margin

    def show_passing(self, text: str) -> None:
        """Show a line until something else is written; nothing where lines cannot be written anew."""
        if self.is_terminal:
            self._out.write(_CLEAR_LINE + printable(text))
            self._out.flush()
            self._has_passing_line = True

    def _take_away(self) -> None:
        if self._has_passing_line:
            self._out.write(_CLEAR_LINE)
            self._has_passing_line = False

    def clear_passing(self) -> None:
        """Take away the line that is shown for a while."""
        self._take_away()
        self._out.flush()

    def _put(self, text: str, code: str) -> None:
        if text:
            self._out.write(f"{code}{text}{_RESET}" if code else text)
