"""Tools of an MCP server: the model calls them through the assistant's server, and this program approves each call.

Run `python examples/mcp.py https://your.server/mcp "Your question"` with the package `openai` installed and a model that can call tools.
A server on this machine can be used when mini-assistant was started with MINI_ASSISTANT_PRIVATE_ADDRESSES=true. ASSISTANTS_BASE_URL names
mini-assistant when it listens elsewhere than on port 8000; MCP_TOKEN is a key of the MCP server, if it needs one.
"""

import os
import sys
import warnings

from openai import OpenAI

# The package warns that OpenAI has switched its own service off. This server goes on.
warnings.filterwarnings("ignore", category=DeprecationWarning)

if len(sys.argv) < 2:
    sys.exit(__doc__)
question = sys.argv[2] if len(sys.argv) > 2 else "Which tools do you have?"
client = OpenAI(
    base_url=os.environ.get("ASSISTANTS_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("ASSISTANTS_API_KEY", "anything"),
)
mcp_server = {"type": "mcp", "server_label": "docs", "server_url": sys.argv[1], "require_approval": "always"}
if token := os.environ.get("MCP_TOKEN"):
    mcp_server["headers"] = {"Authorization": f"Bearer {token}"}

# The server is named on the run, so that its key is not kept with the assistant.
assistant = client.beta.assistants.create(model="gpt-4o", instructions="Answer in one sentence.")
thread = client.beta.threads.create(messages=[{"role": "user", "content": question}])
run = client.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id, tools=[mcp_server])

while run.status == "requires_action":
    decisions = []
    for call in run.required_action.submit_tool_outputs.tool_calls:
        print(f"Approved: {call.function.name}({call.function.arguments})")
        decisions.append({"tool_call_id": call.id, "output": "approve"})
    run = client.beta.threads.runs.submit_tool_outputs_and_poll(run_id=run.id, thread_id=thread.id, tool_outputs=decisions)

if run.status != "completed":
    sys.exit(f"The run ended as {run.status}: {run.last_error or run.incomplete_details}")
answer = client.beta.threads.messages.list(thread.id, run_id=run.id).data[0]
print(answer.content[0].text.value)
