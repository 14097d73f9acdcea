"""`report.html`: one self-contained page of what the demo made and how good it is."""

from __future__ import annotations

import html
import io
import json
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

from drama_models.collection import Collection
from drama_models.folders import atomic_file
from drama_models.provenance import read_provenance

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from drama_models.evaluation import Run

SYSTEMS = {
    "bm25": "BM25",
    "untrained": "pruned, recovered, untrained",
    "random_start": "trained from random weights",
    "pruned_start": "trained from the pruned start",
}
SHOWN_QUESTIONS = 10
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 } table
{ border-collapse: collapse; margin: 1rem 0 } td, th { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align:
left } svg { max-width: 100%; height: auto } .hit { color: #0a6; font-weight: 600 } code { background: #f4f4f4 }
"""


def write_report(out: Path, metrics: dict[str, Any], runs: dict[str, Run]) -> Path:
    """Write `report.html` into the demo's folder.

    Args:
        out: the demo's folder, with all stages made.
        metrics: from `demo.metrics.measure`.
        runs: from there as well.
    """
    parts = [
        "<h1>A retriever for this Python environment</h1>",
        f"<p>{html.escape(verdict(metrics))}</p>",
        "<h2>Effectiveness on the hand-written test questions</h2>",
        _metrics_table(metrics),
        _figure(_plot_dims, metrics),
        "<h2>Pruning</h2>",
        "<p>Expected size of every pruned dimension while the masks are learned; dashed: its target.</p>",
        _figure(_plot_sizes, out),
        "<h2>Losses</h2>",
        _figure(_plot_losses, out),
        f"<h2>{SHOWN_QUESTIONS} questions and what was found</h2>",
        _questions(out, runs["pruned_start"]),
        "<h2>Seconds by stage</h2>",
        _rows(("stage", "seconds"), [(name, f"{value:.0f}") for name, value in metrics["seconds"].items()]),
    ]
    path = out / "report.html"
    with atomic_file(path) as partial:
        page = f"<!doctype html><html lang=en><meta charset=utf-8><title>demo</title><style>{STYLE}</style>"
        partial.write_text(page + "\n".join(parts) + "</html>\n", encoding="utf-8")
    return path


def verdict(metrics: dict[str, Any]) -> str:
    """Plainly: whether the pruned start was worth it, and whether the retriever beats plain word matching."""
    pruned, random, bm25 = (metrics[name]["recall@100"] for name in ("pruned_start", "random_start", "bm25"))
    worth = "beats" if pruned > random else "did NOT beat"
    found = "finds more still" if bm25 > pruned else "finds no more"
    return (
        f"The pruned start {worth} random initialisation: Recall@100 {pruned:.3f} against {random:.3f}. "
        f"BM25 {found}: {bm25:.3f}."
    )


def table_rows(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    """System, nDCG@10 and Recall@100, each with its interval."""
    rows = [(label, metrics[name]) for name, label in SYSTEMS.items()]
    rows += [(f"the same, first {dim} dimensions", values) for dim, values in metrics["dims"].items()]
    return [(label, _with_interval(values, "ndcg@10"), _with_interval(values, "recall@100")) for label, values in rows]


def _with_interval(values: dict[str, Any], metric: str) -> str:
    low, high = values["interval"][metric]
    return f"{values[metric]:.3f} [{low:.3f}, {high:.3f}]"


def _metrics_table(metrics: dict[str, Any]) -> str:
    note = f"<p>{metrics['questions']} questions over {metrics['documents']:,} documents; 95% bootstrap intervals.</p>"
    return _rows(("system", "nDCG@10", "Recall@100"), table_rows(metrics)) + note


def _rows(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _figure(draw: Any, data: Any) -> str:
    """An inline SVG; no dates or random ids in it, so that equal data gives an equal page."""
    with mpl.rc_context({"svg.hashsalt": "drama", "font.size": 10}):
        figure = draw(data)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
        plt.close(figure)
    return buffer.getvalue().partition("?>")[2].partition(">")[2]  # without the XML and document-type lines


def _plot_dims(metrics: dict[str, Any]) -> Any:
    figure, axes = plt.subplots(figsize=(6, 3.2))
    dims = sorted(map(int, metrics["dims"]))
    for metric in ("ndcg@10", "recall@100"):
        axes.plot(dims, [metrics["dims"][str(dim)][metric] for dim in dims], marker="o", label=metric)
    axes.set(xlabel="embedding size", ylim=(0, None), xscale="log", title="effectiveness by embedding size")
    axes.set_xticks(dims, map(str, dims))
    axes.minorticks_off()
    axes.legend()
    return figure


def _plot_sizes(out: Path) -> Any:
    log = _log(out / "masks")
    sizes = (read_provenance(out / "masks") or {})["figures"]["expected_sizes"]
    figure, all_axes = plt.subplots(1, len(sizes), figsize=(3 * len(sizes), 2.6))
    axes: Axes
    for axes, (name, size) in zip(all_axes, sizes.items(), strict=True):
        axes.plot([line["step"] for line in log], [line[name] for line in log])
        axes.axhline(size["target"], linestyle="--", color="gray")
        axes.set(title=name, xlabel="step", ylim=(0, None))
    figure.tight_layout()
    return figure


def _plot_losses(out: Path) -> Any:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3))
    recovery = _log(out / "backbone")
    left.plot([line["step"] for line in recovery], [line["loss"] for line in recovery])
    left.set(title="recovery: nats a token", xlabel="step")
    for folder, label in (("retriever", "pruned start"), ("random_retriever", "random start")):
        log = _log(out / folder)
        right.plot([line["step"] for line in log], [line["loss"] for line in log], label=label)
    right.set(title="contrastive training: InfoNCE summed over sizes", xlabel="step")
    right.legend()
    return figure


def _log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text(encoding="utf-8").splitlines()]


def _questions(out: Path, run: Run) -> str:
    """Evenly chosen questions, best and worst among them, with the first hits; right ones are marked."""
    collection = Collection(out / "collection")
    queries, qrels = collection.queries(), collection.qrels("test")
    keys = list(qrels)[:: max(1, len(qrels) // SHOWN_QUESTIONS)][:SHOWN_QUESTIONS]
    blocks = []
    for key in keys:
        hits = sorted(run.get(key, {}).items(), key=lambda hit: -hit[1])[:5]
        items = "".join(
            f"<li class={'hit' if document in qrels[key] else 'miss'}>{html.escape(document)} ({score:.3f})</li>"
            for document, score in hits
        )
        answers = html.escape(", ".join(qrels[key]))
        blocks.append(f"<h3>{html.escape(queries[key])}</h3><ol>{items}</ol><p>Answers: {answers}</p>")
    return "".join(blocks)
