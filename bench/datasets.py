"""Labelled collections for `bench.quality`: documents, questions, and which documents answer which question. Nobody here made a label.

Cranfield: 1,400 abstracts, and questions that were judged by reading them. The FAQ sets: the questions of a FAQ, each of which is
answered by the text that its authors wrote under it; the question itself is taken out of the text.
"""

import html
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

# Where Debian's packages `debian-faq` and `python3-doc` put their pages.
DEBIAN_FAQ_FOLDER = Path("/usr/share/doc/debian/FAQ")
PYTHON_DOCS_FOLDER = next(
    iter(sorted(Path("/usr/share/doc").glob("python3.*/html/_sources"))), Path("/usr/share/doc/python3/html/_sources")
)


class Question(NamedTuple):
    """A query. relevant: the ids of the documents that answer it, and how well (1 or more)."""

    text: str
    relevant: Mapping[str, int]


class LabelledSet(NamedTuple):
    """A collection. documents: their texts by id."""

    name: str
    documents: Mapping[str, str]
    questions: list[Question]


def cranfield(folder: Path) -> LabelledSet:
    """The Cranfield collection in TREC form: `cran.all.1400.xml`, `cran.qry.xml` and `cranqrel.trec.txt`."""
    documents: dict[str, str] = {}
    for entry in re.findall(r"<doc>(.*?)</doc>", (folder / "cran.all.1400.xml").read_text(), re.DOTALL):
        documents[_field("docno", entry)] = _field("text", entry)
    relevant: dict[int, dict[str, int]] = {}
    for line in (folder / "cranqrel.trec.txt").read_text().splitlines():
        number, _, document, grade = line.split()
        if int(grade) > 0 and documents.get(document):
            # The few above 1 are slips of the pen: the grades of this file are 0 and 1.
            relevant.setdefault(int(number), {})[document] = 1
    # The judgements number the questions by their place in the file, not by the numbers written there.
    texts = re.findall(r"<title>(.*?)</title>", (folder / "cran.qry.xml").read_text(), re.DOTALL)
    questions = [Question(_plain(text), relevant[number]) for number, text in enumerate(texts, start=1) if number in relevant]
    return LabelledSet("cranfield", documents, questions)


def _field(name: str, entry: str) -> str:
    found = re.search(rf"<{name}>(.*?)</{name}>", entry, re.DOTALL)
    return html.unescape(found.group(1)).strip() if found else ""


def debian_faq(folder: Path = DEBIAN_FAQ_FOLDER) -> LabelledSet:
    """The questions of the Debian FAQ. Its sections are the documents."""
    documents: dict[str, str] = {}
    questions: list[Question] = []
    for page in sorted(folder.glob("*.en.html")):
        pieces = re.split(r'<h2 class="title">(.*?)</h2>', page.read_text(), flags=re.DOTALL)
        for number, (title, body) in enumerate(zip(pieces[1::2], pieces[2::2], strict=True)):
            document = f"{page.name}#{number}"
            documents[document] = _plain(body)
            question = re.sub(r"^[\d.]+\s+", "", _plain(title))
            if question.endswith("?"):
                questions.append(Question(question, {document: 1}))
    return LabelledSet("debian-faq", documents, questions)


def python_faq(folder: Path = PYTHON_DOCS_FOLDER) -> LabelledSet:
    """The questions of Python's FAQ. Its answers are documents, and so is every other page of Python's documentation."""
    documents: dict[str, str] = {}
    questions: list[Question] = []
    for page in sorted(folder.rglob("*.rst.txt")):
        name = page.relative_to(folder).as_posix()
        if not name.startswith("faq/"):
            documents[name] = page.read_text()
            continue
        for number, (title, body) in enumerate(_sections(page.read_text())):
            document = f"{name}#{number}"
            documents[document] = body
            if title.endswith("?") and len(body) > 20:
                questions.append(Question(title.replace("`", ""), {document: 1}))
    return LabelledSet("python-faq", documents, questions)


def _sections(source: str) -> Iterator[tuple[str, str]]:
    """The underlined titles of a reStructuredText page, each with the text below it."""
    pieces = re.split(r"^(\S.*)\n[-=]{4,}\n", source, flags=re.MULTILINE)
    for title, body in zip(pieces[1::2], pieces[2::2], strict=True):
        yield title.strip(), body.strip()


def _plain(markup: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", markup)).split())
