"""Scenarios of runs that are polled: how they end, the lock of the thread, cancelling."""

from typing import Any

import openai

from tests.conformance.sdk_scenarios.client import Sdk, each, plain, refusal, settled, text_of


async def started(sdk: Sdk, question: str, **assistant: Any) -> tuple[Any, Any]:
    """A new assistant, and a thread with one question."""
    created = await settled(sdk.client.beta.assistants.create(**{"model": "scripted", **assistant}))
    thread = await settled(sdk.client.beta.threads.create(messages=[{"role": "user", "content": question}]))
    return created, thread


async def run_is_polled_to_its_end(sdk: Sdk) -> None:
    assistant, thread = await started(sdk, "Hello there", instructions="Be brief.")
    runs = sdk.client.beta.threads.runs
    run = await settled(
        runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id, additional_messages=[{"role": "user", "content": "Bye"}])
    )
    assert run.status == "completed"
    assert run.usage.total_tokens == run.usage.prompt_tokens + run.usage.completion_tokens > 0
    assert (run.expires_at, run.instructions, run.model) == (None, "Be brief.", "scripted")
    assert plain(await settled(runs.retrieve(run.id, thread_id=thread.id))) == plain(run)

    messages = [message async for message in each(sdk.client.beta.threads.messages.list(thread.id, order="asc"))]
    assert [text_of(message) for message in messages] == ["Hello there", "Bye", "You said: Bye"]
    assert (messages[2].run_id, messages[2].assistant_id) == (run.id, assistant.id)
    of_run = await settled(sdk.client.beta.threads.messages.list(thread.id, run_id=run.id))
    assert [message.id for message in of_run.data] == [messages[2].id]

    steps = [step async for step in each(runs.steps.list(run.id, thread_id=thread.id))]
    assert [(step.type, step.status) for step in steps] == [("message_creation", "completed")]
    assert steps[0].step_details.message_creation.message_id == messages[2].id
    assert plain(steps[0].usage) == plain(run.usage)
    assert plain(await settled(runs.steps.retrieve(steps[0].id, thread_id=thread.id, run_id=run.id))) == plain(steps[0])
    assert [listed.id async for listed in each(runs.list(thread.id))] == [run.id]
    assert (await settled(runs.update(run.id, thread_id=thread.id, metadata={"kept": "yes"}))).metadata == {"kept": "yes"}


async def thread_and_run_are_created_in_one_call(sdk: Sdk) -> None:
    assistant = await settled(sdk.client.beta.assistants.create(model="scripted"))
    question = {"messages": [{"role": "user", "content": "Hi"}]}
    run = await settled(sdk.client.beta.threads.create_and_run_poll(assistant_id=assistant.id, thread=question))
    assert run.status == "completed"
    messages = await settled(sdk.client.beta.threads.messages.list(run.thread_id))
    assert text_of(messages.data[0]) == "You said: Hi"


async def provider_error_fails_the_run(sdk: Sdk) -> None:
    assistant, thread = await started(sdk, "Go", model="refuses")
    run = await settled(sdk.client.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id))
    assert (run.status, run.last_error.code) == ("failed", "rate_limit_exceeded")
    assert run.failed_at is not None
    assert run.completed_at is None


async def completion_cap_leaves_the_run_incomplete(sdk: Sdk) -> None:
    assistant, thread = await started(sdk, "Go", model="wordy")
    runs = sdk.client.beta.threads.runs
    run = await settled(runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id, max_completion_tokens=256))
    assert (run.status, run.incomplete_details.reason) == ("incomplete", "max_completion_tokens")
    message = (await settled(sdk.client.beta.threads.messages.list(thread.id))).data[0]
    assert text_of(message) == "word " * 256
    assert (message.status, message.incomplete_details.reason) == ("incomplete", "max_tokens")


async def active_run_locks_its_thread_until_it_is_cancelled(sdk: Sdk) -> None:
    assistant, thread = await started(sdk, "Go", model="stalls")
    threads, runs = sdk.client.beta.threads, sdk.client.beta.threads.runs
    run = await settled(runs.create(thread_id=thread.id, assistant_id=assistant.id))
    assert run.status == "queued"
    error = await refusal(lambda: threads.messages.create(thread_id=thread.id, role="user", content="More"), openai.BadRequestError)
    assert error.body["message"] == f"Can't add messages to {thread.id} while a run {run.id} is active."
    error = await refusal(lambda: runs.create(thread_id=thread.id, assistant_id=assistant.id), openai.BadRequestError)
    assert error.body["message"] == f"Thread {thread.id} already has an active run {run.id}."

    assert (await settled(runs.cancel(run.id, thread_id=thread.id))).status == "cancelling"
    cancelled = await settled(runs.poll(run.id, thread_id=thread.id))
    assert cancelled.status == "cancelled"
    assert cancelled.cancelled_at is not None
    error = await refusal(lambda: runs.cancel(run.id, thread_id=thread.id), openai.BadRequestError)
    assert error.body["message"] == "Cannot cancel run with status 'cancelled'."
    assert (await settled(threads.messages.create(thread_id=thread.id, role="user", content="More"))).role == "user"


SCENARIOS = [
    run_is_polled_to_its_end,
    thread_and_run_are_created_in_one_call,
    provider_error_fails_the_run,
    completion_cap_leaves_the_run_incomplete,
    active_run_locks_its_thread_until_it_is_cancelled,
]
