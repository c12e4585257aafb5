"""Identifiers have the shapes that the hosted API used, and nobody can guess one."""

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from mini_assistant import ids


@pytest.mark.parametrize("prefix", ["asst", "thread", "msg", "run", "step", "call"])
def test_an_id_is_its_prefix_and_24_letters_or_digits(prefix: str) -> None:
    # Some bytes of the system are skipped, so that a few of these ids take more of them than the others.
    assert all(re.fullmatch(rf"{prefix}_[A-Za-z0-9]{{24}}", ids.new_id(prefix)) for _ in range(5000))


def test_request_ids_are_32_lower_case_hex_digits() -> None:
    assert re.fullmatch(r"req_[0-9a-f]{32}", ids.new_request_id())


def test_ids_differ() -> None:
    assert len({ids.new_id("msg") for _ in range(20_000)}) == 20_000
    assert len({ids.new_request_id() for _ in range(20_000)}) == 20_000


def test_every_letter_is_about_as_frequent_as_any_other() -> None:
    counts = Counter("".join(ids.new_id("x")[2:] for _ in range(20_000)))

    # 480,000 letters, 7,742 of each: 10 % is nine standard deviations, and the bias of a plain modulo would be 25 %.
    assert len(counts) == 62
    assert min(counts.values()) > 7742 * 0.9
    assert max(counts.values()) < 7742 * 1.1


def test_ids_made_by_several_threads_differ() -> None:
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: [ids.new_id("msg") for _ in range(5000)], range(4)))

    assert len({name for part in made for name in part}) == 20_000
