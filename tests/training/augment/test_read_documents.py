"""Documents as a user has them: four formats, several encodings, and files that are no text at all."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

from drama_models.errors import CollectionError
from drama_models.folders import sha256_of_folder
from training.augment.read_documents import (
    Block,
    SkippedFiles,
    decode,
    html_blocks,
    markdown_blocks,
    plain_blocks,
    read_documents,
)

PAGE = """<html><head><title>Pump  manual</title><style>p {}</style></head><body><nav>Home</nav>
<h1>Starting <i>up</i></h1><p>Open the <b>valve</b>.<br>Wait.</p><table><tr><td>Hz</td><td>50</td></tr></table>tail
<script>alert(1)</script></body></html>"""


def test_a_web_page_is_what_it_shows() -> None:
    title, blocks = html_blocks(PAGE)
    assert title == "Pump manual"
    assert blocks[0] == Block("Starting up", heading=True)
    assert [block.text for block in blocks[1:]] == ["Open the valve.", "Wait.", "Hz 50", "tail"]
    assert html_blocks("<div>" * 20_000 + "deep")[1] == [Block("deep")]


def test_markdown_loses_its_marks_and_keeps_its_headings() -> None:
    title, blocks = markdown_blocks(
        "---\ntags: x\n---\n# A *guide*\n\nSee [this](http://x) `code`\nwrapped.\n\n"
        "## Two\n\n- item\n\n```\nx = 1\n```\n"
    )
    assert title == "A guide"
    assert [block.text for block in blocks if block.heading] == ["A guide", "Two"]
    assert [block.text for block in blocks if not block.heading] == ["See this code wrapped.", "item", "x = 1"]


def test_tags_and_comments_inside_markdown_are_not_text() -> None:
    title, blocks = markdown_blocks(
        '# The <kbd>Ctrl</kbd> key <a name="x"></a>\n\n'
        "Hold it.<br>Or<BR/>not.<!-- TODO --> `<br>` and 1 < 2.\n\n<!-- alone -->\n"
    )
    assert title == "The Ctrl key"
    assert [block.text for block in blocks] == ["The Ctrl key", "Hold it. Or not. <br> and 1 < 2."]


def test_plain_text_is_cut_at_blank_lines_only() -> None:
    assert plain_blocks("one\nstill one\n \ntwo\n\n\n") == ("", [Block("one still one"), Block("two")])


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("naïve café", "utf-8"),
        ("naïve café", "utf-8-sig"),
        ("кодировка", "utf-16"),
        ("Die Straße führt über schöne Brücken nach Köln und zurück, für alle Gäste.", "latin-1"),
        ("Это русский текст, по которому видно, в какой он кодировке записан.", "cp1251"),
        ("これは日本語の文章です。文字コードを調べるための試験です。", "shift_jis"),
    ],
)
def test_text_is_read_in_its_encoding(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding)) == text


def test_a_few_stray_bytes_do_not_change_the_encoding_and_binary_is_no_text() -> None:
    assert decode("déjà vu ".encode() * 1000 + b"\xff") == "déjà vu " * 1000 + "\N{REPLACEMENT CHARACTER}"
    assert decode(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR") is None
    assert decode(b"one\r\ntwo\rthree") == "one\ntwo\nthree"


def test_a_folder_is_read_in_order_and_what_is_no_document_is_reported(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "my page.html").write_text(PAGE, encoding="utf-8")
    (tmp_path / "a.txt").write_text("Hello.", encoding="utf-8")
    (tmp_path / "empty.md").write_text(" \n", encoding="utf-8")
    (tmp_path / "logo.txt").write_bytes(b"\x00\x01")
    (tmp_path / "photo.png").write_bytes(b"\x00\x01")
    (tmp_path / ".hidden.txt").write_text("secret", encoding="utf-8")
    lines = [{"_id": "x y", "title": "T", "text": "one"}, {"text": "two"}, {"id": 7, "text": "three"}]
    (tmp_path / "z.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    skipped = SkippedFiles()
    documents = list(read_documents(tmp_path, skipped))
    assert [document.id for document in documents] == [
        "a.txt", "sub/my%20page.html", "z.jsonl#x%20y", "z.jsonl#2", "z.jsonl#7"
    ]  # fmt: skip
    assert [document.title for document in documents] == ["a", "Pump manual", "T", "", ""]
    assert str(skipped) == ("3 files skipped (empty: empty.md; binary: logo.txt; of an unknown kind: photo.png)")


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names of files are Unicode there")
def test_a_name_that_is_no_text_is_read_and_hashed(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"bad\xffname.txt")).write_text("Hello.", encoding="utf-8")
    (document,) = read_documents(tmp_path)
    assert (document.id, document.title) == ("bad%FFname.txt", "bad\N{REPLACEMENT CHARACTER}name")
    line = b"bad\xffname.txt\0" + hashlib.sha256(b"Hello.").hexdigest().encode() + b"\n"
    assert sha256_of_folder(tmp_path) == hashlib.sha256(line).hexdigest()


def test_a_line_whose_id_is_null_has_none(tmp_path: Path) -> None:
    lines = ['{"_id": null, "text": "one"}', '{"_id": null, "text": "two"}', '{"_id": null, "id": 7, "text": "three"}']
    (tmp_path / "d.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert [document.id for document in read_documents(tmp_path)] == ["d.jsonl#1", "d.jsonl#2", "d.jsonl#7"]


def test_a_folder_without_documents_says_so(tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match="There are no documents at"):
        list(read_documents(tmp_path / "absent"))
    with pytest.raises(CollectionError, match=r"holds no documents \(no file skipped\); provide files of \.txt"):
        list(read_documents(tmp_path))
    (tmp_path / "logo.txt").write_bytes(b"\x00\x01")
    with pytest.raises(CollectionError, match=r"1 files skipped \(binary: logo.txt\)"):
        list(read_documents(tmp_path))


def test_half_a_character_is_read_as_a_damaged_one(tmp_path: Path) -> None:
    line = r'{"_id": "\ud83d", "title": "\udc00 T", "text": "\ud83d\ude00 and \ud83d"}'
    (tmp_path / "d.jsonl").write_text(line, encoding="utf-8")
    (document,) = read_documents(tmp_path)
    assert (document.id, document.title) == ("d.jsonl#%EF%BF%BD", "\N{REPLACEMENT CHARACTER} T")
    assert document.blocks == [Block("\N{GRINNING FACE} and \N{REPLACEMENT CHARACTER}")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{cut", r"d\.jsonl, line 2: not valid JSON"),
        ('{"text": "x", "n": ' + "9" * 5000 + "}", "line 2: not valid JSON"),
        ('{"text": "x", "n": ' + "[" * 100_000, "line 2: not valid JSON"),
        ('["text"]', "line 2: expected an object with a string `text`"),
        ('{"_id": "a", "text": "again"}', "line 2: id 'a' was used in line 1"),
        ("\x00\x00", "line 2: not text"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"_id": "a", "text": "one"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(CollectionError, match=message):
        list(read_documents(path))
