"""The sandboxes that the contract is tried on, and where each is known to behave in another way."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.jupyter_gateway import TOKEN, jupyter_gateway
from tests.opensandbox_stand_in import KEY, running_stand_in
from tests.sandboxed import why_not


class Backend(NamedTuple):
    """A backend under test.

    differences: by the name of a test, what happens instead. Such a test is skipped with this text. Without one, a test holds.
    """

    name: str
    differences: Mapping[str, str]


_NO_PROCESSES = "code cannot start processes"
_NO_THREADS = "code cannot start threads"
_NO_SIGNALS = "there are no signals"
_TOLD_LATE = "what a kernel prints is told by a thread of its own, which does not run while a pattern is searched"
_READ_ELSEWHERE = "what programs write is read by a thread of the kernel, so its place among the code's own output is chance"
_LEFT_OUT_WHOLE = "an event that is too long is left out whole, with its text"
_STOPPED_IS_LOST = "code is stopped by ending its interpreter, so its variables are lost"

BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("process", {}),
        Backend(
            "wasm",
            {
                "test_an_interrupt_keeps_the_variables": _STOPPED_IS_LOST,
                "test_a_time_limit_keeps_the_variables_where_code_heeds_it": _STOPPED_IS_LOST,
                "test_code_that_swallows_signals_is_stopped": _NO_SIGNALS,
                "test_what_a_timer_does_is_its_own": _NO_SIGNALS,
                "test_threads_go_on_between_calls": _NO_THREADS,
                "test_printing_between_calls_is_bounded": _NO_THREADS,
                "test_child_processes_end_with_the_session": _NO_PROCESSES,
                "test_a_fork_that_comes_to_the_end_of_the_code_ends": _NO_PROCESSES,
                "test_programs_that_code_starts_write_in_order": _NO_PROCESSES,
                "test_fifos_and_devices_are_no_files": "code cannot make any",
                "test_a_crash_loses_the_session_but_not_its_files[segfault]": "code cannot reach memory that is not its own",
            },
        ),
        Backend(
            "unsafe",
            {
                "test_many_files_are_stopped": "the folder is measured now and then, and not before each file",
            },
        ),
        Backend(
            "jupyter",
            {
                "test_odd_errors_end_a_call_only[surrogate]": "the gateway ends the connection, and the session is lost",
                "test_exit_ends_the_call_only": "exit is an error, whose code is shown as the kernel shows it",
                "test_a_figure_as_last_expression_is_shown_once": "the kernel shows it twice: as a value, and as an open figure",
                "test_running_code_is_interrupted[regex]": _TOLD_LATE,
                "test_programs_that_code_starts_write_in_order": _READ_ELSEWHERE,
                "test_a_crash_loses_the_session_but_not_its_files": "what is printed just before the end can be lost in the kernel",
                "test_what_a_timer_does_is_its_own": "a timer that outlives its call strikes the kernel, and the session may be lost",
                "test_bytes_that_are_no_text_are_replaced": "the kernel takes text only, or the bytes of its own descriptors",
                "test_a_fork_that_comes_to_the_end_of_the_code_ends": "it becomes a second kernel, and is waited for until the time limit",
                "test_memory_is_limited": "its container limits memory",
                "test_disk_is_limited": "its container limits the disk",
                "test_one_large_file_is_stopped": "its container limits the disk",
                "test_many_files_are_stopped": "its container limits the number of files",
                "test_child_processes_end_with_the_session": "they end with the container, or with the gateway",
                "test_nothing_is_left_of_a_killed_server": "its gateway is no process of the server, and ends idle kernels by itself",
            },
        ),
        Backend(
            "opensandbox",
            {
                "test_odd_errors_end_a_call_only[group]": "the kernel ends well with it, after it has shown it",
                "test_odd_errors_end_a_call_only[surrogate]": "halves of characters are replaced on the way to the kernel",
                "test_odd_errors_end_a_call_only[surrogate-in-error]": "what the kernel says of it is lost",
                "test_what_a_timer_does_is_its_own": "a timer that outlives its call strikes the kernel",
                "test_a_crash_loses_the_session_but_not_its_files": "what is printed just before the end is lost in the kernel",
                "test_a_figure_as_last_expression_is_shown_once": "the kernel shows it twice: as a value, and as an open figure",
                "test_figures_beyond_the_limits_are_left_out": _LEFT_OUT_WHOLE,
                "test_a_flood_of_output_is_bounded": _LEFT_OUT_WHOLE,
                "test_running_code_is_interrupted[regex]": _TOLD_LATE,
                "test_programs_that_code_starts_write_in_order": _READ_ELSEWHERE,
                "test_bytes_that_are_no_text_are_replaced": "the kernel takes text only, or the bytes of its own descriptors",
                "test_a_fork_that_comes_to_the_end_of_the_code_ends": "it becomes a second kernel, and is waited for until the time limit",
                "test_memory_is_limited": "its container limits memory",
                "test_child_processes_end_with_the_session": "they end with the container",
                "test_nothing_is_left_of_a_killed_server": "its containers are no processes of the server, and end by themselves",
            },
        ),
    )
}


WITH_SERVICES = ("jupyter", "opensandbox")
"""Backends whose service the tests start: a gateway, and a stand-in for the server of OpenSandbox."""


@contextlib.contextmanager
def running_backend(name: str) -> Iterator[Mapping[str, Any]]:
    """The settings of a backend, with the service that it needs; skips the test when that cannot run here."""
    if name == "jupyter":
        with jupyter_gateway() as url:
            yield {"sandbox": name, "sandbox_url": url, "sandbox_token": TOKEN}
    elif name == "opensandbox":
        with tempfile.TemporaryDirectory() as folder, running_stand_in(Path(folder)) as server:
            yield {"sandbox": name, "sandbox_url": server.url, "sandbox_token": KEY}
    else:
        yield {"sandbox": name}


def reason_to_skip(name: str) -> str:
    """What a backend lacks here, in its own words; empty when it works. A service that tests start themselves is not asked."""
    return "" if name in WITH_SERVICES else why_not(name)
