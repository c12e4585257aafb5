"""A function tool: the model asks for a call, this program makes it, and the model answers with the result.

Start the server with a model that can call tools (the built-in one cannot), then run `python examples/function_tool.py "Your question"`
with the package `openai` installed. ASSISTANTS_BASE_URL names the server when it listens elsewhere than on port 8000.
"""

import json
import os
import sys
import warnings

from openai import OpenAI

# The package warns that OpenAI has switched its own service off. This server goes on.
warnings.filterwarnings("ignore", category=DeprecationWarning)


def get_weather(city: str) -> str:
    """What a real program would look up."""
    return json.dumps({"city": city, "sky": "clear", "temperature_celsius": 7})


GET_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city at this moment.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

question = sys.argv[1] if len(sys.argv) > 1 else "What is the weather in Oslo?"
client = OpenAI(
    base_url=os.environ.get("ASSISTANTS_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("ASSISTANTS_API_KEY", "anything"),
)

assistant = client.beta.assistants.create(model="gpt-4o", instructions="Answer in one sentence.", tools=[GET_WEATHER])
thread = client.beta.threads.create(messages=[{"role": "user", "content": question}])
run = client.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id)

# The model may ask again after it has seen an output, and may ask for several calls at a time.
while run.status == "requires_action":
    outputs = []
    for call in run.required_action.submit_tool_outputs.tool_calls:
        print(f"The model calls {call.function.name}({call.function.arguments})")
        outputs.append({"tool_call_id": call.id, "output": get_weather(**json.loads(call.function.arguments))})
    run = client.beta.threads.runs.submit_tool_outputs_and_poll(run_id=run.id, thread_id=thread.id, tool_outputs=outputs)

if run.status != "completed":
    sys.exit(f"The run ended as {run.status}: {run.last_error or run.incomplete_details}")
answer = client.beta.threads.messages.list(thread.id, run_id=run.id).data[0]
print(answer.content[0].text.value)
