"""How long a measurement takes."""

from typing import NamedTuple


class Scale(NamedTuple):
    """The size of a run of the benchmarks.

    rounds: how often each of two sides is measured, in turns. round_seconds: one such measurement. streams: open at a time where a
    crowd is wanted. streams_max, streams_step: how far and how fast the crowd is raised. repetitions: of what is done one by one.
    """

    rounds: int
    round_seconds: float
    streams: int
    streams_max: int
    streams_step: int
    repetitions: int


FULL = Scale(rounds=9, round_seconds=0.8, streams=100, streams_max=600, streams_step=50, repetitions=400)
QUICK = Scale(rounds=1, round_seconds=0.5, streams=10, streams_max=20, streams_step=10, repetitions=30)
