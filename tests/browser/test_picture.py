"""The picture that the README shows: a conversation with file search, code and a figure, had in the page itself.

`readme.png` among the screenshots; docs/images/playground.png is a copy of it.
"""

import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import watch
from tests.browser.playground_server import playground_server

PLAN = """# Plan for the first half-year

The target for the first half-year is a revenue of 262,000 euros, with 40,000 euros in January.
Marketing may grow only when the revenue of a month is above 45,000 euros.
"""
SALES = b"month,revenue\nJan,41\nFeb,42\nMar,44\nApr,43\nMay,47\nJun,49\n"
CODE = """import pandas as pd
import matplotlib.pyplot as plt

sales = pd.read_csv("/mnt/data/sales.csv")
sales.plot.bar("month", "revenue", figsize=(7.4, 1.9), color="teal", legend=False, xlabel="", rot=0)
plt.ylabel("thousand euros")
plt.tight_layout()
plt.show()"""
ANSWER = """The six months brought **266,000 euros**, 4,000 more than planned.【4:0†plan.md】 \
Marketing may grow: May and June are above 45,000.【4:0†plan.md】

| | planned | reached |
|---|---:|---:|
| First half-year | 262,000 | **266,000** |
"""
QUESTION = "Plot sales.csv by month. Did we reach the target of our plan?"


@pytest.mark.usefixtures("process_sandbox")
@pytest.mark.heavy
def test_a_conversation_worth_a_picture(browser: Browser, tmp_path: Path, shots: Path) -> None:
    with playground_server(tmp_path / "data", MINI_ASSISTANT_SANDBOX="process") as server:
        searches = {"name": "file_search", "arguments": json.dumps({"queries": ["revenue target first half-year"]})}
        computes = {"name": "code_interpreter", "arguments": json.dumps({"code": CODE})}
        server.script(
            {"contains": "Plot", "after_tool": False, "steps": [{"do": "tool_calls", "calls": [searches, computes]}]},
            {"contains": "Plot", "steps": [{"do": "text", "text": ANSWER}]},
        )
        sdk = server.sdk
        store = sdk.vector_stores.create(name="Plans")
        plan = sdk.files.create(file=("plan.md", PLAN.encode()), purpose="assistants")
        sdk.vector_stores.files.create_and_poll(file_id=plan.id, vector_store_id=store.id, poll_interval_ms=100)
        sales = sdk.files.create(file=("sales.csv", SALES), purpose="assistants")
        assistant = sdk.beta.assistants.create(
            name="Analyst",
            model="scripted",
            tools=[{"type": "file_search"}, {"type": "code_interpreter"}],
            tool_resources={"file_search": {"vector_store_ids": [store.id]}, "code_interpreter": {"file_ids": [sales.id]}},
        )
        context = browser.new_context(viewport={"width": 1120, "height": 1360}, base_url=server.address, locale="en-GB")
        context.set_default_timeout(60_000)
        errors: list[str] = []
        page = context.new_page()
        watch(page, errors)
        page.goto("/playground/#/threads/new")
        page.get_by_role("combobox", name="Assistant").select_option(assistant.id)
        page.get_by_role("textbox", name="Message").fill(QUESTION)
        page.keyboard.press("Enter")
        expect(page.locator("main").get_by_text("266,000 euros").first).to_be_visible(timeout=60_000)
        expect(page.locator("main img").last).to_be_visible(timeout=60_000)
        expect(page.locator("main").get_by_text("completed", exact=True)).to_be_visible(timeout=60_000)
        page.mouse.move(2, 1350)
        page.screenshot(path=shots / "readme.png")
        assert errors == []
        context.close()
