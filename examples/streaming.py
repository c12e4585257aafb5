"""What a stream tells beside the words: a handler with a method for each kind of event, as the SDK has it.

Start the server with `make serve`, then run `python examples/streaming.py "Your question"` with the package `openai` installed.
ASSISTANTS_BASE_URL names the server when it listens elsewhere than on port 8000.
"""

import os
import sys
import warnings

from openai import AssistantEventHandler, OpenAI

# The package warns that OpenAI has switched its own service off. This server goes on.
warnings.filterwarnings("ignore", category=DeprecationWarning)

question = sys.argv[1] if len(sys.argv) > 1 else "What is the Moon?"
client = OpenAI(
    base_url=os.environ.get("ASSISTANTS_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("ASSISTANTS_API_KEY", "anything"),
)


class Printer(AssistantEventHandler):
    """Prints what happens. Methods that are not defined here do nothing."""

    def on_event(self, event):
        """Every event, as the API sends it; the methods below are called for what is in it."""
        if event.event.startswith("thread.run.") and not event.event.startswith("thread.run.step."):
            print(f"[{event.event}]")

    def on_run_step_created(self, run_step):
        print(f"[step: {run_step.type}]")

    def on_text_delta(self, delta, snapshot):
        """A piece of the answer, and the answer so far."""
        print(delta.value, end="", flush=True)

    def on_text_done(self, text):
        print()


assistant = client.beta.assistants.create(model="gpt-4o", instructions="Answer in one or two short sentences.")
thread = client.beta.threads.create(messages=[{"role": "user", "content": question}])
with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id, event_handler=Printer()) as stream:
    stream.until_done()
    run = stream.get_final_run()

if run.status != "completed":
    sys.exit(f"The run ended as {run.status}: {run.last_error or run.incomplete_details}")
print(f"{run.usage.prompt_tokens} tokens read, {run.usage.completion_tokens} written")
