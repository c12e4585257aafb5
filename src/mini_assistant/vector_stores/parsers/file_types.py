"""Which files can be parsed, and how: the extension of a file's name decides, whatever type the client sent.

Source: behaviour §5.1.
"""

from typing import Literal

Kind = Literal["text", "html", "pdf", "docx", "pptx", "doc"]

_TEXT_EXTENSIONS = ("c", "cpp", "cs", "css", "go", "java", "js", "json", "md", "php", "py", "rb", "sh", "tex", "ts", "txt")
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(_TEXT_EXTENSIONS, "text"),
    "html": "html",
    "pdf": "pdf",
    "docx": "docx",
    "pptx": "pptx",
    "doc": "doc",
}


def kind_of_or_none(filename: str) -> Kind | None:
    """How a file of this name is parsed; None when it cannot be."""
    _, dot, extension = filename.strip().rpartition(".")
    return _KINDS.get(extension.lower()) if dot else None
