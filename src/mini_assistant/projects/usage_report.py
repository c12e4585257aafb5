"""What `mini-assistant usage` prints."""

from typing import Literal

import msgspec

from mini_assistant.projects.usage import UsageDay

_HEADINGS = (
    "date",
    "project",
    "prompt tokens",
    "completion tokens",
    "runs",
    "tool calls",
    "sandbox seconds",
    "storage bytes",
    "vector bytes",
)
_TEXTS = 2  # columns; the others are numbers


class UsageReport(msgspec.Struct):
    """Days of projects."""

    data: list[UsageDay]
    object: Literal["list"] = "list"

    def json(self) -> str:
        """The report as one JSON object."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()

    def text(self) -> str:
        """The report for a person: a table with a line for each day of a project."""
        rows = [_HEADINGS, *map(_cells, self.data)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(_aligned(row, widths)).rstrip() for row in rows)


def _cells(day: UsageDay) -> tuple[str, ...]:
    numbers = (day.prompt_tokens, day.completion_tokens, day.runs, day.tool_calls)
    return (day.date, day.project_id, *map(str, numbers), f"{day.sandbox_seconds:.1f}", str(day.storage_bytes), str(day.vector_bytes))


def _aligned(row: tuple[str, ...], widths: list[int]) -> list[str]:
    return [cell.ljust(width) if place < _TEXTS else cell.rjust(width) for place, (cell, width) in enumerate(zip(row, widths, strict=True))]
