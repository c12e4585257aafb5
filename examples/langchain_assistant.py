"""LangChain's client of assistants: an agent whose tool is a Python function, run by LangChain's own loop.

Start the server with a model that can call tools (the built-in one cannot), then run
`python examples/langchain_assistant.py "Your question"` with the package `langchain-community` (0.4.2) and `openai` installed.
ASSISTANTS_BASE_URL names the server when it listens elsewhere than on port 8000.
"""

import json
import os
import sys
import warnings

from langchain_classic.agents import AgentExecutor
from langchain_community.agents.openai_assistant import OpenAIAssistantV2Runnable
from langchain_core._api import LangChainBetaWarning
from langchain_core.tools import tool

# Both warn: LangChain of a class that is in beta, the SDK that OpenAI has switched its own service off. This server goes on.
warnings.filterwarnings("ignore", category=LangChainBetaWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning)

# LangChain makes clients of the SDK by itself, and they take these two from the environment.
os.environ["OPENAI_BASE_URL"] = os.environ.get("ASSISTANTS_BASE_URL", "http://127.0.0.1:8000/v1")
os.environ["OPENAI_API_KEY"] = os.environ.get("ASSISTANTS_API_KEY", "anything")


@tool
def get_weather(city: str) -> str:
    """The weather of a city at this moment."""
    print(f"LangChain calls get_weather({city!r})")
    return json.dumps({"city": city, "sky": "clear", "temperature_celsius": 7})


question = sys.argv[1] if len(sys.argv) > 1 else "What is the weather in Oslo?"
agent = OpenAIAssistantV2Runnable.create_assistant(
    name="Weather",
    instructions="Answer in one sentence.",
    tools=[get_weather],
    model="gpt-4o",
    as_agent=True,
    check_every_ms=250,
)
first = AgentExecutor(agent=agent, tools=[get_weather]).invoke({"content": question})
print(first["output"])

# The thread is kept by the server: a second question goes on in it.
second = agent.invoke({"content": "Thank you.", "thread_id": first["thread_id"]})
print(second.return_values["output"])
