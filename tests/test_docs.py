"""The documents say what is: pages that are made from the code are fresh, examples compile, commands and links lead somewhere."""

import ast
import re
from pathlib import Path

import pytest

from mini_assistant import __version__
from mini_assistant.app import all_routes
from mini_assistant.http.coverage_page import OFFICIAL_OPERATIONS, Operation, coverage_page
from mini_assistant.settings import described_settings, settings_page

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "mini_assistant"


def documents() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def code_blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_the_settings_page_is_fresh() -> None:
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == settings_page(), "run `make docs`"


def test_the_coverage_page_is_fresh() -> None:
    assert (ROOT / "docs" / "api-coverage.md").read_text(encoding="utf-8") == coverage_page(all_routes()), "run `make docs`"


def test_the_coverage_page_names_every_route_and_every_official_operation() -> None:
    page = coverage_page(all_routes())
    operations = [operation for group in OFFICIAL_OPERATIONS.values() for operation in group]

    for route in all_routes():
        assert f"| `{route.name}` | `{route.method} {route.path}` |" in page
    for operation in operations:
        assert f"| `{operation.name}` | `{operation.method} {operation.path}` |" in page
    assert len(operations) == len({operation.name for operation in operations}) == 48


def test_the_coverage_page_tells_served_from_missing_operations() -> None:
    page = coverage_page([route for route in all_routes() if route.name not in ("cancelRun", "createFile")])

    assert "| `getRun` | `GET /threads/{thread_id}/runs/{run_id}` | yes |" in page
    assert "| `cancelRun` | `POST /threads/{thread_id}/runs/{run_id}/cancel` | not yet |" in page
    assert "| `createFile` | `POST /files` | not yet |" in page
    assert "46 of 48 are served" in page
    assert "48 of 48 are served" in coverage_page(all_routes())
    assert "not yet |" not in coverage_page(all_routes())


def test_a_route_with_an_official_name_has_the_official_method_and_path() -> None:
    official = {operation.name: operation for group in OFFICIAL_OPERATIONS.values() for operation in group}

    for route in all_routes():
        if route.name in official:
            assert Operation(route.name, route.method, route.path) == official[route.name]


@pytest.mark.parametrize("name", [item.name for item in described_settings()])
def test_every_setting_is_used(name: str) -> None:
    uses = [
        file
        for file in PACKAGE.rglob("*.py")
        if file.name != "settings.py" and re.search(rf"\bsettings\.{name}\b|\b_settings\.{name}\b", file.read_text(encoding="utf-8"))
    ]
    is_used_by_settings = f"self.{name}" in (PACKAGE / "settings.py").read_text(encoding="utf-8")
    of_projects = f'"{name.removeprefix("project_")}"'
    is_of_projects = any(of_projects in file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py") if file.name != "settings.py")

    assert uses or is_used_by_settings or is_of_projects, f"nobody reads the setting {name}"


@pytest.mark.parametrize("item", described_settings(), ids=lambda item: item.name)
def test_every_setting_is_described_in_a_sentence(item: object) -> None:
    text = item.metadata["help"]

    assert text.endswith(".")
    assert "|" not in text, "it would break the table of the page"


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_python_in_documents_compiles(document: Path) -> None:
    for block in code_blocks(document.read_text(encoding="utf-8"), "python"):
        compile(block, str(document), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").rglob("*.py")), ids=lambda path: path.name)
def test_examples_compile(example: Path) -> None:
    compile(example.read_text(encoding="utf-8"), str(example), "exec")


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_between_documents_resolve(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        file = document if not path else document.parent / path
        if not file.exists() or (heading and heading not in headings(file)):
            broken.append(target)

    assert broken == []


def headings(document: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_make_commands_in_documents_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    code = [*re.findall(r"^```(?:sh|console)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL), *re.findall(r"`([^`\n]+)`", text)]
    named = {target for block in code for target in re.findall(r"(?:^|[\s;&])make ([a-z][a-z-]*)", block, re.MULTILINE)}

    assert named - make_targets() == set()


def test_the_readme_names_the_main_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    assert "make serve" in text
    assert "make test" in text
    assert {"serve", "test", "test-all", "check", "bench", "docs"} <= make_targets()


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_settings_named_in_documents_exist(document: Path) -> None:
    known = {f"MINI_ASSISTANT_{item.name.upper()}" for item in described_settings()} | {"MINI_ASSISTANT_CONFIG"}
    named = set(re.findall(r"MINI_ASSISTANT_[A-Z0-9_]*[A-Z]", document.read_text(encoding="utf-8")))

    assert named - known == set()


def test_the_changelog_has_the_current_version_or_what_is_not_released() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

    assert re.search(rf"^## .*({re.escape(__version__)}|unreleased)", text, re.MULTILINE | re.IGNORECASE)


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = sorted(int(file.name[:4]) for file in (ROOT / "docs" / "decisions").glob("*.md"))

    assert numbers == list(range(1, len(numbers) + 1))
