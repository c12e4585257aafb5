"""A web page with a chat: the browser asks this app, the app asks the assistant, and the answer goes to the browser as server-sent events.

Start the server with `make serve`, then run `python examples/fastapi_app/app.py` with the packages `fastapi`, `uvicorn` and `openai`
installed, and open the address that it prints. ASSISTANTS_BASE_URL names the server when it listens elsewhere than on port 8000; PORT is
the app's own port, 8001 when it is not set.

The key of the assistant's server stays in this app: browsers never see it.
"""

import os
import warnings
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from openai import AsyncOpenAI, OpenAIError
from pydantic import BaseModel, Field

# The package warns that OpenAI has switched its own service off. This server goes on.
warnings.filterwarnings("ignore", category=DeprecationWarning)


class Question(BaseModel):
    """What the browser sends. A real app keeps the id of the thread in the session of its user, so that nobody can name another's."""

    text: str = Field(min_length=1, max_length=10_000)
    thread_id: str | None = None


@asynccontextmanager
async def lifespan(app):
    """One client and one assistant for all requests."""
    async with AsyncOpenAI(
        base_url=os.environ.get("ASSISTANTS_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("ASSISTANTS_API_KEY", "anything"),
    ) as client:
        app.state.client = client
        app.state.assistant = await client.beta.assistants.create(model="gpt-4o", instructions="Answer in one or two short sentences.")
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/")
def page():
    return FileResponse(Path(__file__).with_name("page.html"))


@app.post("/answers", response_class=EventSourceResponse)
async def answer(question: Question, request: Request):
    """Events: `thread` with the id to go on with, `text` for each piece of the answer, then `done`, or `error` with what went wrong."""
    threads = request.app.state.client.beta.threads
    try:
        thread_id = question.thread_id or (await threads.create()).id
        await threads.messages.create(thread_id=thread_id, role="user", content=question.text)
        yield ServerSentEvent(event="thread", data=thread_id)
        async with threads.runs.stream(thread_id=thread_id, assistant_id=request.app.state.assistant.id) as stream:
            async for text in stream.text_deltas:
                yield ServerSentEvent(event="text", data=text)
            run = await stream.get_final_run()
    except OpenAIError as exc:
        yield ServerSentEvent(event="error", data=str(exc))
        return
    if run.status == "completed":
        yield ServerSentEvent(event="done", data=run.usage.total_tokens)
    else:
        yield ServerSentEvent(event="error", data=f"The run ended as {run.status}.")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8001")))
