"""Fixtures of the browser tests: Debian's Chromium, a server process with a scripted model, and a page that must not complain.

Playwright's synchronous API keeps an event loop of its own running in this thread, so there are no async tests and fixtures here.
"""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from tests.browser.playground_server import PlaygroundServer, playground_server
from tests.sandboxed import why_not

WAIT_MS = 15_000


@pytest.hookimpl(tryfirst=True)  # before the groups are read
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a module share a browser and a server, so they stay in one process of the test run."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(f"browser-{item.path.stem}"))


# Of the package, not of the session: async tests of other packages could not run while this one's loop does.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium, as Debian packages it."""
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("there is no chromium here; Debian's package chromium has it")
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaygroundServer]:
    """A server without keys for the tests of a module; `server.script(...)` says what its model answers, `server.sdk` is the SDK."""
    del browser  # where there is none, no server is needed either
    with playground_server(tmp_path_factory.mktemp("playground")) as server:
        yield server


@pytest.fixture(autouse=True)
def _default_script(request: pytest.FixtureRequest) -> None:
    """Each test begins with a model that answers by its default, whatever an earlier one has told it."""
    if "server" in request.fixturenames:
        request.getfixturevalue("server").script()


@pytest.fixture
def context(browser: Browser, server: PlaygroundServer) -> Iterator[BrowserContext]:
    """A browser without a past, which may read and write the clipboard."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, base_url=server.address, locale="en-GB")
    context.set_default_timeout(WAIT_MS)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    yield context
    context.close()


@pytest.fixture
def page_errors() -> list[str]:
    """What the page has complained about: errors of its scripts and of the console. A test that provokes some takes them out."""
    return []


@pytest.fixture
def page(context: BrowserContext, page_errors: list[str]) -> Iterator[Page]:
    """A blank page whose errors fail the test."""
    page = context.new_page()
    watch(page, page_errors)
    yield page
    assert page_errors == []


@pytest.fixture
def playground(page: Page) -> Page:
    """The page, with the playground opened."""
    page.goto("/playground/")
    page.locator("main > :not(.loading)").first.wait_for()
    return page


@pytest.fixture
def process_sandbox() -> None:
    """As everywhere: skips a test where the sandbox `process` does not work. It is tried in a thread, which has no event loop yet."""
    with ThreadPoolExecutor(1) as thread:
        reason = thread.submit(why_not, "process").result()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def shots() -> Path:
    """The folder in which screenshots of the main views are kept: SCREENSHOTS_DIR, or build/screenshots."""
    folder = Path(os.environ.get("SCREENSHOTS_DIR", "build/screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def watch(page: Page, errors: list[str]) -> None:
    """Note the errors of a page. Answers of the API that are errors are none: the browser writes a line about each by itself."""

    def note(message: ConsoleMessage) -> None:
        is_answer = message.text.startswith("Failed to load resource") and "/v1/" in message.location["url"]
        if message.type == "error" and not is_answer:
            errors.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: errors.append(str(error)))
