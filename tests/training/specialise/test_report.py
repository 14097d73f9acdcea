"""The report as a parser of the standard library reads it: its figures, and strangers' text that stays text."""

from __future__ import annotations

from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tests.training.specialise.test_findings import findings
from training.specialise.findings import Findings, _read
from training.specialise.report import intervals, write_report

HOSTILE = "<script>alert('x')</script></table><img src=x onerror=y>&lt;{{ 7*7 }}{% x %}\"' \u202e\ud800\x00"
SHOWN = HOSTILE.replace("\u202e", "\ufffd").replace("\ud800", "\ufffd").replace("\x00", "\ufffd")
STRANGERS = {
    "query", "passage", "text", "own_text", "instead_text", "instead", "query_id", "id", "passage_id", "own", "model",
    "retriever", "recommended_folder", "reason", "warnings", "kind", "skipped", "settings", "versions", "large_model",
    "export_command",
}  # fmt: skip
NOT = "(not significant)"
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Tags, attributes, and the text of every table row."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def written(values: Findings, folder: Path) -> Page:
    write_report(values, folder / "report.html")
    assert [path.name for path in folder.iterdir()] == ["report.html"]
    page = Page(folder / "report.html")
    assert page.open == []
    return page


def hostile(value: Any, field: str = "") -> Any:
    """The same findings with hostile text in front of everything that comes from outside."""
    if isinstance(value, dict):
        return {key: hostile(item, field if field in STRANGERS else key) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item, field) for item in value]
    return f"{HOSTILE}{value}" if isinstance(value, str) and field in STRANGERS else value


def test_the_figures_stand_where_a_reader_looks_for_them(tmp_path: Path) -> None:
    page = written(findings(), tmp_path)
    for row in [
        ["held-out queries (2 of 2 documents)", "nDCG@10", "50.0", "62.5", "+12.5", "-1.0 to +26.0", f"0.070 {NOT}"],
        ["held-out queries", "Recall@100", "90.0", "95.0", "+5.0", "+1.0 to +9.0", "0.010"],
        ["48", "50.0", "62.5", "+12.5"],
        ["16", "40.0", "50.0", "+10.0"],
        ["question", "2", "50.0", "62.5", "+12.5"],
        ["question", "the documents", "9", "7", "1", "2"],
        ["found by the retriever", "7", "2"],
        ["bm25", "teacher", "1", "70.0"],
        ["steps", "4"],
    ]:  # fmt: skip
        assert row in page.rows, row
    for words in [
        "Recommended: the old model, m.", "The change is not significant.", "when are sails set?", "b.md:4",
        "Ropes <b>&", "nDCG@10 100.0 before, 0.0 after", "python -m export release --retriever m --out RELEASE",
        "binary: x.txt", "a.md:0, its own",
    ]:  # fmt: skip
        assert words in page.text, words
    assert len({tag for tag in page.tags if tag in ("h1", "svg", "circle")}) == 3


def test_queries_of_the_user_are_counted_by_themselves(tmp_path: Path) -> None:
    (held_out,) = findings().evaluations
    judged = replace(held_out, name="your queries", queries=1234, groups=1234)
    page = written(replace(findings(), evaluations=[held_out, judged]), tmp_path)
    assert [row[0] for row in page.rows[1:5:2]] == ["held-out queries (2 of 2 documents)", "your queries (1,234)"]


def test_text_of_strangers_stays_text(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "hostile").mkdir()
    plain = written(findings(), tmp_path / "plain")
    page = written(_read(Findings, hostile(asdict(findings()))), tmp_path / "hostile")
    assert page.tags == plain.tags
    assert page.attributes == plain.attributes
    assert page.text.count(SHOWN) >= 20
    assert f"{SHOWN}when are sails set?" in page.text
    assert not {"script", "img", "link", "iframe", "a"} & set(page.tags)
    assert not {"src", "href"} & {name for name, _ in page.attributes}
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_the_drawing_keeps_order_and_scale() -> None:
    drawn = intervals(findings())
    ndcg, recall = drawn.marks
    assert ndcg.low < drawn.zero < ndcg.middle < ndcg.high <= drawn.width
    assert drawn.zero < recall.low < recall.middle < recall.high
    per_unit = (ndcg.high - drawn.zero) / 0.26
    assert abs(recall.middle - drawn.zero - 0.05 * per_unit) < 0.2  # places are rounded to a tenth of a pixel
    assert [tick.value for tick in drawn.ticks] == [-0.26, 0.0, 0.26]


def test_a_run_without_anything_to_show_has_a_report(tmp_path: Path) -> None:
    bare = replace(findings(), warnings=[], kinds=[], filters=[], rankers=[], evaluations=[], training={}, times={})
    assert "circle" not in written(bare, tmp_path).tags
