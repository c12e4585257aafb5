"""How far an ingest has come: a bar on a terminal, a line for each file on a pipe."""

import shutil

from mini_assistant.terminal.folder_files import FolderFile
from mini_assistant.terminal.printable import fitted, one_line
from mini_assistant.terminal.screen import Screen

_BAR_COLUMNS = 24
_UNITS = ("B", "kB", "MB", "GB", "TB")


class IngestProgress:
    """Counts what has become of each file. problems: why files failed, by path."""

    def __init__(self, screen: Screen, files: list[FolderFile]) -> None:
        self.problems: dict[str, str] = {}
        self.added = 0
        self.present = 0
        self._screen = screen
        self._files = len(files)
        self._total_bytes = sum(file.size_bytes for file in files)
        self._done_bytes = 0
        # Of files that are under way, by path: as much of them as was read.
        self._read_bytes: dict[str, int] = {}

    @property
    def done(self) -> int:
        """How many files need no more work."""
        return self.added + self.present + len(self.problems)

    def begin(self, file: FolderFile) -> None:
        """Work on a file begins."""
        self._read_bytes[file.path] = 0
        self._show(file.path)

    def read(self, file: FolderFile, count: int) -> None:
        """So many bytes more of a file are on their way."""
        if file.path in self._read_bytes:
            self._read_bytes[file.path] = min(self._read_bytes[file.path] + count, file.size_bytes)
            self._show(file.path)

    def add(self, file: FolderFile) -> None:
        """A file can be searched now."""
        self.added += 1
        self._end(file, f"added    {file.path}")

    def skip(self, file: FolderFile) -> None:
        """A file was there already."""
        self.present += 1
        self._end(file, f"present  {file.path}")

    def fail(self, file: FolderFile, problem: str) -> None:
        """A file cannot be searched."""
        self.problems[file.path] = problem
        self._end(file, f"failed   {file.path}: {problem}")

    def _end(self, file: FolderFile, line: str) -> None:
        self._read_bytes.pop(file.path, None)
        self._done_bytes += file.size_bytes
        if self._screen.is_terminal:
            self._show(file.path)
        else:
            self._screen.line(one_line(line))

    def _show(self, path: str) -> None:
        share = self.done / self._files if self._files else 1.0
        bar = "#" * int(share * _BAR_COLUMNS)
        sent = self._done_bytes + sum(self._read_bytes.values())
        failed = f", {len(self.problems)} failed" if self.problems else ""
        head = f"[{bar:.<{_BAR_COLUMNS}}] {self.done}/{self._files}, {size_text(sent)} of {size_text(self._total_bytes)}{failed}  "
        # One column stays free: a terminal would begin a new line after the last.
        self._screen.show_passing(fitted(head + one_line(path), shutil.get_terminal_size().columns - 1))


def size_text(size_bytes: int) -> str:
    """A size for people: `3.4 MB`."""
    size = float(size_bytes)
    for unit in _UNITS:
        if size < 1000 or unit == _UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError(size_bytes)
