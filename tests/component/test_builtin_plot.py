"""Plots of the built-in model. It does so without its weights, so these tests need none of its packages."""

import dataclasses
from typing import Any

import openai
import pytest

from mini_assistant.models.builtin_plot import is_for_a_plot
from mini_assistant.settings import Settings
from tests.conformance.conversations import messages_of, new_assistant, stopped, thread_saying
from tests.sandboxed import why_not

CODE_INTERPRETER: Any = {"type": "code_interpreter"}
SALES = b"month,region,revenue\n2024-01,north,3\n2024-01,south,4\n2024-02,north,5\n2024-02,south,6\n"

pytestmark = pytest.mark.skipif(bool(why_not("process")), reason="no sandbox runs code here")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A server whose every model is the built-in one."""
    return dataclasses.replace(settings, openai_base_url="", sandbox="process", sandbox_pool_sessions=0)


async def plotted(sdk: openai.AsyncOpenAI, text: str, files: dict[str, bytes]) -> Any:
    """The message of a run that was asked for a plot."""
    uploaded = [await sdk.files.create(file=(name, content), purpose="assistants") for name, content in files.items()]
    resources: Any = {"code_interpreter": {"file_ids": [file.id for file in uploaded]}}
    assistant = await new_assistant(sdk, tools=[CODE_INTERPRETER], tool_resources=resources)
    thread = await thread_saying(sdk, text)
    run = await stopped(sdk, await sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id))
    assert run.status == "completed", run.last_error
    [message] = await messages_of(sdk, run)
    return message


async def test_a_table_is_plotted(sdk: openai.AsyncOpenAI) -> None:
    figure, text = (await plotted(sdk, "Plot the revenue by month.", {"sales.csv": SALES})).content
    png = (await sdk.files.content(figure.image_file.file_id)).content
    assert png.startswith(b"\x89PNG")
    assert text.text.value == "The figure shows north, south by month, from sales.csv."


@pytest.mark.parametrize(
    ("files", "answer"),
    [
        ({}, "There is no table (.csv or .xlsx) to plot."),
        ({"names.csv": b"name\nAnna\n"}, "names.csv has no column of numbers to plot."),
        ({"broken.xlsx": b"no archive"}, "I could not plot it: "),
    ],
)
async def test_what_cannot_be_plotted_is_said(files: dict[str, bytes], answer: str, sdk: openai.AsyncOpenAI) -> None:
    [text] = (await plotted(sdk, "Please draw a chart.", files)).content
    assert text.text.value.startswith(answer)


@pytest.mark.parametrize(
    "text", ["Plot it", "please chart the sales", "Can you draw the revenue?", "Make me a bar chart of it", "Show a plot"]
)
def test_requests_for_a_plot(text: str) -> None:
    assert is_for_a_plot(text)


@pytest.mark.parametrize(
    "text", ["What is the plot of Hamlet?", "Is there a chart in it?", "How many plots are sold?", "", "Plotinus lived when?"]
)
def test_what_only_speaks_of_plots(text: str) -> None:
    assert not is_for_a_plot(text)
