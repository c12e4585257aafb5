"""LlamaIndex's client of assistants: an agent whose tool is a Python function, and whose memory is a thread of the server.

Start the server with a model that can call tools (the built-in one cannot), then run
`python examples/llama_index_assistant.py "Your question"` with the package `llama-index-agent-openai` installed. Its last release, 0.4.12,
goes with `llama-index-core` 0.12 and `openai` 1.x. ASSISTANTS_BASE_URL names the server when it listens elsewhere than on port 8000.
"""

import json
import os
import sys
import warnings

from llama_index.agent.openai import OpenAIAssistantAgent
from llama_index.core.tools import FunctionTool

# The SDK warns that OpenAI has switched its own service off. This server goes on. LlamaIndex's own warning cannot be switched off.
warnings.filterwarnings("ignore", category=DeprecationWarning)

# LlamaIndex makes a client of the SDK by itself, and that takes these two from the environment.
os.environ["OPENAI_BASE_URL"] = os.environ.get("ASSISTANTS_BASE_URL", "http://127.0.0.1:8000/v1")
os.environ["OPENAI_API_KEY"] = os.environ.get("ASSISTANTS_API_KEY", "anything")


def get_weather(city: str) -> str:
    """The weather of a city at this moment."""
    print(f"LlamaIndex calls get_weather({city!r})")
    return json.dumps({"city": city, "sky": "clear", "temperature_celsius": 7})


question = sys.argv[1] if len(sys.argv) > 1 else "What is the weather in Oslo?"
agent = OpenAIAssistantAgent.from_new(
    name="Weather",
    instructions="Answer in one sentence.",
    tools=[FunctionTool.from_defaults(get_weather)],
    model="gpt-4o",
)
print(agent.chat(question))
print(agent.chat("Thank you."))

# What was said is in the thread, on the server.
for message in agent.chat_history:
    print(f"{message.role.value}: {message.content}")
