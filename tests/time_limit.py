"""Bounds a test in time, whatever it waits for: one that hangs fails, and the others go on."""

import signal
from collections.abc import Iterator
from types import FrameType

import pytest

TIME_LIMIT_SECONDS = 120.0
HEAVY_TIME_LIMIT_SECONDS = 1800.0


@pytest.fixture(autouse=True)
def time_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """Raises TimeoutError in a test that takes longer than two minutes, or half an hour when it is marked as heavy."""
    seconds = HEAVY_TIME_LIMIT_SECONDS if request.node.get_closest_marker("heavy") else TIME_LIMIT_SECONDS

    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"the test took longer than {seconds:g} seconds")

    earlier = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # and again, for whoever catches it and tries once more
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, earlier)
