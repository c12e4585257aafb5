"""A first conversation: an assistant, a thread, a question, and the answer printed as it is written.

Start the server with `make serve`, then run `python examples/quickstart.py "Your question"` with the package `openai` installed.
ASSISTANTS_BASE_URL names the server when it listens elsewhere than on port 8000.
"""

import os
import sys
import warnings

from openai import OpenAI

# The package warns that OpenAI has switched its own service off. This server goes on.
warnings.filterwarnings("ignore", category=DeprecationWarning)

question = sys.argv[1] if len(sys.argv) > 1 else "What is the Moon?"
client = OpenAI(
    base_url=os.environ.get("ASSISTANTS_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("ASSISTANTS_API_KEY", "anything"),
)

assistant = client.beta.assistants.create(model="gpt-4o", instructions="Answer in one or two short sentences.")
thread = client.beta.threads.create()
client.beta.threads.messages.create(thread_id=thread.id, role="user", content=question)

with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
    for text in stream.text_deltas:
        print(text, end="", flush=True)
    print()
    run = stream.get_final_run()

if run.status != "completed":
    sys.exit(f"The run ended as {run.status}: {run.last_error or run.incomplete_details}")
