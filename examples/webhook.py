"""A webhook: this program is called when a run has ended, instead of asking for it again and again.

Start the server with MINI_ASSISTANT_PRIVATE_ADDRESSES=true, because this program listens on the same machine, then run
`python examples/webhook.py "Your question"` with the package `openai` installed. ASSISTANTS_BASE_URL names the server when it listens
elsewhere than on port 8000.
"""

import os
import queue
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from openai import InvalidWebhookSignatureError, OpenAI

# The package warns that OpenAI has switched its own service off. This server goes on.
warnings.filterwarnings("ignore", category=DeprecationWarning)

client = OpenAI(
    base_url=os.environ.get("ASSISTANTS_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("ASSISTANTS_API_KEY", "anything"),
)
question = sys.argv[1] if len(sys.argv) > 1 else "What is the Moon made of?"
events = queue.Queue()


class Receiver(BaseHTTPRequestHandler):
    """Takes the calls. A real one remembers `webhook-id` and leaves out what it has had already."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            events.put(client.webhooks.unwrap(body, self.headers, secret=webhook["secret"]))
            self.send_response(204)
        except InvalidWebhookSignatureError:
            self.send_response(400)
        self.end_headers()

    def log_message(self, *_arguments):
        """Say nothing about each call."""


receiver = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
threading.Thread(target=receiver.serve_forever, daemon=True).start()

# The secret is told only here: keep it, the calls are signed with it.
webhook = client.post(
    "/webhooks",
    body={"url": f"http://127.0.0.1:{receiver.server_port}/", "events": ["run.completed", "run.failed", "run.incomplete", "run.expired"]},
    cast_to=object,
)
try:
    assistant = client.beta.assistants.create(model="gpt-4o", instructions="Answer in one sentence.")
    thread = client.beta.threads.create(messages=[{"role": "user", "content": question}])
    run = client.beta.threads.runs.create(thread_id=thread.id, assistant_id=assistant.id)
    event = events.get(timeout=600)
    while event.data.id != run.id:  # another run of the same project
        event = events.get(timeout=600)
finally:
    client.delete(f"/webhooks/{webhook['id']}", cast_to=object)
    receiver.shutdown()
    receiver.server_close()

print(f"Called for {event.type}")
if event.type != "run.completed":
    sys.exit(f"The run ended as {event.data.status}")
answer = client.beta.threads.messages.list(thread.id, run_id=run.id).data[0]
print(answer.content[0].text.value)
