"""Which of the two models should be used, and what a reader should know before any figure.

The new retriever is recommended only where nDCG@10 went up by more than chance explains and Recall@100 did not go down
by more: on the user's own queries where there are any, else on the held-out ones. In all other cases the old model is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.specialise.findings import SIGNIFICANT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from training.specialise.findings import Change, Choice, Evaluation, Findings, RankerQuality

NDCG, RECALL = "ndcg@10", "recall@100"
FEW_QUERIES = 50
FEW_EXAMPLES = 200


def judge(evaluations: Sequence[Evaluation]) -> tuple[Choice, str]:
    """The recommended model, and a sentence that says why; the last evaluation decides."""
    deciding = evaluations[-1]
    change = deciding.change(NDCG)
    told = f"nDCG@10 on {_counted(deciding)} {_told(change)}"
    if change.difference > 0 and change.significant:
        if lost := _lost_recall(deciding):
            return "old", f"Keep the old model: {told}, but {lost}."
        return "new", f"Use the new retriever: {told}."
    if change.difference < 0:
        return "old", f"Keep the old model: {told}."
    return "old", f"Keep the old model: {told}, which may be chance."


def warn(evaluations: Sequence[Evaluation], rankers: Sequence[RankerQuality], examples: int) -> list[str]:
    """Sentences that a reader should see first; empty where all is well."""
    warnings = []
    for evaluation in evaluations:
        change = evaluation.change(NDCG)
        told = f"nDCG@10 on {_counted(evaluation)} {_told(change)}"
        if change.low == change.high == 0:
            warnings.append(
                f"Nothing changed on {_counted(evaluation)}: most likely no checkpoint was better on the dev queries "
                "than the model as it came, which is then what was kept."
            )
        elif change.difference < 0 and change.significant:
            warnings.append(f"Training made the retriever worse: {told}.")
        elif not change.significant:
            warnings.append(f"The change is not significant: {told}.")
        if lost := _lost_recall(evaluation):
            warnings.append(f"Less of what is relevant is found: {lost}.")
        if evaluation.queries < FEW_QUERIES:
            warnings.append(_few(evaluation))
    model = next((each for each in rankers if each.role == "model"), None)
    labels = next((each for each in rankers if each.role == "labels"), None)
    if model is not None and labels is not None and labels.ndcg_at_10 <= model.ndcg_at_10:
        warnings.append(
            f"The labels rank the dev queries no better ({labels.ndcg_at_10:.3f}) than the model itself "
            f"({model.ndcg_at_10:.3f}), so there is little to learn from them; try another --teacher or --reranker."
        )
    if examples < FEW_EXAMPLES:
        warnings.append(f"Only {examples} queries passed the filters; a training on so few seldom helps.")
    return warnings


def unanswered(large_model: Mapping[str, Any]) -> list[str]:
    """What the large model did not answer, for a reader to see first; empty where it answered all.

    Args:
        large_model: of the findings.
    """
    failed, lists = large_model.get("failed", 0), large_model.get("reranking", {})
    parts = [f"{failed:,} of {failed + large_model['answers']:,} requests for queries"] if failed else []
    if lists.get("unanswered"):
        parts.append(f"{lists['unanswered']:,} of {lists['queries']:,} requests to order a list")
    if not parts:
        return []
    return [
        f"The large model did not answer {' and '.join(parts)}, which are not trained on; the same command asks for "
        "them again."
    ]


def _lost_recall(evaluation: Evaluation) -> str:
    """What became of Recall@100 where it fell by more than chance explains; else empty."""
    change = next((each for each in evaluation.changes if each.metric == RECALL), None)
    if change is None or change.difference >= 0 or not change.significant:
        return ""
    return f"Recall@100 on {_counted(evaluation)} {_told(change)}"


def _few(evaluation: Evaluation) -> str:
    if evaluation.name == "your queries":
        return f"Only {evaluation.queries} of your queries are judged; figures on so few say little, judge more."
    return (
        f"There are only {evaluation.queries} held-out queries; figures on so few say little. Add documents, or judged "
        "queries of your own with --qrels."
    )


def _counted(evaluation: Evaluation) -> str:
    """Such as `412 held-out queries`, `50 of your queries`."""
    of = "of " if evaluation.name == "your queries" else ""
    return f"{evaluation.queries:,} {of}{evaluation.name}"


def _told(change: Change) -> str:
    return (
        f"went from {change.before:.3f} to {change.after:.3f} ({change.difference:+.3f}, 95% interval "
        f"{change.low:+.3f} to {change.high:+.3f}, p {_chance(change.p)})"
    )


def _chance(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < SIGNIFICANT else f"= {p:.2f}"


def summary(findings: Findings, out: Path) -> str:
    """What the command prints at its end: warnings, figures, the recommended folder, and how to release it."""
    figures = [
        f"{change.metric} on {_counted(evaluation)}: {change.before:.4f} → {change.after:.4f} "
        f"({change.difference:+.4f}, 95% interval {change.low:+.4f} to {change.high:+.4f}, p {_chance(change.p)})"
        for evaluation in findings.evaluations
        for change in evaluation.changes
    ]
    release = "next" if findings.recommended == "new" else "to use the new one all the same"
    return "\n".join(
        [
            *(f"warning: {warning}" for warning in findings.warnings),
            *figures,
            findings.reason,
            f"recommended: {findings.recommended_folder}; both are kept, the report is {out / 'report.html'}",
            f"{release}: {findings.export_command}",
        ]
    )
