"""Checks that the files and vector stores that a request names exist in its project."""

from collections.abc import Iterable

from msgspec import UNSET

from mini_assistant.assistants.schema import ToolResources
from mini_assistant.errors import NotFound


def check_resources(resources: ToolResources | None) -> None:
    """Raise NotFound for the first unknown file or vector store of an assistant or thread."""
    if resources is None:
        return
    if resources.code_interpreter is not UNSET:
        check_files(resources.code_interpreter.file_ids)
    if resources.file_search is not UNSET:
        for store_id in resources.file_search.vector_store_ids:
            raise NotFound(f"Vector store with id ['{store_id[:100]}'] not found.")


def check_files(file_ids: Iterable[str]) -> None:
    """Raise NotFound for the first unknown file. This server has no files API yet, so every id is unknown."""
    for file_id in file_ids:
        raise NotFound(f"No such File object: {file_id[:100]}", param="id")
