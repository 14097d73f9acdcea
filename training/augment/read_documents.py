"""Reading a user's documents: text, Markdown, HTML, PDF and JSON lines, whatever their encoding, one at a time.

A document is a title and blocks of text (paragraphs, headings, table rows), in reading order. Its id is the path below
the folder, so that whatever is made of it can be traced back. Files that hold no text are reported, never guessed at.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from drama_models.errors import CollectionError
from drama_models.surrogates import storable
from training.augment.sentences import word_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from markdown_it.token import Token

SUFFIXES = (".txt", ".md", ".markdown", ".html", ".htm", ".jsonl", ".pdf")
BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16",
}  # fmt: skip
SNIFFED_BYTES = 1 << 16  # enough to tell an encoding by its letters
DAMAGED_SHARE = 0.001  # of characters; a few stray bytes do not make a file another encoding's
BLANK_LINE = re.compile(r"\n[^\S\n]*\n")
LONGEST_TITLE_WORDS = 12
SENTENCE_END = re.compile(r"[.!:;,\u3002\uff01\u0964\u06d4]\W*$")  # a question may be a title
LINE_BREAK = re.compile(r"<br\b", re.IGNORECASE)
FRONT_MATTER = re.compile(r"\A---\n.*?\n(?:---|\.\.\.)\n", re.DOTALL)
HIDDEN = ["script", "style", "noscript", "template", "nav", "iframe", "svg", "form"]
BLOCKS = {
    "address", "article", "aside", "blockquote", "br", "caption", "dd", "div", "dl", "dt", "figcaption", "figure",
    "footer", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "ol", "p", "pre", "section", "table",
    "tr", "ul",
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A stretch of text that belongs together."""

    text: str
    """Without line breaks inside a sentence."""
    heading: bool = False
    """Whether it is the heading of what follows."""


@dataclass(frozen=True)
class SourceDocument:
    """One document as it was read."""

    id: str
    """Path below the folder, with a record's own id behind `#` for JSON lines; holds no white space."""
    title: str
    blocks: list[Block]


@dataclass
class SkippedFiles:
    """Files without text, by reason; filled while documents are read."""

    reasons: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, reason: str) -> None:
        """Note a file."""
        self.reasons.setdefault(reason, []).append(name)

    def __str__(self) -> str:
        """Such as `2 files skipped (binary: logo.txt; empty: b.md)`."""
        count = sum(map(len, self.reasons.values()))
        parts = (
            f"{reason}: {', '.join(names[:3])}{', …' * (len(names) > 3)}" for reason, names in self.reasons.items()
        )
        return f"{count} files skipped ({'; '.join(parts)})" if count else "no file skipped"


def read_documents(source: str | Path, skipped: SkippedFiles | None = None) -> Iterator[SourceDocument]:
    """Read the documents of a folder, sub-folders included, or of one file; files in the order of their paths.

    Args:
        source: folder or file. A JSON line is an object with `text`, and `_id` or `id` and `title` where it has them.
        skipped: collects the files that hold no text: binary ones, empty ones, those of an unknown kind.

    Yields:
        Documents with at least one block.

    Raises:
        CollectionError: nothing there, no document in it, a broken JSON line, or an id that was there before.
    """
    source, skipped = Path(source), skipped if skipped is not None else SkippedFiles()
    if not source.exists():
        raise CollectionError(f"There are no documents at {source}; pass a folder or file of {', '.join(SUFFIXES)}.")
    count = 0
    for path in [source] if source.is_file() else _files(source):
        name = path.name if source.is_file() else path.relative_to(source).as_posix()
        for document in _read_file(path, quote(os.fsencode(name), safe="/"), skipped):
            count += 1
            yield document
    if not count:
        kinds = ", ".join(SUFFIXES)
        raise CollectionError(f"{source} holds no documents ({skipped}); provide files of {kinds} with text in them.")


def decode(content: bytes) -> str | None:
    """Text of a file: by its byte-order mark, else as UTF-8 where nearly all of it is, else in the likeliest encoding.

    Args:
        content: the file's bytes.

    Returns:
        The text with Unix line ends and without NULs, or None where it is not text.
    """
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)
    if encoding is None and b"\x00" in content[:SNIFFED_BYTES]:
        return None
    text = content.decode(encoding or "utf-8", "replace")
    damaged = text.count("\N{REPLACEMENT CHARACTER}")
    if damaged and damaged > len(text) * DAMAGED_SHARE:
        guessed = None if encoding else _likeliest_encoding(content)
        if guessed is None:
            return None
        text = content.decode(guessed, "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "")


def _likeliest_encoding(content: bytes) -> str | None:
    from charset_normalizer import from_bytes

    first = next(position for position, byte in enumerate(content) if byte > 127)  # before it all encodings agree
    start = max(0, first - SNIFFED_BYTES // 2)
    best = from_bytes(content[start : start + SNIFFED_BYTES]).best()
    return best.encoding if best is not None else None


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            yield path


def _read_file(path: Path, name: str, skipped: SkippedFiles) -> Iterator[SourceDocument]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        skipped.add(name, "of an unknown kind")
        return
    if suffix == ".jsonl":
        yield from _read_json_lines(path, name)
        return
    title, blocks, reason = _read_text(path, suffix) if suffix != ".pdf" else _read_pdf(path)
    if blocks:
        yield SourceDocument(name, title or storable(path.stem), blocks)
    else:
        skipped.add(name, reason)


def _read_text(path: Path, suffix: str) -> tuple[str, list[Block], str]:
    """Title, blocks, and the reason where there are none."""
    text = decode(path.read_bytes())
    if text is None:
        return "", [], "binary"
    return *READERS.get(suffix, titled_blocks)(text), "empty"


def _read_pdf(path: Path) -> tuple[str, list[Block], str]:
    from training.augment.read_pdf import pdf_blocks

    return pdf_blocks(path)


def plain_blocks(text: str) -> tuple[str, list[Block]]:
    """Paragraphs between blank lines; a line break inside one is a space. Plain text has no title."""
    return "", [Block(joined) for part in BLANK_LINE.split(text) if (joined := " ".join(part.split()))]


def titled_blocks(text: str) -> tuple[str, list[Block]]:
    """Title and paragraphs of a text file: a short first line by itself, no sentence, is its title."""
    _, blocks = plain_blocks(text)
    first = text.lstrip().partition("\n")[0]
    alone = len(blocks) > 1 and " ".join(first.split()) == blocks[0].text
    if not alone or word_count(first) > LONGEST_TITLE_WORDS or SENTENCE_END.search(first):
        return "", blocks
    return blocks[0].text, [Block(blocks[0].text, heading=True), *blocks[1:]]


def markdown_blocks(text: str) -> tuple[str, list[Block]]:
    """Title (the first heading) and blocks of Markdown, its marks removed, code as it is, front matter left out."""
    from markdown_it import MarkdownIt

    blocks: list[Block] = []
    tokens = MarkdownIt("commonmark").enable("table").parse(FRONT_MATTER.sub("", text))
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "inline":
            parts = map(_shown, token.children or ())
            heading = before is not None and before.type == "heading_open"
            blocks.append(Block(" ".join("".join(parts).split()), heading))
        elif token.type in ("fence", "code_block"):
            blocks.append(Block(" ".join(token.content.split())))
        elif token.type == "html_block":
            blocks += html_blocks(token.content)[1]
    blocks = [block for block in blocks if block.text]
    return next((block.text for block in blocks if block.heading), ""), blocks


def _shown(part: Token) -> str:
    """What a reader sees of a part of a line: of tags and comments a line break alone."""
    if part.type.endswith("break") or (part.type == "html_inline" and LINE_BREAK.match(part.content)):
        return " "
    return "" if part.type == "html_inline" else part.content


def html_blocks(text: str) -> tuple[str, list[Block]]:
    """Title and blocks of a web page: what is shown, without scripts, styles, navigation and forms."""
    from selectolax.lexbor import LexborHTMLParser

    page = LexborHTMLParser(text)
    page.strip_tags(HIDDEN)
    found = page.css_first("title")
    title = " ".join(found.text().split()) if found is not None else ""
    blocks: list[Block] = []
    words: list[str] = []
    heading = False

    def close(next_is_heading: bool) -> None:
        nonlocal heading
        if joined := " ".join("".join(words).split()):
            blocks.append(Block(joined, heading))
        words.clear()
        heading = next_is_heading

    def walk(root: Any) -> None:
        """Depth first without recursion: pages may nest deeper than Python's stack."""
        stack: list[tuple[Any, bool]] = [(root, False)]
        while stack:
            node, leaving = stack.pop()
            block = node.tag in BLOCKS
            if leaving:
                close(False)
            elif node.tag == "-text":
                words.append(node.text(deep=False))
            else:
                if block:
                    close(re.fullmatch("h[1-6]", node.tag) is not None)
                    stack.append((node, True))
                elif node.tag in ("td", "th"):
                    words.append(" ")
                stack += [(child, False) for child in reversed(list(node.iter(include_text=True)))]

    if page.body is not None:
        walk(page.body)
        close(False)
    return title or next((block.text for block in blocks if block.heading), ""), blocks


READERS: dict[str, Callable[[str], tuple[str, list[Block]]]] = {
    ".md": markdown_blocks,
    ".markdown": markdown_blocks,
    ".html": html_blocks,
    ".htm": html_blocks,
}


def _read_json_lines(path: Path, name: str) -> Iterator[SourceDocument]:
    """One document a line; a line may be of any length, and only one is held."""
    seen: dict[str, int] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = decode(line)
            if text is None:
                raise CollectionError(f"{path}, line {number}: not text; save the file as UTF-8.")
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:  # also of numbers and nesting that Python does not read
                words = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise CollectionError(
                    f"{path}, line {number}: not valid JSON ({words}); each line must be one object."
                ) from None
            if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                raise CollectionError(f"{path}, line {number}: expected an object with a string `text`.")
            given = (record.get("_id"), record.get("id"), number)
            key = storable(str(next(each for each in given if each is not None)))
            if key in seen:
                raise CollectionError(
                    f"{path}, line {number}: id {key!r} was used in line {seen[key]}; ids must be unique."
                )
            seen[key] = number
            title = " ".join(storable(str(record.get("title") or "")).split())
            blocks = plain_blocks(storable(record["text"]))[1]
            if blocks:
                yield SourceDocument(f"{name}#{quote(key, safe='/')}", title, blocks)
