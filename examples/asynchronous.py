"""Several questions at the same time, with the asynchronous client: each has a thread of its own, and no answer waits for another.

Start the server with `make serve`, then run `python examples/asynchronous.py "A question" "Another one"` with the package `openai`
installed. ASSISTANTS_BASE_URL names the server when it listens elsewhere than on port 8000.
"""

import asyncio
import os
import sys
import warnings

from openai import AsyncOpenAI

# The package warns that OpenAI has switched its own service off. This server goes on.
warnings.filterwarnings("ignore", category=DeprecationWarning)


async def answer(client, assistant, question):
    """The text that the assistant answers, put together while it comes."""
    thread = await client.beta.threads.create(messages=[{"role": "user", "content": question}])
    async with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        text = "".join([piece async for piece in stream.text_deltas])
        run = await stream.get_final_run()
    if run.status != "completed":
        sys.exit(f"The run ended as {run.status}: {run.last_error or run.incomplete_details}")
    return text


async def main():
    questions = sys.argv[1:] or ["What is the Moon?", "What is the Sun?", "What is a comet?"]
    async with AsyncOpenAI(
        base_url=os.environ.get("ASSISTANTS_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("ASSISTANTS_API_KEY", "anything"),
    ) as client:
        assistant = await client.beta.assistants.create(model="gpt-4o", instructions="Answer in one sentence.")
        answers = await asyncio.gather(*(answer(client, assistant, question) for question in questions))
    for question, text in zip(questions, answers, strict=True):
        print(f"{question}\n  {text}")


asyncio.run(main())
