"""The playground's frame: addresses, the key, light and dark, the keyboard, phones, what the policy forbids, and what axe finds.

The views are looked at as a whole here, each with something in it; what they do is tested in files of their own.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Route, expect

from tests.browser.conftest import WAIT_MS, watch
from tests.browser.playground_server import PlaygroundServer, playground_server

KEY = "a-key-of-the-browser-tests"
ANSWER = """Three things follow from the **notes**:

1. The sea is *cold*, as `sea.txt` says.
2. It is also deep.

| sea | depth |
|---|---|
| North Sea | 95 m |
| Arctic Ocean | 1,205 m |

```python
def depth(sea: str) -> int:
    # in metres
    return DEPTHS[sea]
```

> It is so. 【4:0†sea.txt】"""
ASKS = {"name": "file_search", "arguments": '{"queries": ["how deep is the sea"]}'}
COMPUTES = {"name": "code_interpreter", "arguments": '{"code": "print(95 + 1205)"}'}
RULES = (
    {"contains": "deep", "after_tool": False, "steps": [{"do": "tool_calls", "calls": [ASKS, COMPUTES]}]},
    {"contains": "deep", "steps": [{"do": "text", "text": ANSWER}]},
)
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
# The views, by the name of their screenshots.
VIEWS = {
    "threads": "#/threads",
    "thread-new": "#/threads/new",
    "chat": "#/threads/{thread}",
    "trace": "#/threads/{thread}/runs/{run}",
    "assistants": "#/assistants",
    "assistant-new": "#/assistants/new",
    "assistant": "#/assistants/{assistant}",
    "vector-stores": "#/vector-stores",
    "vector-store": "#/vector-stores/{store}",
}


@pytest.fixture(scope="module")
def views(server: PlaygroundServer) -> dict[str, str]:
    """The addresses of the views, of objects that are there and have something in them."""
    sdk = server.sdk
    server.script(*RULES)
    file = sdk.files.create(file=("sea.txt", b"The sea is cold. The North Sea is 95 m deep on average."), purpose="assistants")
    store = sdk.vector_stores.create(name="Notes on the sea")
    sdk.vector_stores.files.create_and_poll(file_id=file.id, vector_store_id=store.id, poll_interval_ms=100)
    assistant = sdk.beta.assistants.create(
        name="Oceanographer",
        model="scripted",
        description="Knows the sea.",
        instructions="Answer from the notes.",
        tools=[
            {"type": "file_search"},
            {"type": "code_interpreter"},
            {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}},
        ],
        tool_resources={"file_search": {"vector_store_ids": [store.id]}},
        metadata={"team": "north"},
    )
    thread = sdk.beta.threads.create(messages=[{"role": "user", "content": "How deep is the sea?"}])
    run = sdk.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id, poll_interval_ms=100)
    assert run.status == "completed", run.last_error
    ids = {"thread": thread.id, "run": run.id, "assistant": assistant.id, "store": store.id}
    return {name: address.format(**ids) for name, address in VIEWS.items()}


@pytest.fixture(scope="module")
def keyed(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaygroundServer]:
    """A server that asks for a key."""
    del browser
    with playground_server(tmp_path_factory.mktemp("keyed"), key=KEY) as server:
        yield server


def open_view(page: Page, address: str) -> None:
    """Show a view, and wait until nothing changes in it any more."""
    page.goto(f"/playground/{address}")
    page.locator("main > :not(.loading)").first.wait_for()
    page.wait_for_load_state("networkidle")
    seen = ""
    while seen != (now := page.locator("main").inner_text()):
        seen = now
        page.wait_for_timeout(250)


def background(page: Page) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_the_address_without_a_slash_leads_to_the_threads(page: Page, server: PlaygroundServer) -> None:
    page.goto("/playground")
    expect(page).to_have_url(f"{server.address}/playground/#/threads")
    expect(page.locator("main h1")).to_be_visible()
    expect(page).to_have_title("Threads · mini-assistant playground")


def test_an_unknown_address_leads_home_and_an_unknown_object_says_so(playground: Page) -> None:
    playground.goto("/playground/#/nothing")
    expect(playground).to_have_url(playground.url.split("#")[0] + "#/threads")
    playground.goto("/playground/#/assistants/asst_gone")
    expect(playground.get_by_text("asst_gone").first).to_be_visible()
    playground.goto("/playground/#/assistants/%zz")
    expect(playground.locator("main [role=alert]")).to_be_visible()


def test_each_view_is_in_order(page: Page, views: dict[str, str]) -> None:
    for name, address in views.items():
        open_view(page, address)
        expect(page.locator("main h1")).to_have_count(1)
        expect(page.locator("nav [aria-current=page]")).to_have_count(1)
        assert page.locator("main .error:visible").all_inner_texts() == [], name
        out_of_reach = page.locator("button, a, input, select, textarea").evaluate_all(
            "all => all.filter((one) => one.checkVisibility() && one.tabIndex < 0 && !one.disabled && one.getAttribute('role') !== 'tab')"
            ".map((one) => one.outerHTML.slice(0, 200))"
        )
        assert out_of_reach == [], f"{name}: the keyboard does not get there"


def test_a_server_with_keys_asks_for_one(page: Page, keyed: PlaygroundServer) -> None:
    keyed.sdk.beta.assistants.create(name="Behind the key", model="scripted")
    page.goto(f"{keyed.address}/playground/#/assistants")
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog.get_by_role("alert")).to_have_text("This server asks for a key.")
    expect(dialog.locator("input")).to_be_focused()
    page.keyboard.type("not-the-key")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_have_text("This server does not take the key.")
    dialog.locator("input").fill(KEY)
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_be_hidden()
    expect(page.get_by_text("Behind the key").first).to_be_visible()

    page.reload()
    expect(page.get_by_text("Behind the key").first).to_be_visible()
    assert KEY not in page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href")
    page.get_by_role("button", name="Key", exact=True).click()
    dialog.get_by_role("button", name="Forget").click()
    expect(dialog.get_by_role("alert")).to_have_text("This server asks for a key.")
    assert page.evaluate("sessionStorage.length") == 0 or KEY not in page.evaluate("JSON.stringify(sessionStorage)")


def test_an_address_without_https_in_a_network(browser: Browser, keyed: PlaygroundServer, page_errors: list[str]) -> None:
    """There a browser keeps much from a page that it has on https and on this machine, such as the clipboard."""
    port = urlsplit(keyed.address).port
    arguments = ["--host-resolver-rules=MAP assistant.example 127.0.0.1"]
    with browser.browser_type.launch(executable_path=shutil.which("chromium"), args=arguments) as other:
        page = other.new_page()
        page.set_default_timeout(WAIT_MS)
        watch(page, page_errors)
        page.goto(f"http://assistant.example:{port}/playground/#/assistants/new")
        assert page.evaluate("[isSecureContext, navigator.clipboard?.readText]") == [False, None]
        page.get_by_role("dialog", name="API key").locator("input").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.get_by_role("textbox", name="Name").first).to_be_visible()
        page.evaluate("navigator.clipboard.writeText('copied\\ntext')")
        page.get_by_role("textbox", name="Instructions").focus()
        page.keyboard.press("Control+V")
        expect(page.get_by_role("textbox", name="Instructions")).to_have_value("copied\ntext")
    assert page_errors == []


def test_light_and_dark(playground: Page) -> None:
    light = background(playground)
    playground.emulate_media(color_scheme="dark")
    dark = background(playground)
    assert light != dark
    playground.emulate_media(color_scheme="light")
    button = playground.get_by_role("button", name="Light or dark")
    button.click()
    assert background(playground) == dark
    playground.reload()
    expect(playground.locator("main h1")).to_be_visible()
    assert background(playground) == dark, "the choice is kept"
    button.click()
    assert background(playground) == light


def test_by_keyboard_alone(page: Page, views: dict[str, str]) -> None:
    open_view(page, views["threads"])
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    expect(page.locator("nav [aria-current=page]")).to_have_text("Threads")

    page.locator(".skip").focus()
    for name in ("Threads", "Assistants", "Vector stores"):
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name=name, exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("nav [aria-current=page]")).to_have_text("Vector stores")
    expect(page.get_by_role("link", name="Vector stores", exact=True)).to_be_focused()

    for name in ("Show code", "Key"):
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name=name, exact=True)).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("dialog[open]")).to_have_count(1)
        page.keyboard.press("Escape")
        expect(page.locator("dialog[open]")).to_have_count(0)
        expect(page.get_by_role("button", name=name, exact=True)).to_be_focused()

    # What is in the list below comes next, and opening it does not lose the place.
    page.keyboard.press("Tab")
    page.locator("main a", has_text="Notes on the sea").first.focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(page.url.split("#")[0] + views["vector-store"])
    page.locator("main > :not(.loading)").first.wait_for()
    expect(page.locator("main:focus, main :focus")).to_have_count(1)


DEVICES = {"desktop": (1280, 800), "phone": (360, 740)}


@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.heavy)])
@pytest.mark.parametrize("device", DEVICES)
def test_the_views_fit_and_axe_finds_nothing_serious(page: Page, views: dict[str, str], shots: Path, theme: str, device: str) -> None:
    """Each view is looked at in both themes on a large and a small screen, and its picture is kept."""
    width, height = DEVICES[device]
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=theme, reduced_motion="reduce")
    found = []
    for name, address in views.items():
        open_view(page, address)
        page.screenshot(path=shots / f"{name}-{device}-{theme}.png")
        unfold(page)
        found += [f"{name}: {problem}" for problem in [*serious(page), *too_wide(page, width)]]
    for name in ("Show code", "Key"):
        page.get_by_role("button", name=name, exact=True).click()
        page.screenshot(path=shots / f"{name.lower().replace(' ', '-')}-{device}-{theme}.png")
        found += [f"{name}: {problem}" for problem in [*serious(page), *too_wide(page, width)]]
        page.keyboard.press("Escape")
    assert found == []


def test_a_tablet_held_upright_needs_no_scrolling_sideways(page: Page, views: dict[str, str]) -> None:
    page.set_viewport_size({"width": 768, "height": 1024})
    for name, address in views.items():
        open_view(page, address)
        assert too_wide(page, 768) == [], name


def unfold(page: Page) -> None:
    """Open whatever is folded in a view."""
    page.evaluate("document.querySelectorAll('main details').forEach((one) => { one.open = true })")
    for button in page.locator("main button[aria-expanded=false]:visible").all():
        button.click()
    page.wait_for_load_state("networkidle")


def too_wide(page: Page, width: int) -> list[str]:
    """What is wider than the window, when the page can be scrolled sideways, or a dialog is not whole."""
    if page.evaluate("document.documentElement.scrollWidth") <= width:
        boxes = [dialog.bounding_box() for dialog in page.locator("dialog[open]").all()]
        return [f"a dialog is at {box}" for box in boxes if box is None or box["x"] < 0 or box["x"] + box["width"] > width]
    return page.locator("body *").evaluate_all(
        "(all, width) => all.filter((one) => one.getBoundingClientRect().right > width + 1)"
        ".map((one) => `ends at ${Math.round(one.getBoundingClientRect().right)} px: ${one.outerHTML.slice(0, 120)}`).slice(0, 5)",
        width,
    )


def serious(page: Page) -> list[str]:
    """What axe finds on the page as it is shown, of the kinds that keep people from using it."""
    violations = Axe().run(page).response["violations"]
    return [
        f"{violation['id']} ({violation['help']}): {node['target']} {node['html'][:160]} {node.get('failureSummary', '')[:200]}"
        for violation in violations
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


def test_the_search_for_problems_finds_some(playground: Page) -> None:
    assert too_wide(playground, 1280) == []
    playground.evaluate("() => document.querySelector('main').append(document.createElement('button'))")
    playground.evaluate("() => { document.querySelector('main > button').style.width = '1400px' }")
    assert any("button-name" in problem for problem in serious(playground))
    assert any("<button" in problem for problem in too_wide(playground, 1280))


def test_nothing_is_asked_of_anybody_else(page: Page, server: PlaygroundServer, views: dict[str, str]) -> None:
    asked: set[str] = set()

    def note(request: Request) -> None:
        asked.add(urlsplit(request.url)._replace(path="", query="", fragment="").geturl())

    page.on("request", note)
    for address in views.values():
        open_view(page, address)
    assert {address for address in asked if not address.startswith(("blob:", "data:"))} == {server.address}


def test_a_proxy_may_show_it_under_a_path_of_its_own(page: Page, server: PlaygroundServer, views: dict[str, str]) -> None:
    def forward(route: Route) -> None:
        route.fulfill(response=route.fetch(url=route.request.url.replace("/tools/assistant", "")))

    page.route("**/tools/assistant/**", forward)
    page.route(f"{server.address}/v1/**", lambda route: route.abort())
    page.goto(f"/tools/assistant/playground/{views['assistant']}")
    expect(page.get_by_text("Oceanographer").first).to_be_attached()


def test_events_are_read_whatever_the_pieces_in_which_they_arrive(playground: Page) -> None:
    text = (
        ": ping\n\n"
        'id: 1\nevent: thread.created\ndata: {"id": "thread_1"}\n\n'
        'event: thread.message.delta\ndata: {"text": "caf\u00e9 \u2028 data: x"}\n\n'
        "event: done\ndata: [DONE]\n\n"
        "event: cut\ndata: {"
    )
    wanted = [
        {"id": "1", "event": "thread.created", "data": {"id": "thread_1"}},
        {"id": None, "event": "thread.message.delta", "data": {"text": "caf\u00e9 \u2028 data: x"}},
        {"id": None, "event": "done", "data": None},
    ]
    read = """async ([text, size]) => {
      const { readEvents } = await import("/playground/api.js");
      const bytes = new TextEncoder().encode(text);
      const pieces = [];
      for (let at = 0; at < bytes.length; at += size) pieces.push(bytes.slice(at, at + size));
      const events = [];
      const body = new ReadableStream({
        start(stream) {
          pieces.forEach((piece) => stream.enqueue(piece));
          stream.close();
        },
      });
      await readEvents(body, (event) => events.push(event));
      return events;
    }"""
    for size in (1, 2, 7, 1000):
        assert playground.evaluate(read, [text, size]) == wanted


def test_a_list_is_read_to_its_end(playground: Page, server: PlaygroundServer) -> None:
    for number in range(5):
        server.sdk.beta.assistants.create(name=f"Of the list {number}", model="listed")
    pages: list[str] = []

    def cut(route: Route) -> None:
        pages.append(route.request.url)
        route.continue_(url=route.request.url.replace("limit=100&", "limit=2&"))

    playground.route("**/v1/assistants?*&*", cut)
    read = """async () => {
      const { list, get } = await import("/playground/api.js");
      const all = await list("/assistants", { order: "asc" });
      const some = await list("/assistants", { order: "asc" }, 3);
      return [all.map((one) => one.name), some.length, (await get("/assistants?limit=100")).data.length];
    }"""
    names, some, count = playground.evaluate(read)
    assert [name for name in names if name and name.startswith("Of the list")] == [f"Of the list {number}" for number in range(5)]
    assert len(pages) >= 4, "two at a time, and the three at once"
    assert some == 3
    assert count == len(names)


def test_an_answer_to_an_old_key_does_not_ask_for_one(page: Page, keyed: PlaygroundServer) -> None:
    """Calls that were under way with a wrong key come back after the right one was given."""
    page.goto(f"{keyed.address}/playground/#/assistants")
    dialog = page.get_by_role("dialog", name="API key")
    dialog.locator("input").fill(KEY)
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    page.evaluate(
        """async (key) => {
          const api = await import("/playground/api.js");
          api.key.set("an-old-key");
          const call = api.get("/assistants").catch((error) => error.status);
          api.key.set(key);
          return call;
        }""",
        KEY,
    )
    expect(dialog).to_be_hidden()


@pytest.mark.parametrize(
    "attempt",
    [
        pytest.param("document.body.append(Object.assign(document.createElement('script'), { text: 'window.ran = 1' }))", id="script"),
        pytest.param("document.querySelector('main').innerHTML = '<img src=x onerror=\"window.ran = 1\">'", id="markup"),
        pytest.param(
            "document.querySelector('main').setAttribute('onclick', 'window.ran = 1'); document.querySelector('main').click()", id="handler"
        ),
        pytest.param("location.href = 'javascript:window.ran = 1'", id="address"),
        pytest.param("setTimeout('window.ran = 1')", id="text as code"),
        pytest.param(
            "document.body.append(Object.assign(document.createElement('script'), { src: '//127.0.0.1:9/x.js' }))", id="foreign script"
        ),
        pytest.param("document.body.append(Object.assign(document.createElement('iframe'), { src: '/playground/' }))", id="frame"),
        pytest.param("fetch('http://127.0.0.1:9/')", id="foreign address"),
        pytest.param("document.body.append(Object.assign(new Image(), { src: 'http://127.0.0.1:9/x.png' }))", id="foreign image"),
        pytest.param("document.querySelector('main').setAttribute('style', 'color: red')", id="style"),
    ],
)
def test_the_browser_refuses_what_no_file_of_ours_does(playground: Page, page_errors: list[str], attempt: str) -> None:
    complaints: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text or "TrustedScript" in message.text or "TrustedHTML" in message.text:
            complaints.append(message.text)

    playground.on("console", note)
    playground.evaluate(
        f"async () => {{ try {{ await (() => {{ {attempt} }})(); }} catch (error) {{ console.error(String(error)); }} "
        "await new Promise((resolve) => setTimeout(resolve, 200)); }"
    )
    assert complaints
    assert playground.evaluate("window.ran") is None
    page_errors.clear()


def test_a_page_error_would_fail_the_test(context, server: PlaygroundServer) -> None:  # type: ignore[no-untyped-def]
    errors: list[str] = []
    page = context.new_page()
    watch(page, errors)
    page.goto("/playground/")
    page.evaluate("() => { setTimeout(() => { throw new Error('lost') }); console.error('found') }")
    page.wait_for_timeout(200)
    assert sorted(errors) == ["found", "lost"]
