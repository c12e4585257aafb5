"""Code that the model writes and the server runs: from a CSV to a figure and a new CSV, both downloaded.

Start the server with a model that can call tools, then run `python examples/code_interpreter.py "Your task" [FOLDER]` with the package
`openai` installed. Without a folder a new one is made. ASSISTANTS_BASE_URL names the server when it listens elsewhere than on port 8000.

Without such a model, one that answers by `code_interpreter_script.json` shows the same: run `python -m mini_assistant.models.scripted
--script examples/code_interpreter_script.json` and give the address that it prints to the server as OPENAI_BASE_URL.
"""

import os
import sys
import tempfile
import warnings
from pathlib import Path

from openai import OpenAI

# The package warns that OpenAI has switched its own service off. This server goes on.
warnings.filterwarnings("ignore", category=DeprecationWarning)

SALES = "month,region,revenue\n" + "".join(
    f"2024-{month:02},{region},{revenue + 7 * month * month % 50}\n"
    for month in range(1, 13)
    for region, revenue in (("north", 120), ("south", 80), ("west", 100))
)
TASK = "Plot the revenue of each region by month. Then save the total and the mean of each region as summary.csv, and link it."

task = sys.argv[1] if len(sys.argv) > 1 else TASK
folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp(prefix="code-interpreter-"))
client = OpenAI(
    base_url=os.environ.get("ASSISTANTS_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("ASSISTANTS_API_KEY", "anything"),
)
shown_kind = ""


def show(kind, text):
    """Print a piece of text, under a headline when the piece before it was of another kind."""
    global shown_kind
    if text and kind != shown_kind:
        print(f"\n--- {kind}")
        shown_kind = kind
    print(text or "", end="", flush=True)


def show_call(call):
    """Print what is new of a call: a piece of its code, or what the code has put out."""
    show("code", call.input)
    for output in call.outputs or []:
        if output.type == "logs":
            show("logs", output.logs)
        elif output.image:
            show("figure", f"{output.image.file_id}\n")


def save(file_id):
    """Download a file under its own name, and say where it is."""
    path = folder / Path(client.files.retrieve(file_id).filename).name
    path.write_bytes(client.files.content(file_id).read())
    print(f"{path} has {path.stat().st_size} bytes")


sales = client.files.create(file=("sales.csv", SALES.encode()), purpose="assistants")
assistant = client.beta.assistants.create(
    model="gpt-4o",
    instructions="You analyse data with Python. Look at a file before you use it. Answer in a few words.",
    tools=[{"type": "code_interpreter"}],
    tool_resources={"code_interpreter": {"file_ids": [sales.id]}},
)
thread = client.beta.threads.create(messages=[{"role": "user", "content": task}])

with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
    for event in stream:
        if event.event == "thread.run.step.delta":
            details = event.data.delta.step_details
            for call in (details.tool_calls or []) if details and details.type == "tool_calls" else []:
                if call.type == "code_interpreter" and call.code_interpreter:
                    show_call(call.code_interpreter)
        elif event.event == "thread.message.delta":
            for part in event.data.delta.content or []:
                if part.type == "text" and part.text:
                    show("answer", part.text.value)
    run = stream.get_final_run()
    messages = stream.get_final_messages()

if run.status != "completed":
    sys.exit(f"The run ended as {run.status}: {run.last_error or run.incomplete_details}")
print("\n--- files")
folder.mkdir(parents=True, exist_ok=True)
for part in [part for message in messages for part in message.content]:
    if part.type == "image_file":
        save(part.image_file.file_id)
    for annotation in part.text.annotations if part.type == "text" else []:
        if annotation.type == "file_path":
            save(annotation.file_path.file_id)
