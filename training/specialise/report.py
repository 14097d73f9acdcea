"""`report.html`: what a specialisation did, for people; one file to read, mail and keep.

The page is the template `report.html` beside this file, filled with the findings and nothing else. Queries and passages
are strangers' text: every value is escaped by Jinja2, characters that no page may hold are replaced, text that runs
from right to left stays in its place, and the page forbids itself scripts and anything from elsewhere.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from drama_models.evaluation import METRICS
from drama_models.folders import atomic_file

if TYPE_CHECKING:
    from training.specialise.findings import Findings

TEMPLATE = "report.html"
# Controls, lone surrogates, and signs that reorder what stands around them.
UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
SOURCES = {"found": "the documents", "generate": "a large model"}
LABEL_WIDTH, PLOT_WIDTH, ROW_HEIGHT = 260, 480, 28  # pixels of the drawing


@dataclass(frozen=True)
class IntervalMark:
    """One difference in the drawing; pixels."""

    label: str
    y: int
    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Tick:
    """A labelled place of the axis."""

    x: float
    value: float


@dataclass(frozen=True)
class Intervals:
    """The drawing of all differences."""

    width: int
    height: int
    zero: float
    marks: list[IntervalMark]
    ticks: list[Tick]


def write_report(findings: Findings, path: Path) -> None:
    """Write the report, complete or not at all.

    Args:
        findings: what it shows.
        path: of the HTML file.
    """
    page = _environment().get_template(TEMPLATE)
    content = page.render(findings=findings, intervals=intervals(findings), sources=SOURCES)
    with atomic_file(path) as partial:
        partial.write_text(content, encoding="utf-8")


def intervals(findings: Findings) -> Intervals:
    """Where each difference is drawn with its interval: a row for each metric of each evaluation, one scale for all."""
    changes = [(evaluation.name, change) for evaluation in findings.evaluations for change in evaluation.changes]
    ends = [abs(value) for _, change in changes for value in (change.low, change.difference, change.high)]
    reach = max([*ends, 1e-3])
    middle = LABEL_WIDTH + PLOT_WIDTH / 2

    def place(value: float) -> float:
        return round(middle + value / reach * 0.9 * PLOT_WIDTH / 2, 1)

    marks = [
        IntervalMark(
            label=f"{_metric(change.metric)}, {name}",
            y=ROW_HEIGHT // 2 + number * ROW_HEIGHT,
            low=place(change.low),
            middle=place(change.difference),
            high=place(change.high),
        )
        for number, (name, change) in enumerate(changes)
    ]
    ticks = [Tick(place(value), value) for value in (-reach, 0.0, reach)]
    return Intervals(LABEL_WIDTH + PLOT_WIDTH, (len(marks) + 1) * ROW_HEIGHT, place(0.0), marks, ticks)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "points": lambda value: f"{100 * value:.1f}",
        "signed": _signed,
        "chance": lambda value: f"{value:.3f}" if value >= 0.001 else "< 0.001",
        "count": lambda value: f"{value:,}",
        "metric": _metric,
        "plain": _plain,
    }
    return environment


def _shown(value: Any) -> Any:
    """What is put on the page, before it is escaped; markup that the template made stays as it is."""
    return UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", value) if type(value) is str else value


def _signed(value: float) -> str:
    """A difference in points; one that rounds to nothing has no sign."""
    rounded = round(100 * value, 1)
    return f"{rounded:+.1f}" if rounded else "0.0"


def _metric(name: str) -> str:
    return {"recall@100": "Recall@100"}.get(name, METRICS.get(name, name))


def _plain(value: Any) -> str:
    """A setting as text: names as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
