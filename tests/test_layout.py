"""The rules of the source tree, checked on its syntax: which way imports point, sizes, names, and who may touch what.

A gate is a function from a module to the problems in it. Each has an example below that it must refuse, so that none can rot.
Exceptions are named one by one with their reason; one that is not needed any more fails the test.
"""

import ast
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "mini_assistant"

MODULE_LINES_MAX = 600
SCHEMA_LINES_MAX = 800
FUNCTION_LINES_MAX = 70
PARAMETERS_MAX = 6
BANNED_WORDS = {"util", "utils", "helper", "helpers", "common", "misc", "manager", "handler", "handlers", "impl"}


@functools.cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


@dataclass(frozen=True)
class Module:
    """A file of the package. path: relative to the package, with `/`."""

    path: str
    source: str

    @property
    def tree(self) -> ast.Module:
        return parsed(self.source)


Gate = Callable[[Module], Iterator[str]]


def modules() -> list[Module]:
    return [
        Module(file.relative_to(PACKAGE).as_posix(), file.read_text(encoding="utf-8"))
        for file in sorted(PACKAGE.rglob("*.py"))
        if not file.relative_to(PACKAGE).as_posix().startswith("db/migrations/versions/")
    ]


# ---- which way imports point -------------------------------------------------------------------------------------------------------

FOUNDATION = {"__init__.py", "errors.py", "ids.py", "clock.py", "metrics.py", "logs.py", "tracing.py", "trace_export.py"}
# What the folder of models offers to others beside its seam; everything else in it is a backend or a part of one.
OPEN_IN_MODELS = {"models/tokens.py", "models/checks.py"}
PURE = {"runs/states.py", "runs/events.py"}
# What lies in them beside a base.py is a backend or a part of one.
BACKEND_FOLDERS = {
    "db",
    "queue",
    "events",
    "models",
    "models/embeddings",
    "models/rerank",
    "models/tool_calling",
    "files/blobs",
    "sandboxes",
    "vector_stores/indexes",
    "vector_stores/parsers",
}

MAY_IMPORT = {
    "foundation": {"foundation"},
    "settings": {"foundation", "seam"},
    "seam": {"foundation", "settings", "seam", "schema"},
    "schema": {"foundation", "schema"},
    "rows": {"foundation", "seam", "rows"},
    "pure": {"foundation", "schema", "pure"},
    "store": {"foundation", "seam", "schema", "rows", "pure", "store"},
    "command": {"foundation", "seam", "schema", "rows", "pure", "store", "command"},
    "http": {"foundation", "settings", "seam", "schema", "rows", "pure", "store", "command", "http"},
    "routes": {"foundation", "seam", "schema", "rows", "pure", "store", "command", "http"},
    "backend": {"foundation", "settings", "seam", "rows", "backend"},
    "app": {"foundation", "settings", "seam", "schema", "rows", "pure", "store", "command", "http", "routes", "backend"},
    "main": {"foundation", "settings", "app", "main", "terminal"},
    "terminal": {"foundation", "schema", "terminal"},
    "guest": set[str](),  # runs inside a sandbox, where this package is not installed
}

IMPORTS_AGAINST_THE_RULE = {
    ("administration.py", "app.py"): "what commands need of the parts is made there",
    ("app.py", "cluster.py"): "the part of the composition root that is loaded only when the settings ask for it",
    (
        "runs/commands.py",
        "http/routing.py",
    ): "a command takes the typed request, whose Idempotency-Key goes into its own list of statements",
    ("runs/worker.py", "http/idempotency.py"): "the sweeper forgets old keys",
}

ROLES = {
    "__main__.py": "main",
    "app.py": "app",
    "administration.py": "app",
    "cluster.py": "app",
    "settings.py": "settings",
    "services.py": "seam",
    "pagination.py": "rows",
    "vector_stores/filters.py": "store",
    "projects/usage.py": "store",
    "projects/usage_routes.py": "routes",
}


def role_of(path: str) -> str:
    """The place of a module in the order of the layers."""
    folder, _, name = path.rpartition("/")
    if path in FOUNDATION or name == "__init__.py":
        return "foundation"
    if path in PURE:
        return "pure"
    if path in ROLES:
        return ROLES[path]
    if folder in ("command_line", "terminal"):
        return "main" if folder == "command_line" else "terminal"
    if name == "base.py":
        return "seam"
    if path == "db/tables.py" or folder.startswith("db/migrations"):
        return "rows"
    if folder == "sandboxes/guest":
        return "guest"
    if folder in BACKEND_FOLDERS:
        return "seam" if path in OPEN_IN_MODELS else "backend"
    if folder == "http":
        return "routes" if path == "http/health.py" else "http"
    return {"schema.py": "schema", "store.py": "store", "routes.py": "routes"}.get(name, "command")


def imported_modules(module: Module) -> set[str]:
    """Paths of the modules of this package that a module imports."""
    found: set[str] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.path}: relative import"
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.startswith("mini_assistant."):
                path = name.removeprefix("mini_assistant.").replace(".", "/") + ".py"
                if (PACKAGE / path).is_file():
                    found.add(path)
    return found


def imports_against_layers(module: Module) -> Iterator[tuple[str, str]]:
    role = role_of(module.path)
    for imported in imported_modules(module):
        its_role = role_of(imported)
        is_allowed = its_role in MAY_IMPORT[role]
        if role == its_role == "backend":
            is_allowed = module.path.split("/")[0] == imported.split("/")[0]
        if not is_allowed:
            yield module.path, imported


def imports_point_down(module: Module) -> Iterator[str]:
    for importer, imported in imports_against_layers(module):
        if (importer, imported) not in IMPORTS_AGAINST_THE_RULE:
            yield f"{importer} ({role_of(importer)}) must not import {imported} ({role_of(imported)})"


def concrete_backends_are_named_in_app_only(module: Module) -> Iterator[str]:
    folder = module.path.split("/")[0]
    for imported in imported_modules(module):
        is_root = module.path in ("app.py", "cluster.py", "administration.py")
        if role_of(imported) == "backend" and not is_root and imported.split("/")[0] != folder:
            yield f"{module.path} names the backend {imported}"


def app_is_imported_by_commands_only(module: Module) -> Iterator[str]:
    if {"app.py", "cluster.py", "administration.py"} & imported_modules(module) and module.path not in (
        "command_line/server_commands.py",
        "app.py",
        "administration.py",
    ):
        yield f"{module.path} imports the composition root"


# ---- who may touch what ------------------------------------------------------------------------------------------------------------

BROAD_EXCEPT_ALLOWED = {
    ("http/api.py", "__call__"): "the outer boundary of a request",
    ("http/api.py", "_stream"): "the outer boundary of a stream, whose answer has begun",
    ("runs/worker.py", "_survive"): "the outer boundary of a run",
    ("vector_stores/ingest_worker.py", "_survive"): "the outer boundary of a file",
    ("runs/tool_calls.py", "_run_call"): "a tool's failure is read by the model",
    ("sandboxes/guest/agent.py", "_run_guarded"): "whatever code raises is its own output",
}
IMPORT_INSIDE_ALLOWED = {
    ("db/migrations/__init__.py", "_upgrade"): "Alembic is slow to import, and most starts have nothing to migrate",
    ("tracing.py", "open_traces"): "few servers send traces, and what sends them is slow to import or not installed",
    ("__main__.py", "_server_commands"): "clients and help need nothing of the server, which is slow to import",
    ("app.py", "load_cluster"): "the embedded server needs none of it, and may not have it",
}
PRINT_ALLOWED = {"__main__.py"}
ENVIRONMENT_ALLOWED = {
    "settings.py": "every setting of the server",
    "command_line/client_commands.py": "a client has no settings: its key, and what is known of the terminal",
}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of such an expression; empty for any other."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def environment_is_read_in_named_places_only(module: Module) -> Iterator[str]:
    if module.path not in ENVIRONMENT_ALLOWED:
        yield from reads_of_the_environment(module)


def reads_of_the_environment(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        is_attribute = isinstance(node, ast.Attribute) and dotted(node) in ("os.environ", "os.environb", "os.getenv", "os.getenvb")
        is_import = isinstance(node, ast.ImportFrom) and node.module == "os" and {"environ", "getenv"} & {a.name for a in node.names}
        if is_attribute or is_import:
            yield f"{module.path}:{node.lineno} reads the environment"


WALL_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"}


def wall_clock_is_read_in_clock_only(module: Module) -> Iterator[str]:
    if module.path == "clock.py":
        return
    for node in ast.walk(module.tree):
        is_attribute = isinstance(node, ast.Attribute) and dotted(node).removeprefix("datetime.datetime") in WALL_CLOCKS
        is_nested = isinstance(node, ast.Attribute) and dotted(node).removeprefix("datetime.") in WALL_CLOCKS
        is_import = isinstance(node, ast.ImportFrom) and node.module == "time" and {"time", "time_ns"} & {a.name for a in node.names}
        if is_attribute or is_nested or is_import:
            yield f"{module.path}:{node.lineno} reads the wall clock"


def functions_of(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def is_broad(handler: ast.ExceptHandler) -> bool:
    names = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(name is None or dotted(name) in ("Exception", "BaseException") for name in names)


def broad_excepts(module: Module) -> Iterator[tuple[str, str]]:
    """Places that catch everything. One that cleans up and raises again is none."""
    for function in functions_of(module.tree):
        for node in ast.walk(function):
            if isinstance(node, ast.ExceptHandler) and is_broad(node):
                last = node.body[-1]
                if not (isinstance(last, ast.Raise) and last.exc is None):
                    yield module.path, function.name


def everything_is_caught_in_named_places_only(module: Module) -> Iterator[str]:
    for place in broad_excepts(module):
        if place not in BROAD_EXCEPT_ALLOWED:
            yield f"{place[0]}: {place[1]} catches everything"


def imports_are_at_the_top(module: Module) -> Iterator[str]:
    for function in functions_of(module.tree):
        if (module.path, function.name) in IMPORT_INSIDE_ALLOWED:
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield f"{module.path}:{node.lineno} imports inside {function.name}"


def nothing_is_printed(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and dotted(node.func) == "print" and module.path not in PRINT_ALLOWED:
            yield f"{module.path}:{node.lineno} prints"


def no_module_has_changing_globals(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Global):
            yield f"{module.path}:{node.lineno} changes a global"


# ---- size, names, words ------------------------------------------------------------------------------------------------------------


def modules_are_short(module: Module) -> Iterator[str]:
    limit = SCHEMA_LINES_MAX if module.path.endswith("schema.py") else MODULE_LINES_MAX
    count = len(module.source.splitlines())
    if count > limit:
        yield f"{module.path} has {count} lines, more than {limit}"


def functions_are_short(module: Module) -> Iterator[str]:
    for function in functions_of(module.tree):
        count = (function.end_lineno or function.lineno) - function.lineno + 1
        if count > FUNCTION_LINES_MAX:
            yield f"{module.path}: {function.name} has {count} lines"


def functions_take_few_parameters(module: Module) -> Iterator[str]:
    for function in functions_of(module.tree):
        names = [argument.arg for argument in [*function.args.posonlyargs, *function.args.args]]
        count = len([name for name in names if name not in ("self", "cls")])
        if count > PARAMETERS_MAX:
            yield f"{module.path}: {function.name} takes {count} parameters beside keyword-only ones"


def names_say_something(module: Module) -> Iterator[str]:
    names = [Path(module.path).stem, *(node.name for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef))]
    for name in names:
        words = {word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)}
        if words & BANNED_WORDS or name.lower().replace("_", "") == "baseservice":
            yield f"{module.path}: the name {name} says nothing"


def public_things_are_described(module: Module) -> Iterator[str]:
    """Modules, classes, functions, and the methods of seams. Route functions are described by the summary of their route."""
    tree = module.tree
    if not module.source.strip():
        return
    if ast.get_docstring(tree) is None:
        yield f"{module.path} has no docstring"
    routes = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and dotted(node.func) == "Route"]
    served = {dotted(keyword.value) for route in routes for keyword in route.keywords if keyword.arg == "call"}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_") or node.name in served:
            continue
        if ast.get_docstring(node) is None:
            yield f"{module.path}: {node.name} has no docstring"
        if isinstance(node, ast.ClassDef) and Path(module.path).name == "base.py" and "Protocol" in {dotted(base) for base in node.bases}:
            for method in functions_of(node):
                if ast.get_docstring(method) is None:
                    yield f"{module.path}: {node.name}.{method.name} has no docstring"


def routes_have_summaries(module: Module) -> Iterator[str]:
    if role_of(module.path) not in ("routes", "http"):
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and dotted(node.func) == "Route":
            summaries = [keyword.value for keyword in node.keywords if keyword.arg == "summary"]
            if not any(isinstance(value, ast.Constant) and value.value for value in summaries):
                yield f"{module.path}:{node.lineno} is a route without a summary"


def nothing_is_left_to_do(module: Module) -> Iterator[str]:
    for number, line in enumerate(module.source.splitlines(), start=1):
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError|NotImplemented\b", line):
            yield f"{module.path}:{number} is not finished"


def no_machine_is_named(module: Module) -> Iterator[str]:
    for number, line in enumerate(module.source.splitlines(), start=1):
        if re.search(r"/(home|root|work|tmp|Users)/\w", line):
            yield f"{module.path}:{number} names a path of one machine"


# ---- the gates, and an example that each must refuse -------------------------------------------------------------------------------

REFUSED: dict[Gate, list[tuple[str, str]]] = {
    imports_point_down: [
        ("threads/store.py", "from mini_assistant.threads.commands import new_thread\n"),
        ("threads/schema.py", "import mini_assistant.threads.store\n"),
        ("threads/store.py", "from mini_assistant.http import routing\n"),
        ("runs/loop.py", "from mini_assistant.runs import routes\n"),
        ("db/base.py", "from mini_assistant.db import sqlite\n"),
        ("events/local.py", "from mini_assistant.queue.local import LocalTaskQueue\n"),
        ("models/builtin.py", "from mini_assistant.runs.store import RunRecord\n"),
        ("vector_stores/ingest.py", "from mini_assistant.vector_stores.indexes.segments import SegmentIndex\n"),
        ("files/store.py", "from mini_assistant.files.blobs.disk import DiskBlobStore\n"),
        ("errors.py", "from mini_assistant.settings import Settings\n"),
        ("terminal/chat.py", "from mini_assistant.runs import store\n"),
        ("terminal/client.py", "from mini_assistant.settings import Settings\n"),
    ],
    concrete_backends_are_named_in_app_only: [
        ("runs/worker.py", "from mini_assistant.db.sqlite import SqliteDatabase\n"),
        ("http/api.py", "def f():\n    from mini_assistant.models import openai_compatible\n"),
    ],
    app_is_imported_by_commands_only: [
        ("http/api.py", "from mini_assistant.app import serve\n"),
        ("runs/loop.py", "import mini_assistant.app\n"),
        ("__main__.py", "from mini_assistant import app\n"),
    ],
    environment_is_read_in_named_places_only: [
        ("app.py", "import os\nx = os.environ['HOME']\n"),
        ("app.py", "import os\nx = os.getenv('HOME')\n"),
        ("app.py", "from os import environ\n"),
    ],
    wall_clock_is_read_in_clock_only: [
        ("runs/loop.py", "import time\nx = time.time()\n"),
        ("runs/loop.py", "from time import time\n"),
        ("runs/loop.py", "from datetime import datetime\nx = datetime.now()\n"),
        ("runs/loop.py", "import datetime\nx = datetime.datetime.now(datetime.UTC)\n"),
    ],
    everything_is_caught_in_named_places_only: [
        ("runs/loop.py", "def f():\n    try:\n        g()\n    except Exception:\n        pass\n"),
        ("runs/loop.py", "def f():\n    try:\n        g()\n    except (OSError, BaseException) as exc:\n        log(exc)\n"),
        ("runs/loop.py", "def f():\n    try:\n        g()\n    except:\n        pass\n"),
    ],
    imports_are_at_the_top: [
        ("runs/loop.py", "def f():\n    import json\n"),
        ("runs/loop.py", "async def f():\n    from json import loads\n"),
    ],
    nothing_is_printed: [("runs/loop.py", "print('here')\n")],
    no_module_has_changing_globals: [("runs/loop.py", "x = 1\ndef f():\n    global x\n    x = 2\n")],
    modules_are_short: [
        ("runs/loop.py", "x = 1\n" * (MODULE_LINES_MAX + 1)),
        ("runs/schema.py", "x = 1\n" * (SCHEMA_LINES_MAX + 1)),
    ],
    functions_are_short: [("runs/loop.py", "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX)],
    functions_take_few_parameters: [
        ("runs/loop.py", "def f(a, b, c, d, e, f, g):\n    pass\n"),
        ("runs/loop.py", "class A:\n    async def f(self, a, b, c, d, e, f, g):\n        pass\n"),
    ],
    names_say_something: [
        ("runs/utils.py", ""),
        ("runs/run_helpers.py", ""),
        ("runs/loop.py", "class RunManager:\n    pass\n"),
        ("runs/loop.py", "class SQLHandler:\n    pass\n"),
        ("runs/base_service.py", ""),
    ],
    public_things_are_described: [
        ("runs/loop.py", "x = 1\n"),
        ("runs/loop.py", '"""Doc."""\n\n\ndef f():\n    pass\n'),
        ("runs/loop.py", '"""Doc."""\n\n\nclass A:\n    pass\n'),
        ("runs/base.py", '"""Doc."""\n\n\nclass A(Protocol):\n    """Doc."""\n\n    def f(self): ...\n'),
    ],
    routes_have_summaries: [("runs/routes.py", 'ROUTES = [Route(method="GET", call=f)]\n'), ("runs/routes.py", 'Route(summary="")\n')],
    nothing_is_left_to_do: [("runs/loop.py", "x = 1  # TODO: later\n"), ("runs/loop.py", "raise NotImplementedError\n")],
    no_machine_is_named: [("runs/loop.py", 'x = "/home/someone/data"\n')],
}

ACCEPTED = Module(
    "runs/loop.py",
    '''"""Doc."""

import json
import time

from mini_assistant.db.base import Query
from mini_assistant.errors import AppError
from mini_assistant.runs import schema, store


async def f(a, b, c, d, e, f, *, g, h):
    """Doc."""
    started = time.monotonic()
    try:
        return json.loads(a)
    except ValueError:
        raise
    except BaseException:
        f.close()
        raise


def _private():
    return Route(call=f, summary="What it does")
''',
)

GATES = list(REFUSED)


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.__name__)
def test_the_tree_keeps_the_rule(gate: Gate) -> None:
    problems = [problem for module in modules() for problem in gate(module)]

    assert problems == []


@pytest.mark.parametrize(("gate", "path", "source"), [(gate, *example) for gate, examples in REFUSED.items() for example in examples])
def test_each_gate_refuses_its_examples(gate: Gate, path: str, source: str) -> None:
    assert list(gate(Module(path, source))) != []


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.__name__)
def test_each_gate_accepts_what_keeps_the_rule(gate: Gate) -> None:
    assert list(gate(ACCEPTED)) == []


def test_all_of_the_package_is_looked_at() -> None:
    paths = {module.path for module in modules()}

    assert {"app.py", "runs/loop.py", "http/api.py", "models/builtin.py"} <= paths
    assert len(paths) > 60


def test_every_exception_is_still_needed() -> None:
    against_layers = {pair for module in modules() for pair in imports_against_layers(module)}
    broad = {place for module in modules() for place in broad_excepts(module)}
    inside = {
        (module.path, function.name)
        for module in modules()
        for function in functions_of(module.tree)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }

    assert set(IMPORTS_AGAINST_THE_RULE) <= against_layers
    assert set(BROAD_EXCEPT_ALLOWED) <= broad
    assert set(IMPORT_INSIDE_ALLOWED) <= inside
    assert {path for path in ENVIRONMENT_ALLOWED if not any(any(reads_of_the_environment(m)) for m in modules() if m.path == path)} == set()
    assert {
        path for path in PRINT_ALLOWED if not any(list(nothing_is_printed(Module("x.py", m.source))) for m in modules() if m.path == path)
    } == set()


def test_every_folder_that_holds_python_is_a_package() -> None:
    folders = {file.parent for file in PACKAGE.rglob("*.py")} - {PACKAGE / "db" / "migrations" / "versions"}

    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []
