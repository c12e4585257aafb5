"""All statements of the package, found in its modules, and whether each can touch but the rows of one project."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.sql import operators, visitors

import mini_assistant
from mini_assistant.db.base import Query
from mini_assistant.pagination import Listing, _Shape

PACKAGE = Path(mini_assistant.__file__).parent
_MARKS = ("Query(", "Query.insert_into(", "Listing(")
# Rows of their kind belong to the server, or are found by what nobody can guess and few know.
TABLES_OF_THE_SERVER = {"claim_limits", "rate_limits", "unneeded_blobs"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Names and syntax of the modules that have statements, without `mini_assistant.`."""
    for file in sorted(PACKAGE.rglob("*.py")):
        source = file.read_text(encoding="utf-8")
        if any(mark in source for mark in _MARKS) and "db/migrations" not in file.as_posix() and file.name != "base.py":
            yield file.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."), ast.parse(source)


def statements_of_modules() -> Iterator[tuple[str, Query]]:
    """Every statement that is there once its module is imported, by module and name; lists with those of their pages."""
    for name, tree in modules():
        module = importlib.import_module(f"mini_assistant.{name}")
        for variable in _assigned_names(tree):
            yield from statements_in(getattr(module, variable), f"{name}.{variable}")


def _assigned_names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                yield from (found.id for found in names if isinstance(found, ast.Name))


def statements_in(value: Any, name: str) -> Iterator[tuple[str, Query]]:
    """Every statement that a value holds, at any depth."""
    if isinstance(value, Query):
        yield name, value
    elif isinstance(value, dict):
        for key, member in value.items():
            yield from statements_in(member, f"{name}[{key}]")
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from statements_in(item, f"{name}[{place}]")
    elif type(value).__module__.startswith("mini_assistant.") and hasattr(value, "__dict__"):
        for attribute, member in vars(value).items():
            yield from statements_in(member, f"{name}.{attribute}")
        if isinstance(value, Listing):
            yield f"{name}.page", value._build(_Shape(is_ascending=True, has_after=True, has_before=True, filters=()))


def functions_with_statements() -> Iterator[str]:
    """Functions, and methods of classes, that make a statement when they are called."""
    for name, tree in modules():
        for place, node in _functions(tree, ()):
            calls = [ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)]
            if any(called in ("Query", "Query.insert_into") for called in calls):
                yield ".".join([name, *place])


def _functions(node: ast.AST, within: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], ast.AST]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (*within, child.name), child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, (*within, child.name))


def why_of_many_projects(query: Query) -> str:
    """What a statement touches without saying of which project; empty when it says so, or touches nothing of projects."""
    clause = query._clause
    if isinstance(clause, sa.TextClause):
        return "written SQL"
    if isinstance(clause, sa.Insert):
        return _why_of_insert(clause, query)
    if isinstance(clause, sa.Update | sa.Delete):
        return "" if _is_of_project(clause.table, clause._where_criteria) else f"{type(clause).__name__} {clause.table}"
    if isinstance(clause, sa.CompoundSelect):
        return "; ".join(filter(None, (_why_of_select(part) for part in clause.selects)))
    assert isinstance(clause, sa.Select), f"what is {clause!r}?"
    return _why_of_select(clause)


def _why_of_insert(clause: sa.Insert, query: Query) -> str:
    if clause.select is not None:
        written = dict(zip(clause._select_names or [], clause.select.selected_columns, strict=True))
        if "project_id" in written and isinstance(written["project_id"], sa.BindParameter):
            return ""
        return _why_of_select(clause.select)
    given = query._column_keys or []
    return "" if "project_id" not in clause.table.columns or "project_id" in given else f"Insert {clause.table}"


def _why_of_select(select: Any) -> str:
    tables = [table for source in select.get_final_froms() for table in _tables_of(source)]
    if not tables:  # only its conditions read
        inner = [part for condition in select._where_criteria for part in visitors.iterate(condition) if isinstance(part, sa.Select)]
        return "; ".join(filter(None, (_why_of_select(part) for part in inner)))
    if any(_is_of_project(table, select._where_criteria) for table in tables):
        return ""
    return f"Select {', '.join(table.name for table in tables)}"


def _tables_of(source: Any) -> Iterator[sa.Table]:
    if isinstance(source, sa.Table):
        yield source
    elif isinstance(source, sa.Join):
        yield from _tables_of(source.left)
        yield from _tables_of(source.right)
    elif isinstance(source, sa.Subquery | sa.Alias):
        inner = source.element
        yield from _tables_of(inner) if isinstance(inner, sa.Table) else (t for part in inner.get_final_froms() for t in _tables_of(part))


def _is_of_project(table: Any, conditions: tuple[Any, ...]) -> bool:
    """Whether all of the conditions together hold for rows of one project only."""
    if table.name in TABLES_OF_THE_SERVER:
        return True
    return any(_says_project(condition, table) for given in conditions for condition in _parts_of_and(given))


def _parts_of_and(condition: Any) -> Iterator[Any]:
    if getattr(condition, "operator", None) is operators.and_ and hasattr(condition, "clauses"):
        for part in condition.clauses:
            yield from _parts_of_and(part)
    else:
        yield condition


def _says_project(condition: Any, table: Any) -> bool:
    """Whether it compares the row's project with a parameter, or is about rows that a statement of one project finds."""
    operator = getattr(condition, "operator", None)
    if operator not in (operators.eq, operators.in_op):
        return False
    sides = (condition.left, condition.right)
    found = next((part for part in visitors.iterate(condition.right) if isinstance(part, sa.Select)), None)
    if found is not None:
        return found.get_final_froms() != [] and not _why_of_select(found)
    is_column = any(isinstance(side, sa.Column) and side.name == "project_id" and side.table is table for side in sides)
    return is_column and any(isinstance(side, sa.BindParameter) for side in sides)
