"""Takes server-sent events apart into the contents of their `data:` lines, as the bytes arrive.

Only what model endpoints send is kept: other fields (`event:`, `id:`, `retry:`) and comments are skipped. Lines end with LF
or CRLF. The caller decides when an event is complete, because some servers forget the blank line between events.
"""

LINE_BYTES_MAX = 8 * 1024 * 1024


class LineTooLong(ValueError):
    """A line is longer than `LINE_BYTES_MAX`."""


class SseLines:
    """Bytes in, contents of `data:` lines out."""

    def __init__(self) -> None:
        # The beginning of the last line. It stays in parts until its end arrives, so that a long line that comes in many
        # small reads is not copied again for each of them.
        self._begun: list[bytes] = []
        self._begun_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The `data:` lines that are complete now; an empty item stands for the blank line that ends an event.

        Raises LineTooLong when the sender does not end a line.
        """
        # Nearly always a read is exactly one event; that case decides what a token costs.
        if not self._begun and data.startswith(b"data: ") and data.find(b"\n") == len(data) - 2 and data.endswith(b"\n"):
            return [data[6:-2], b""]
        if self._begun_bytes + len(data) > LINE_BYTES_MAX and self._is_too_long(data):
            raise LineTooLong
        lines = data.split(b"\n")
        if len(lines) > 1 and self._begun:
            lines[0] = b"".join(self._begun) + lines[0]
            self._begun = []
            self._begun_bytes = 0
        rest = lines.pop()
        if rest:
            self._begun.append(rest)
            self._begun_bytes += len(rest)
        contents: list[bytes] = []
        for line in lines:
            if line.startswith(b"data:"):
                contents.append(line[5:].strip())
            elif not line or line == b"\r":
                contents.append(b"")
        return contents

    def _is_too_long(self, data: bytes) -> bool:
        end = data.find(b"\n")
        return self._begun_bytes + (len(data) if end < 0 else end) > LINE_BYTES_MAX
