"""A hook of MkDocs: makes the site of files that are written for the repository.

The README is the first page. Other files beside `docs/` that a page links to (examples, manifests, the changelog) become pages or copies,
and links between them are turned from paths of the repository into paths of the site. A link that leads nowhere ends a strict build.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "reporting-a-hole.md",
    "deploy/README.md": "deploy/index.md",
    "deploy/kubernetes/README.md": "deploy/kubernetes.md",
    "examples/README.md": "examples/index.md",
}
"""Pages of the site that are not in `docs/`, by their path in the repository."""

_FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!#|[a-z]+:)([^)\s#]+)(#[^)\s]*)?\)")
_SOURCES = {".py": "python", ".mjs": "javascript", ".js": "javascript", ".html": "html"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages beside `docs/`, and what they and the others link to."""
    for path, uri in PAGES.items():
        if (ROOT / path).exists():
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    for path in sorted(_linked_files()):
        uri = site_uri(path)
        if files.get_file_from_path(uri) is not None:
            continue
        if uri.endswith(".md"):
            files.append(File.generated(config, uri, content=_source_page(path), inclusion=InclusionLevel.NOT_IN_NAV))
        else:
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn the links of a page, which are paths of the repository, into paths of the site."""
    here = _repository_path(page.file.src_uri)
    return "".join(part if part.startswith("```") else _turned(part, here, page.file.src_uri) for part in _FENCE.split(markdown))


def site_uri(path: str) -> str:
    """Where a file of the repository is in the site's sources: `docs/models.md` is `models.md`, an example is a page of its own."""
    if (ROOT / path).is_dir():
        index = "index.md" if (ROOT / path / "index.md").exists() else "README.md"
        return site_uri(posixpath.join(path, index))
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    stem, suffix = posixpath.splitext(path)
    return f"{stem}.md" if suffix in _SOURCES else path


def _turned(text: str, here: str, uri: str) -> str:
    def turn(match: re.Match[str]) -> str:
        target = site_uri(posixpath.normpath(posixpath.join(posixpath.dirname(here), match[1])))
        return f"]({posixpath.relpath(target, posixpath.dirname(uri) or '.')}{match[2] or ''})"

    return _LINK.sub(turn, text)


def _repository_path(uri: str) -> str:
    return next((path for path, other in PAGES.items() if other == uri), f"docs/{uri}")


def _linked_files() -> set[str]:
    """Files beside `docs/` that pages link to."""
    linked = set[str]()
    for page in [*(ROOT / "docs").rglob("*.md"), *(ROOT / path for path in PAGES if (ROOT / path).exists())]:
        text = _FENCE.sub("", page.read_text(encoding="utf-8"))
        for target, _ in _LINK.findall(text):
            path = posixpath.normpath(posixpath.join(page.parent.relative_to(ROOT).as_posix(), target))
            if not path.startswith(("docs/", "..")) and path not in PAGES and (ROOT / path).is_file():
                linked.add(path)
    return linked


def _source_page(path: str) -> str:
    """A page that shows a program; the search is for what is written about it."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return f"---\nsearch:\n  exclude: true\n---\n\n# {posixpath.basename(path)}\n\n```{_SOURCES[posixpath.splitext(path)[1]]}\n{text}```\n"
