"""`docs/security.md` names a test for each threat, and these exist; and the tests of threats that belong to no other file."""

import ast
import functools
import gzip
import importlib.util
import re
import types
from pathlib import Path

import aiohttp
import pytest

from mini_assistant.settings import secret_names, settings_page

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ATTACKERS = {"client", "other tenant", "model output", "uploaded file", "tool code", "MCP server", "provider", "web page"}
# The words by which the threats that are talked of most can be found on the page.
THREATS = [
    "SSRF",
    "slow loris",
    "Content-Encoding",
    "`../`",
    "line ends and control characters",
    "DNS rebinding",
    "chunks and a length",
    "CORS",
]


def rows() -> list[list[str]]:
    """The rows of the table of attacks: attacker, attempt, protection, test."""
    table = PAGE.split("## Who attacks what")[1].split("\n## ")[0]
    found = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines() if line.startswith("| ")]
    return found[1:]


@functools.cache
def names_of_tests(file: Path) -> set[str]:
    """The names of the tests in a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds) and node.name.startswith("test_")}


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row[0]}: {row[1]}"[:60])
def test_every_threat_has_a_test(row: list[str]) -> None:
    attacker, attempt, protection, test = row
    assert attacker
    assert attempt
    assert protection
    match = re.fullmatch(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`", test)
    assert match is not None, test
    names = names_of_tests(ROOT / match[1])
    assert match[2] in names if match[2] else names


def test_every_attacker_and_threat_is_there() -> None:
    assert {row[0] for row in rows()} >= ATTACKERS
    assert [threat for threat in THREATS if threat not in PAGE] == []
    assert "## What is not protected against" in PAGE


def test_what_is_no_test_is_noticed() -> None:
    assert "test_that_is_not_there" not in names_of_tests(Path(__file__))
    assert "test_what_is_no_test_is_noticed" in names_of_tests(Path(__file__))


def test_every_secret_is_marked_on_the_page_of_settings() -> None:
    told = settings_page().split("Secrets are refused in the config file")[1].split("\n\n")[0]

    assert [name for name in secret_names() if f"`{name}`" not in told] == []


# ---- bodies ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
async def test_packed_bodies_are_not_unpacked(coding: str, http: aiohttp.ClientSession) -> None:
    packed = gzip.compress(b'{"metadata":{"a":"b"}}' + b" " * 1_000_000)
    async with http.post("/v1/threads", data=packed, headers={"Content-Encoding": coding}) as response:
        assert response.status == 400
    async with http.get("/v1/threads") as response:
        assert (await response.json())["data"] == []


# ---- packages ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packages() -> types.ModuleType:
    """The program of `make check` that looks at them."""
    spec = importlib.util.spec_from_file_location("check_packages", ROOT / "requirements" / "check_packages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_locked_package_has_hashes(packages: types.ModuleType) -> None:
    locks = [*(ROOT / "requirements").glob("*.lock"), *(ROOT / "src").rglob("*.lock")]

    assert len(locks) >= 10
    for lock in locks:
        locked = packages.locked(lock)
        assert locked, lock
        assert [name for name, hashes in locked.items() if not hashes] == [], lock


def test_a_package_without_hashes_or_with_another_licence_is_noticed(packages: types.ModuleType, tmp_path: Path) -> None:
    (tmp_path / "x.lock").write_text("good==1 \\\n    --hash=sha256:00\nbad==2\n", encoding="utf-8")
    (tmp_path / "y.lock").write_text("bad @ https://example.com/bad.whl\n", encoding="utf-8")

    assert packages.locked(tmp_path / "x.lock") == {"good": ["--hash=sha256:00"], "bad": []}
    with pytest.raises(SystemExit):
        packages.locked(tmp_path / "y.lock")
    for licence in ("", "UNKNOWN", "GPL-3.0-only", "MIT AND GPL-2.0-only", "SSPL-1.0", "Proprietary", "LGPL-3.0-only"):
        assert not packages.is_fine("some", licence), licence
    for licence in ("MIT", "BSD License OR Apache Software License", "BSD-3-Clause AND 0BSD AND Zlib"):
        assert packages.is_fine("some", licence), licence
    assert packages.is_fine("psycopg", "LGPL-3.0-only")
