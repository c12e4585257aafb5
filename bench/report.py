"""A row of the report, and how rows are printed."""

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """What was measured, in words and figures, beside the bound that was measured with it and the target that it should meet.

    is_ok: None where there is no target.
    """

    what: str
    measured: str
    bound: str
    target: str
    is_ok: bool | None


def at_least(what: str, ratio: float, target: float, *, measured: str, bound: str) -> Row:
    """A row whose target is the smallest share of the bound, such as 0.8."""
    return Row(what, f"{measured} = {ratio:.0%}", bound, f">= {target:.0%}", ratio >= target)


def at_most(what: str, value: float, target: float, *, unit: str, bound: str, note: str = "") -> Row:
    """A row whose target is the largest value. unit: as printed behind both."""
    return Row(what, f"{value:.3g}{unit}{note}", bound, f"<= {target:g}{unit}", value <= target)


def information(what: str, measured: str, bound: str = "") -> Row:
    """A row without a target, which explains another."""
    return Row(what, measured, bound, "", None)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of sorted values lie. Raises ValueError without values."""
    if not ordered:
        raise ValueError("nothing was measured")
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def median(values: Iterable[float]) -> float:
    """The middle value of rounds."""
    return statistics.median(values)


_WIDTHS = (44, 30, 30, 10)


def heading() -> str:
    """The line above the rows."""
    return _line("what", "measured", "bound in the same run", "target", "")


def line(row: Row) -> str:
    """A row as it is printed."""
    verdict = {True: "ok", False: "MISSED", None: ""}[row.is_ok]
    return _line(row.what, row.measured, row.bound, row.target, verdict)


def _line(*cells: str) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=False)]
    return "  ".join([*padded, *cells[len(_WIDTHS) :]]).rstrip()
