"""What models, files and people have written is shown as text: markdown becomes elements of ours, and nothing else ever does."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai.types.beta import Assistant
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import watch
from tests.browser.playground_server import PlaygroundServer

# What a payload would do, were it ever run, is to set `window.ran`.
PAYLOADS = [
    "<script>window.ran = 1</script>",
    "<img src=x onerror='window.ran = 1'>",
    '<svg onload="window.ran = 1"><script>window.ran = 1</script></svg>',
    '"><iframe srcdoc="<script>parent.ran = 1</script>"></iframe>',
    "<a href='javascript:window.ran = 1'>go</a>",
    "[go](javascript:window.ran=1)",
    "[go](data:text/html,<script>window.ran=1</script>)",
    "![go](javascript:window.ran=1)",
    "![x](https://evil.example/pixel.png)",
    "<style>*{display:none}</style>",
    '<math><mtext></mtext><mglyph><style><!--</style><img title="--><img src=1 onerror=window.ran=1>">',
    "</article></main><form action='https://evil.example'><input name=q></form>",
    "`<b onmouseover=window.ran=1>`",
    "```html\n<script>window.ran = 1</script>\n```",
    "| <script>window.ran = 1</script> | b |\n|---|---|\n| <img src=x onerror=window.ran=1> | d |",
    '<https://x.example/"onmouseover=window.ran=1>',
    'https://x.example/"onmouseover=window.ran=1',
    "\ue0000\ue001 \ue00099\ue001",
    "{{constructor.constructor('window.ran = 1')()}}",
    "&lt;script&gt;window.ran = 1&lt;/script&gt;",
]
EVERYTHING = "\n\n".join(PAYLOADS)
NEVER = "script, img, svg, math, iframe, object, embed, form, input, style, link, meta, base, [style], [srcdoc], [onerror], [onload]"

RENDER = """async (source) => {
  const { render } = await import("/playground/markdown.js");
  const place = document.createElement("div");
  for (const node of render(source)) place.append(node);
  return place.innerHTML;
}"""
# Elements and attributes that are not in the list of those that the renderer makes.
UNKNOWN = """async (source) => {
  const { render } = await import("/playground/markdown.js");
  const place = document.createElement("div");
  for (const node of render(source)) place.append(node);
  document.getElementById("main").replaceChildren(place);
  const words = "A P H3 H4 H5 H6 UL OL LI BLOCKQUOTE TABLE THEAD TBODY TR TH TD EM STRONG DEL CODE PRE DIV SPAN BUTTON BR HR";
  const tags = new Set(words.split(" "));
  const names = new Set("class href title target rel start scope type tabindex role aria-label".split(" "));
  const found = [];
  for (const element of place.querySelectorAll("*")) {
    if (!tags.has(element.tagName)) found.push(element.tagName);
    for (const { name, value } of element.attributes) {
      if (!names.has(name)) found.push(`${element.tagName} ${name}`);
      if (name === "href" && !/^https?:[/][/]/.test(value)) found.push(value);
      if (name === "href" && !element.relList.contains("noopener")) found.push(`${value} has an opener`);
    }
  }
  return found;
}"""
SIZES = """async (source) => {
  const { render, GrowingText } = await import("/playground/markdown.js");
  const { highlight } = await import("/playground/highlight.js");
  const place = document.createElement("div");
  for (const node of render(source)) place.append(node);
  const growing = new GrowingText();
  for (const share of [0.3, 0.6, 1]) growing.update(source.slice(0, source.length * share));
  for (const language of ["python", "js", "json", "bash", "sql"]) highlight(source.slice(0, 60000), language);
  let depth = 0;
  for (let node = place; node; node = [...node.children].at(-1)) depth += 1;
  return [place.textContent.length, depth, place.innerHTML === growing.element.innerHTML];
}"""


@pytest.fixture(scope="module")
def shared_page(browser: Browser, server: PlaygroundServer) -> Iterator[Page]:
    """One page for the tests that only ask modules of the playground; each of them fills its own elements."""
    context = browser.new_context(base_url=server.address)
    page = context.new_page()
    errors: list[str] = []
    watch(page, errors)
    page.goto("/playground/")
    yield page
    context.close()
    assert errors == []


def rendered(page: Page, source: str) -> str:
    return page.evaluate(RENDER, source)


@pytest.mark.parametrize(
    ("source", "html"),
    [
        ("Plain.", "<p>Plain.</p>"),
        ("one\ntwo\n\nthree", "<p>one<br>two</p><p>three</p>"),
        ("# One\n## Two ##\n###### Six", "<h3>One</h3><h4>Two</h4><h6>Six</h6>"),
        ("#hashtag", "<p>#hashtag</p>"),
        ("**bold** and *it* and ***both***", "<p><strong>bold</strong> and <em>it</em> and <em><strong>both</strong></em></p>"),
        ("a * b * c, snake_case_name, 2**3", "<p>a * b * c, snake_case_name, 2**3</p>"),
        ("~~gone~~ __so__ _it_", "<p><del>gone</del> <strong>so</strong> <em>it</em></p>"),
        ("`a*b*` ``c`d``", "<p><code>a*b*</code> <code>c`d</code></p>"),
        ("\\*not\\* &amp; &lt;b&gt;", "<p>*not* &amp; &lt;b&gt;</p>"),
        ("- a\n- b\n  - c\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("- [x] done\n- [ ] open", "<ul><li>☑ done</li><li>☐ open</li></ul>"),
        ("Text:\n- a\n- b\n\nAfter", "<p>Text:</p><ul><li>a</li><li>b</li></ul><p>After</p>"),
        ("> q\n> > r", "<blockquote><p>q</p><blockquote><p>r</p></blockquote></blockquote>"),
        ("a\n\n---\n\nb", "<p>a</p><hr><p>b</p>"),
        ("an `open tick and [an open bracket", "<p>an `open tick and [an open bracket</p>"),
        ("![a picture](https://x.example/a.png)", None),
    ],
)
def test_markdown_becomes_elements(shared_page: Page, source: str, html: str | None) -> None:
    found = rendered(shared_page, source)
    if html is None:
        assert "<img" not in found
        assert ">a picture</a>" in found
    else:
        assert found == html


def test_a_table_has_its_columns_and_sides(shared_page: Page) -> None:
    found = rendered(shared_page, "| a | b |\n|:-:|--:|\n| `1\\|2` | **3** |\n| 4 |\n\nafter")
    assert '<th class="center" scope="col">a</th><th class="right" scope="col">b</th>' in found
    assert '<td class="right"><strong>3</strong></td></tr><tr><td class="center">4</td></tr>' in found
    assert found.endswith("<p>after</p>")


def test_links_lead_to_the_web_in_a_window_of_their_own(shared_page: Page) -> None:
    found = rendered(
        shared_page, "[*a*](https://x.example/p(1)?q=a_b_c) and https://y.example/path_with_underscores). **http://z.example**"
    )
    rest = 'target="_blank" rel="noopener noreferrer nofollow"'
    link = "https://x.example/p(1)?q=a_b_c"
    assert f'<a href="{link}" title="{link}" {rest}><em>a</em></a>' in found
    assert ">https://y.example/path_with_underscores</a>)." in found
    assert ">http://z.example</a></strong>" in found


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        "java\tscript:alert(1)",
        "\x01javascript:alert(1)",
        "&#106;avascript:alert(1)",
        "data:text/html;base64,PHNjcmlwdD4=",
        "vbscript:x",
        "file:///etc/passwd",
        "blob:x",
        "//evil.example/x",
        "/v1/files",
        "#/threads",
        "mailto:a@b.example",
        "https:evil.example",
    ],
)
def test_no_link_leads_anywhere_but_to_the_web(shared_page: Page, address: str) -> None:
    found = rendered(shared_page, f"[text]({address}) [text](<{address}>) <{address}>")
    assert "<a " not in found
    assert "text" in found


@pytest.mark.parametrize("payload", [*PAYLOADS, EVERYTHING])
def test_no_markup_of_a_text_becomes_markup(shared_page: Page, payload: str) -> None:
    assert shared_page.evaluate(UNKNOWN, payload) == []
    assert shared_page.evaluate("window.ran") is None


def test_code_is_coloured_and_stays_the_same_text(shared_page: Page) -> None:
    sources = {
        "python": "def f(x):  # add\n    return f'a{x}' + 1.5\n",
        "js": "const a = `t ${1}`; // no\nfoo(/* b */ 0x1f)",
        "json": '{"a": [1, true, "x\\"y"]}',
        "bash": 'for f in *.py; do echo "$f"; done # all',
        "sql": "SELECT a FROM b WHERE c = 'it''s' -- end",
        "cobol": "DISPLAY 'HELLO'.",
    }
    for language, code in sources.items():
        html = rendered(shared_page, f"```{language}\n{code}\n```")
        assert ('class="token-string"' in html) == (language != "cobol"), language
        text = shared_page.evaluate(
            """async ([code, language]) => {
              const { highlight } = await import("/playground/highlight.js");
              const place = document.createElement("pre");
              place.append(...highlight(code, language));
              return place.textContent;
            }""",
            [code, language],
        )
        assert text == code


@pytest.mark.parametrize(
    "pattern",
    [
        *("[", "](", "[a](", "![", "*", "**a ", "*a_b", "_*", "`", "` `` ", "~~", "> ", "- ", "1. ", "|", "|-", "#", "\\", "<", "&", ":"),
        *(
            "<http://",
            "https://a.b/)",
            "(",
            "\n",
            "\n\n",
            "- \n",
            "> - ",
            "```\n",
            "a|b\n-|-\n",
            "word ",
            "x",
            "[x](y) ",
            "   ",
            "- - ",
            "\t",
        ),
        *("\ue000", "\ue0001\ue001", '"', "'", "/*", '"""', "a\\", "]( " + " " * 1500),
    ],
)
def test_a_hostile_text_of_200_kb_does_not_hold_up_the_page(shared_page: Page, pattern: str) -> None:
    """What takes more than linear time here takes minutes, and the time limit of the tests ends it."""
    characters, depth, is_same = shared_page.evaluate(SIZES, pattern * (200_000 // len(pattern)))
    assert characters <= 220_000
    assert depth < 64
    assert is_same


@pytest.fixture
def hostile(server: PlaygroundServer) -> Iterator[Assistant]:
    """An assistant whose name is markup, and a model that answers with it."""
    output = json.dumps({"code": f"print({EVERYTHING!r})"})
    query = json.dumps({"queries": ["window ran"]})
    server.script(
        {"after_tool": False, "contains": "run code", "steps": [_calls("code_interpreter", output)]},
        {"after_tool": False, "contains": "call", "steps": [_calls("act", json.dumps({"what": EVERYTHING}))]},
        {"after_tool": False, "contains": "search", "steps": [_calls("file_search", query)]},
        {"after_tool": True, "contains": "search", "steps": [{"do": "text", "text": [f"{EVERYTHING}\n\nCited ", "【4:0†x】."]}]},
        {"steps": [{"do": "text", "text": EVERYTHING}]},
    )
    function = {
        "type": "function",
        "function": {"name": "act", "parameters": {"type": "object", "properties": {"what": {"type": "string"}}}},
    }
    tools: Any = [function, {"type": "code_interpreter"}, {"type": "file_search"}]
    assistant = server.sdk.beta.assistants.create(model="m", name=PAYLOADS[1], instructions=EVERYTHING, tools=tools)
    yield assistant
    server.sdk.beta.assistants.delete(assistant.id)


def _calls(name: str, arguments: str) -> dict[str, Any]:
    return {"do": "tool_calls", "calls": [{"name": name, "arguments": arguments}]}


def _check_harmless(page: Page) -> None:
    conversation = page.locator(".conversation")
    # Our own form of outputs and our own images are the only ones.
    made = conversation.locator(NEVER)
    hostile = [html for html in made.evaluate_all("(all) => all.map((one) => one.outerHTML)") if 'class="card action"' not in html]
    assert hostile == []
    assert page.evaluate("window.ran") is None
    for link in conversation.locator("a").evaluate_all("(all) => all.map((one) => one.getAttribute('href'))"):
        assert link.startswith(("#/threads/", "https://x.example/", "https://evil.example/"))


def test_markup_in_names_messages_and_answers_stays_text(page: Page, server: PlaygroundServer, hostile: Assistant) -> None:
    thread = server.sdk.beta.threads.create(messages=[{"role": "user", "content": EVERYTHING}])
    server.sdk.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=hostile.id, poll_interval_ms=50)
    page.goto(f"/playground/#/threads/{thread.id}")
    expect(page.locator(".message.assistant")).to_contain_text("<script>window.ran = 1</script>")
    expect(page.locator(".message.user")).to_contain_text("<svg onload=")
    expect(page.locator(".message-head strong").last).to_have_text(PAYLOADS[1])
    _check_harmless(page)


def test_markup_in_code_and_calls_stays_text(page: Page, server: PlaygroundServer, hostile: Assistant) -> None:
    thread = server.sdk.beta.threads.create()
    page.goto(f"/playground/#/threads/{thread.id}")
    page.get_by_label("Message", exact=True).fill("run code")
    page.keyboard.press("Enter")
    expect(page.locator(".logs").first).to_contain_text("<script>window.ran = 1</script>")
    expect(page.locator(".run-line .badge")).to_have_text("completed")
    page.get_by_label("Message", exact=True).fill("call")
    page.keyboard.press("Enter")
    expect(page.locator("form.action pre")).to_contain_text("<img src=x")
    _check_harmless(page)
    page.get_by_label("Output of act").fill(EVERYTHING)
    page.get_by_role("button", name="Submit the output").click()
    expect(page.locator(".run-line .badge").last).to_have_text("completed")
    _check_harmless(page)


def test_markup_in_file_names_and_citations_stays_text(page: Page, server: PlaygroundServer, hostile: Assistant) -> None:
    name = "<img src=x onerror=window.ran=1>.txt"
    page.goto("/playground/#/threads/new")
    text = f"When window ran, the glass broke. {EVERYTHING}"
    page.locator("input[type=file]").set_input_files([{"name": name, "mimeType": "text/plain", "buffer": text.encode()}])
    page.get_by_label("Message", exact=True).fill("search")
    page.get_by_role("button", name="Send").click()
    page.locator(".conversation button.citation").click()
    dialog = page.locator("dialog[open]")
    expect(dialog).to_contain_text(name)
    expect(dialog.locator(".passage")).to_contain_text("<script>window.ran = 1</script>")
    assert dialog.locator(NEVER).count() == 0
    page.keyboard.press("Escape")
    expect(page.locator(".message.user .file-name")).to_have_text(name)
    _check_harmless(page)
