"""A run outlives the line to it, and the server: this program follows a run, and goes on where it was when the server comes back.

Start the server with `make serve`, then run `python examples/reattach.py "Your question"` with the package `openai` installed. End the
server with `kill -9` while the answer is printed, and start it again. ASSISTANTS_BASE_URL names the server when it listens elsewhere than
on port 8000.
"""

import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
import uuid
import warnings

from openai import OpenAI

# The package warns that OpenAI has switched its own service off. This server goes on.
warnings.filterwarnings("ignore", category=DeprecationWarning)

BASE_URL = os.environ.get("ASSISTANTS_BASE_URL", "http://127.0.0.1:8000/v1")
API_KEY = os.environ.get("ASSISTANTS_API_KEY", "anything")
ATTEMPTS_MAX = 60


def events(run, last_event_id):
    """The events of a run that follow an id, from the first one without it: each as its id, its name and its data.

    The SDK does not show ids, so the frames are read here. Raises HTTPException or OSError when the line is cut.
    """
    url = f"{BASE_URL}/threads/{run.thread_id}/runs/{run.id}/events"
    headers = {"Authorization": f"Bearer {API_KEY}"} | ({"Last-Event-ID": last_event_id} if last_event_id else {})
    frame = {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        for line in response:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name:
                frame[name] = value
            elif frame and not value:  # an empty line ends a frame; one that begins with a colon only says that the line is alive
                yield frame.get("id"), frame["event"], frame["data"]
                frame = {}


question = sys.argv[1] if len(sys.argv) > 1 else "Tell me a long story about the Moon."
client = OpenAI(base_url=BASE_URL, api_key=API_KEY)
assistant = client.beta.assistants.create(model="gpt-4o")
run = client.beta.threads.create_and_run(
    assistant_id=assistant.id,
    thread={"messages": [{"role": "user", "content": question}]},
    # When the line is cut before the answer to this call is here, the SDK repeats it: with a key that makes no second run.
    extra_headers={"Idempotency-Key": str(uuid.uuid4())},
)

last_event_id = None
attempts = 0
is_over = False
while not is_over:
    try:
        for event_id, name, data in events(run, last_event_id):
            last_event_id, attempts = event_id or last_event_id, 0
            if name == "thread.message.delta":
                for part in json.loads(data)["delta"]["content"]:
                    print(part["text"]["value"] if part["type"] == "text" else "", end="", flush=True)
            elif name.startswith("thread.run.") and not name.startswith("thread.run.step."):
                print(f"[{name}]", flush=True)
            is_over = name == "done"
        reason = "The line was cut"
    except urllib.error.HTTPError as refusal:
        if refusal.code < 500:
            error = json.load(refusal)["error"]
            if error["code"] != "events_gone" or last_event_id is None:
                sys.exit(f"The run cannot be followed: {error['message']}")
            # The server was restarted in the middle of an answer. The pieces of it are lost, and the model writes it anew.
            print("\n--- The answer was lost; from the beginning", flush=True)
            last_event_id = None
            continue
        reason = f"The server answered {refusal.code}"
    except (http.client.HTTPException, OSError) as failure:
        reason = f"The server is not there ({type(failure).__name__})"
    if not is_over:
        attempts += 1
        if attempts == 1:
            print(f"\n--- {reason}; attaching again after event {last_event_id}", flush=True)
        if attempts > ATTEMPTS_MAX:
            sys.exit("The server did not come back.")
        time.sleep(1)
print()

run = client.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id)
if run.status != "completed":
    sys.exit(f"The run ended as {run.status}: {run.last_error or run.incomplete_details}")
