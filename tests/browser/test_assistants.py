"""The playground's assistants: each field of the API, the editor of schemas, and what is asked before something is lost."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.playground_server import PlaygroundServer
from tests.browser.test_shell import serious

_WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Where"}},
    "required": ["city"],
    "additionalProperties": False,
}


def _open_new(page: Page) -> None:
    page.goto("/playground/#/assistants/new")
    expect(page.get_by_role("heading", name="New assistant")).to_be_visible()


def _open(page: Page, assistant_id: str) -> None:
    page.goto(f"/playground/#/assistants/{assistant_id}")
    expect(page.locator("form h2")).to_be_visible()


def _model(server: PlaygroundServer) -> str:
    return server.sdk.models.list().data[0].id


def _add_pair(group: Locator, key: str, value: str) -> None:
    group.get_by_role("button", name="Add to").click()
    group.get_by_label("Key").last.fill(key)
    group.get_by_label("Value").last.fill(value)


def _created(page: Page, server: PlaygroundServer) -> dict[str, Any]:
    """Press Create; the assistant as the API has it then, where the SDK knows no tools of MCP servers."""
    page.get_by_role("button", name="Create").click()
    page.wait_for_url("**/#/assistants/asst_*")
    expect(page.get_by_role("button", name="Save")).to_be_visible()
    return server.sdk.beta.assistants.retrieve(page.url.rpartition("/")[2]).model_dump(warnings=False, by_alias=True)


def _schema_text(page: Page) -> Locator:
    return page.get_by_label("Parameters (JSON schema)")


def test_an_assistant_is_created_with_every_field(page: Page, server: PlaygroundServer, shots: Path) -> None:
    file = server.sdk.files.create(file=("table.csv", b"a,b\n1,2\n"), purpose="assistants")
    store = server.sdk.vector_stores.create(name="Handbook")
    _open_new(page)
    page.get_by_label("Name", exact=True).first.fill("Weather clerk")
    page.get_by_label("Description", exact=True).first.fill("Tells the weather")
    page.get_by_label("Model", exact=True).fill(_model(server))
    page.get_by_label("Instructions").fill("Be short.")
    page.get_by_role("button", name="+ File search").click()
    page.get_by_label("Results at most").fill("7")
    page.get_by_label("Score threshold").fill("0.25")
    page.get_by_role("button", name="+ Code interpreter").click()
    page.get_by_role("button", name="+ Function").click()
    page.get_by_label("Function name").fill("get_weather")
    page.get_by_label("What it does").fill("The weather of a city")
    page.get_by_label("Strict: calls").check()
    _schema_text(page).fill(json.dumps(_WEATHER))
    page.get_by_role("button", name="+ MCP server").click()
    page.get_by_label("Label").fill("docs")
    page.get_by_label("URL").fill("https://docs.example.com/mcp")
    _add_pair(page.get_by_role("group", name="Headers"), "Authorization", "Bearer x")
    page.get_by_label("Allowed tools").fill("search, read")
    page.get_by_label("Approval", exact=True).select_option("listed")
    page.get_by_label("Without approval").fill("search")
    page.get_by_label("Vector store", exact=True).select_option(store.id)
    page.get_by_label("table.csv").check()
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Top p").fill("0.9")
    page.get_by_label("Reasoning effort").select_option("low")
    page.get_by_label("Form of answers").select_option("json_schema")
    page.get_by_label("Schema name").fill("report")
    page.get_by_label("Schema of the answer").fill(json.dumps(_WEATHER))
    _add_pair(page.get_by_role("group", name="Metadata"), "team", "north")
    page.screenshot(path=shots / "assistant.png", full_page=True)
    made = _created(page, server)
    assert made["name"] == "Weather clerk"
    assert made["description"] == "Tells the weather"
    assert made["instructions"] == "Be short."
    search, code, function, mcp = made["tools"]
    assert search["file_search"]["max_num_results"] == 7
    assert search["file_search"]["ranking_options"]["score_threshold"] == 0.25
    assert code == {"type": "code_interpreter"}
    assert function["function"]["parameters"] == _WEATHER
    assert function["function"]["strict"] is True
    assert mcp["server_url"] == "https://docs.example.com/mcp"
    assert mcp["headers"] == {"Authorization": "Bearer x"}
    assert mcp["allowed_tools"] == ["search", "read"]
    assert mcp["require_approval"] == {"never": {"tool_names": ["search"]}}
    assert made["tool_resources"]["file_search"]["vector_store_ids"] == [store.id]
    assert made["tool_resources"]["code_interpreter"]["file_ids"] == [file.id]
    assert (made["temperature"], made["top_p"], made["reasoning_effort"]) == (0.5, 0.9, "low")
    assert made["response_format"]["json_schema"]["schema"] == _WEATHER
    assert made["metadata"] == {"team": "north"}


def test_only_what_was_changed_is_sent(page: Page, server: PlaygroundServer) -> None:
    made = server.sdk.beta.assistants.create(model=_model(server), name="Before", metadata={"a": "1"}, tools=[{"type": "file_search"}])
    _open(page, made.id)
    expect(page.get_by_text("Not saved")).to_have_count(0)
    page.get_by_label("Name", exact=True).first.fill("After")
    expect(page.get_by_text("Not saved")).to_be_visible()
    with page.expect_request(lambda request: request.method == "POST") as sent:
        page.get_by_role("button", name="Save").click()
    assert sent.value.post_data_json == {"name": "After"}
    expect(page.get_by_role("heading", name="After")).to_be_visible()
    expect(page.get_by_role("link", name="After")).to_be_visible()
    expect(page.get_by_text("Not saved")).to_have_count(0)
    expect(page.get_by_role("button", name="Save")).to_be_focused()
    assert server.sdk.beta.assistants.retrieve(made.id).metadata == {"a": "1"}


def test_an_error_of_the_api_is_shown_at_its_field(page: Page, server: PlaygroundServer) -> None:
    made = server.sdk.beta.assistants.create(model=_model(server))
    _open(page, made.id)
    temperature = page.get_by_label("Temperature")
    temperature.fill("3")
    page.get_by_role("button", name="Save").click()
    expect(temperature).to_be_focused()
    expect(temperature).to_have_attribute("aria-invalid", "true")
    expect(page.locator(".field", has=temperature).get_by_role("alert")).to_contain_text("temperature")
    temperature.fill("1")
    expect(temperature).not_to_have_attribute("aria-invalid", "true")
    page.get_by_role("button", name="+ Code interpreter").click()
    page.get_by_role("button", name="+ Function").click()
    name = page.get_by_label("Function name")
    name.fill("not a name!")
    page.get_by_role("button", name="Save").click()
    expect(name).to_be_focused()
    expect(page.locator(".field", has=name).get_by_role("alert")).to_contain_text("name")


def test_changes_are_not_lost_without_a_question(page: Page, server: PlaygroundServer) -> None:
    made = server.sdk.beta.assistants.create(model=_model(server), name="Kept")
    _open(page, made.id)
    page.get_by_label("Instructions").fill("Not yet saved")
    page.get_by_role("link", name="Vector stores").click()
    question = page.get_by_role("dialog", name="not been saved")
    question.get_by_role("button", name="Cancel").click()
    assert page.url.endswith(made.id)
    expect(page.get_by_label("Instructions")).to_have_value("Not yet saved")
    page.get_by_role("link", name="Vector stores").click()
    question.get_by_role("button", name="Leave").click()
    expect(page.get_by_role("heading", name="Vector stores", level=1)).to_be_visible()


def test_a_copy_is_made_and_deleted(page: Page, server: PlaygroundServer) -> None:
    made = server.sdk.beta.assistants.create(model=_model(server), name="First", instructions="Do.", tools=[{"type": "code_interpreter"}])
    _open(page, made.id)
    page.get_by_role("button", name="Duplicate").click()
    expect(page.get_by_label("Name", exact=True).first).to_have_value("Copy of First")
    copy = _created(page, server)
    assert copy["instructions"] == "Do."
    assert copy["tools"] == [{"type": "code_interpreter"}]
    assert copy["id"] != made.id
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("link", name="Copy of First")).to_have_count(0)
    expect(page.get_by_role("link", name="First")).to_be_visible()
    assert copy["id"] not in {one.id for one in server.sdk.beta.assistants.list()}


def test_chat_begins_with_the_assistant(page: Page, server: PlaygroundServer) -> None:
    made = server.sdk.beta.assistants.create(model=_model(server), name="Talker")
    _open(page, made.id)
    page.get_by_role("button", name="Chat").click()
    page.wait_for_url("**/#/threads/new")
    assert page.evaluate("sessionStorage.getItem('mini-assistant.assistant')") == made.id


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{\n  "type": "object",\n}', "Line 3, column 1 A name in double quotes is missing"),
        ('{\n  "type" "object"}', "Line 2, column 10 A colon is missing"),
        ('{"a": 01}', "Line 1, column 8 A comma or"),
        ('{"type": "object", "type": "object"}', "is there twice"),
        ("[" * 300, "nested too deeply"),
        ('{"type": "array"}', 'The type at the top must be "object"'),
        ('{"type": "object", "properties": {"a": {"type": "text"}}}', '"text" is no type'),
        ('{"type": "object", "properties": {},\n"required": ["b"]}', 'Line 2 required[0]: "b" is required, but is no property'),
        ('{"type": "object", "properties": {"a": {"type": "integer", "enum": [1, "2"]}}}', '"2" is not of the type "integer"'),
        ('{"type": "object", "properties": {}}', "Valid schema"),
    ],
)
def test_the_schema_editor_says_what_is_wrong(page: Page, text: str, said: str) -> None:
    _open_new(page)
    page.get_by_role("button", name="+ Function").click()
    _schema_text(page).fill(text)
    expect(page.locator(".verdict").first).to_contain_text(said)


def test_a_strict_schema_has_stricter_rules(page: Page) -> None:
    _open_new(page)
    page.get_by_role("button", name="+ Function").click()
    _schema_text(page).fill('{"type": "object", "properties": {"a": {"type": "string"}}}')
    verdict = page.locator(".verdict").first
    expect(verdict).to_contain_text("Valid schema")
    page.get_by_label("Strict: calls").check()
    expect(verdict).to_contain_text('needs "additionalProperties": false')
    expect(verdict).to_contain_text('needs "a" in "required"')


def test_a_schema_is_formatted_and_gets_properties(page: Page) -> None:
    _open_new(page)
    page.get_by_role("button", name="+ Function").click()
    _schema_text(page).fill('{"type":"object"}')
    page.get_by_role("button", name="Format").first.click()
    expect(_schema_text(page)).to_have_value('{\n  "type": "object"\n}')
    expect(page.locator(".line-numbers").first).to_have_text("1\n2\n3")
    page.get_by_text("Insert a property").first.click()
    form = page.locator(".property-form").first
    form.get_by_label("Name").fill("unit")
    form.get_by_label("Only these values").fill("celsius, fahrenheit")
    form.get_by_label("Only these values").press("Enter")  # inserts, and does not send the form around it
    expect(form.get_by_label("Name")).to_be_focused()
    assert json.loads(_schema_text(page).input_value()) == {
        "type": "object",
        "properties": {"unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
        "required": ["unit"],
    }


def test_wrong_json_is_not_sent(page: Page) -> None:
    _open_new(page)
    page.get_by_role("button", name="+ Function").click()
    page.get_by_label("Function name").fill("f")
    _schema_text(page).fill('{"type": "object"')
    page.get_by_role("button", name="Create").click()
    expect(_schema_text(page)).to_be_focused()
    expect(page.get_by_role("alert")).to_contain_text("line 1, column 18")
    assert page.url.endswith("/new")


def test_names_with_markup_stay_text(page: Page, server: PlaygroundServer) -> None:
    markup = "<img src=x onerror=alert(1)>"
    made = server.sdk.beta.assistants.create(model=_model(server), name=markup, metadata={markup: markup})
    _open(page, made.id)
    expect(page.get_by_role("heading", name=markup)).to_be_visible()
    assert page.locator("main img").count() == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_the_whole_form(page: Page, server: PlaygroundServer, theme: Literal["light", "dark"]) -> None:
    page.emulate_media(color_scheme=theme, reduced_motion="reduce")
    made = server.sdk.beta.assistants.create(model=_model(server), name="Accessible", metadata={"a": "b"})
    _open(page, made.id)
    for name in ("File search", "Code interpreter", "Function", "MCP server"):
        page.get_by_role("button", name=f"+ {name}").click()
    page.get_by_label("Form of answers").select_option("json_schema")
    _schema_text(page).fill('{"type": "array"}')
    page.evaluate("document.querySelectorAll('details').forEach((details) => (details.open = true))")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("alert").first).to_be_visible()
    assert serious(page) == []


def test_the_form_fits_a_phone(page: Page, server: PlaygroundServer, shots: Path) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    name = "A name without spaces " + "x" * 100
    made = server.sdk.beta.assistants.create(
        model=_model(server), name=name, metadata={"k" * 60: "v" * 300}, tools=[{"type": "function", "function": {"name": "f" * 64}}]
    )
    _open(page, made.id)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.screenshot(path=shots / "assistant-phone.png", full_page=True)
    page.get_by_role("link", name="All assistants").click()
    expect(page.get_by_role("link", name=name)).to_be_visible()
