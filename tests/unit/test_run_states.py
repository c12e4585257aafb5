"""The table of a run's statuses: where a walk may lead, and which fields each step sets."""

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_assistant.assistants.schema import ToolResources
from mini_assistant.runs.schema import (
    CalledFunction,
    PendingToolCalls,
    RequiredAction,
    RequiredToolCall,
    Run,
    RunStatus,
    TruncationStrategy,
    Usage,
)
from mini_assistant.runs.states import ACTIVE, ALLOWED, TERMINAL, with_status

TIMES = {"in_progress": "started_at", "cancelled": "cancelled_at", "failed": "failed_at", "completed": "completed_at"}
ACTION = RequiredAction(submit_tool_outputs=PendingToolCalls([RequiredToolCall(id="call_1", function=CalledFunction("f", "{}"))]))


def new_run() -> Run:
    return Run(
        id="run_1",
        created_at=100,
        assistant_id="asst_1",
        thread_id="thread_1",
        status="queued",
        expires_at=700,
        model="m",
        instructions=None,
        tools=[],
        tool_resources=ToolResources(),
        metadata={"a": "b"},
        temperature=0.0,
        top_p=1.0,
        reasoning_effort=None,
        max_completion_tokens=None,
        max_prompt_tokens=None,
        truncation_strategy=TruncationStrategy("auto"),
        response_format="auto",
        tool_choice="auto",
        parallel_tool_calls=True,
    )


def test_the_table_names_every_status_of_the_api() -> None:
    statuses = set(RunStatus.__args__)
    assert set(ALLOWED) == statuses
    assert set().union(*ALLOWED.values()) <= statuses
    assert statuses - set().union(*ALLOWED.values()) == set(), "every status can be reached; `queued` again after tool outputs"
    assert statuses == ACTIVE | TERMINAL
    assert not ACTIVE & TERMINAL
    assert frozenset({"completed", "incomplete", "failed", "cancelled", "expired"}) == TERMINAL


def test_whoever_is_cancelling_ends_as_cancelled_and_nowhere_else() -> None:
    assert ALLOWED["cancelling"] == {"cancelled"}
    assert [status for status, following in ALLOWED.items() if "cancelled" in following] == ["cancelling"]


def test_every_active_run_can_be_cancelled_and_can_come_to_an_end() -> None:
    for status in ACTIVE - {"cancelling"}:
        assert {"cancelling", "expired"} <= ALLOWED[status]
    assert all(not ALLOWED[status] for status in TERMINAL)


def test_only_a_worker_completes_a_run_and_only_after_it_has_begun() -> None:
    for ending in ("completed", "incomplete", "failed"):
        assert [status for status, following in ALLOWED.items() if ending in following] == ["in_progress"]


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_walk_through_the_table(data: st.DataObject) -> None:
    run, at = new_run(), 100
    while ALLOWED[run.status]:
        to = data.draw(st.sampled_from(sorted(ALLOWED[run.status])))
        at += data.draw(st.integers(0, 5))
        changes: dict[str, Any] = {"required_action": ACTION} if to == "requires_action" else {}
        changes |= {"usage": Usage(1, 2, 3)} if to in TERMINAL and data.draw(st.booleans()) else {}
        before, run = run, with_status(run, to, at, changes)
        assert run.status == to
        assert run.required_action == (ACTION if to == "requires_action" else None)
        for status, field in TIMES.items():
            assert getattr(run, field) == (at if status == to else getattr(before, field)), field
        assert run.expires_at == (None if to in TERMINAL - {"expired"} else 700), "never extended"
        told = {"status", "required_action", "expires_at", *TIMES.values(), *changes}
        assert without(before, told) == without(run, told), "nothing else changes"
    assert run.status in TERMINAL
    assert [field for status, field in TIMES.items() if status in TERMINAL and getattr(run, field) is not None] == (
        [TIMES[run.status]] if run.status in TIMES else []
    )


def without(run: Run, fields: set[str]) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(run).items() if name not in fields}


def test_the_given_run_is_left_as_it_is() -> None:
    run = new_run()
    with_status(run, "expired", 200, {"usage": Usage()})
    assert run == new_run()
