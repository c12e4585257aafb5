"""A conversation without streaming: ask, wait for the answer, ask again in the same thread, and read the thread back.

Start the server with `make serve`, then run `python examples/poll.py "A question" "Another one"` with the package `openai` installed.
ASSISTANTS_BASE_URL names the server when it listens elsewhere than on port 8000.
"""

import os
import sys
import warnings

from openai import OpenAI

# The package warns that OpenAI has switched its own service off. This server goes on.
warnings.filterwarnings("ignore", category=DeprecationWarning)

questions = sys.argv[1:] or ["What is the Moon?", "And how far away is it?"]
client = OpenAI(
    base_url=os.environ.get("ASSISTANTS_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("ASSISTANTS_API_KEY", "anything"),
)

assistant = client.beta.assistants.create(model="gpt-4o", instructions="Answer in one sentence.")
thread = client.beta.threads.create()

for question in questions:
    client.beta.threads.messages.create(thread_id=thread.id, role="user", content=question)
    # The SDK asks for the run until it has ended. The thread holds what was said before, so a question can refer to it.
    run = client.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id)
    if run.status != "completed":
        sys.exit(f"The run ended as {run.status}: {run.last_error or run.incomplete_details}")

# Iterating over a list gets further pages by itself.
for message in client.beta.threads.messages.list(thread.id, order="asc"):
    text = "".join(part.text.value for part in message.content if part.type == "text")
    print(f"{message.role}: {text}")
