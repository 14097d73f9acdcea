"""PDF files, written here byte by byte: their text, and one reason for each that has none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from drama_models.errors import CollectionError
from training.augment.read_documents import Block, SkippedFiles, read_documents


def pdf(pages: list[list[str]], title: str = "") -> bytes:
    """A PDF of pages with lines of text, as small as the format allows."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, lines in enumerate(pages):
        shown = " ".join(f"({line}) Tj T*" for line in lines)
        stream = f"BT /F1 12 Tf 14 TL 72 700 Td {shown} ET"
        resources = "/Resources << /Font << /F1 3 0 R >> >>"
        contents = f"/Contents {5 + 2 * number} 0 R"
        objects.append(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] {resources} {contents} >>")
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    objects.append(f"<< /Title ({title}) >>")
    content, places = "%PDF-1.4\n", []
    for number, each in enumerate(objects, start=1):
        places.append(len(content))
        content += f"{number} 0 obj\n{each}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    trailer = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R /Info {len(objects)} 0 R >>"
    end = f"{trailer}\nstartxref\n{len(content)}\n%%EOF\n"
    return f"{content}xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{end}".encode("latin-1")


def test_the_text_of_all_pages_is_read(tmp_path: Path) -> None:
    pages = [["Open the valve and wait for the pres-", "sure to fall. Then go"], ["on to the next page."]]
    (tmp_path / "a.pdf").write_bytes(pdf(pages, "Pump manual"))
    (tmp_path / "plan b.PDF").write_bytes(pdf([["One line."]]))
    first, second = read_documents(tmp_path)
    text = "Open the valve and wait for the pressure to fall. Then go on to the next page."
    assert (first.id, first.title, first.blocks) == ("a.pdf", "Pump manual", [Block(text)])
    assert (second.id, second.title, second.blocks) == ("plan%20b.PDF", "plan b", [Block("One line.")])


def test_each_file_without_text_has_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pypdf import PdfWriter

    (tmp_path / "a.txt").write_text("So that there is a document.", encoding="utf-8")
    (tmp_path / "cut.pdf").write_bytes(pdf([["text"]])[:100])
    (tmp_path / "no.pdf").write_bytes(b"\x89PNG\x00")
    (tmp_path / "scan.pdf").write_bytes(pdf([[]]))
    locked = PdfWriter()
    locked.add_blank_page(100, 100)
    locked.encrypt("secret", algorithm="RC4-128")
    locked.write(tmp_path / "locked.pdf")
    skipped = SkippedFiles()
    assert [document.id for document in read_documents(tmp_path, skipped)] == ["a.txt"]
    assert skipped.reasons == {
        "damaged PDF": ["cut.pdf", "no.pdf"],
        "PDF with a password": ["locked.pdf"],
        "PDF without text; run text recognition on it first": ["scan.pdf"],
    }
    with pytest.raises(CollectionError, match=r"scan\.pdf\)\); provide files of"):
        list(read_documents(tmp_path / "scan.pdf"))
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(CollectionError, match=r"PDF, which needs `pip install 'drama-models\[pdf\]'`"):
        list(read_documents(tmp_path / "cut.pdf"))
