"""Findings are kept as JSON and read back as the same values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drama_models.errors import CollectionError
from training.specialise.findings import (
    Change,
    Corpus,
    DimChange,
    DroppedQuery,
    Evaluation,
    Filter,
    Findings,
    KindChange,
    QueryKind,
    QueryScore,
    RankerQuality,
    SampleQuery,
    ShownPassage,
    WorstQuery,
)


def findings() -> Findings:
    """Findings with something in every list."""
    expected = ShownPassage(id="a.md:0", text="Sails are set …", relevant=True)
    found = ShownPassage(id="b.md:4", text="Ropes <b>&", relevant=False)
    worst = WorstQuery(
        query_id="q1", query="when are sails set?", kind="question", before=1.0, after=0.0, expected=[expected],
        found=[found],
    )  # fmt: skip
    held_out = Evaluation(
        name="held-out queries", queries=2, groups=2,
        changes=[
            Change(metric="ndcg@10", before=0.5, after=0.625, low=-0.01, high=0.26, p=0.07),
            Change(metric="recall@100", before=0.9, after=0.95, low=0.01, high=0.09, p=0.01),
        ],
        by_kind=[KindChange(kind="question", queries=2, before=0.5, after=0.625)],
        by_dim=[DimChange(dim=48, before=0.5, after=0.625), DimChange(dim=16, before=0.4, after=0.5)],
        scores=[QueryScore(query_id="q1", query="when are sails set?", kind="question", before=1.0, after=0.0)],
        worst=[worst],
    )  # fmt: skip
    dropped = DroppedQuery(
        query_id="q2", query="it", kind="crop", own="a.md:0", own_text="Sails", instead=None, instead_text=None
    )
    kind = QueryKind(
        kind="question", source="found", train=9, kept=7, dev=1, test=2,
        samples=[SampleQuery(query="when are sails set?", passage_id="a.md:0", passage="Sails are set …")],
    )  # fmt: skip
    return Findings(
        model="m", retriever="out/retriever", recommended="old", recommended_folder="m",
        reason="The change is not significant.", warnings=["The change is not significant."],
        corpus=Corpus(documents=3, passages=5, duplicates=1, skipped={"binary": ["x.txt"]}, split={"train": 2}),
        kinds=[kind], filters=[Filter(name="found by the retriever", kept=7, dropped=2, samples=[dropped])],
        rankers=[RankerQuality(name="bm25", role="teacher", queries=1, ndcg_at_10=0.7)], evaluations=[held_out],
        labels_from="the mean of bm25 and model",
        training={"steps": 4}, large_model={}, settings={"model": "m"}, versions={"python": "3.11"},
        times={"chunk": 0.5}, export_command="python -m export release --retriever m --out RELEASE",
    )  # fmt: skip


def test_findings_are_read_back_as_they_were(tmp_path: Path) -> None:
    findings().save(tmp_path / "findings.json")
    assert Findings.load(tmp_path / "findings.json") == findings()
    assert [path.name for path in tmp_path.iterdir()] == ["findings.json"]


def test_a_change_knows_its_difference_and_what_is_significant() -> None:
    ndcg, recall = findings().evaluations[0].changes
    assert ndcg.difference == 0.125
    assert (ndcg.significant, recall.significant) == (False, True)
    assert findings().evaluations[0].change("recall@100") is not None
    with pytest.raises(ValueError, match="'map' is not among"):
        findings().evaluations[0].change("map")


@pytest.mark.parametrize("content", ["{}", "[]", "not JSON", json.dumps({"model": "m"})])
def test_a_file_of_something_else_is_one_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "findings.json").write_text(content, encoding="utf-8")
    with pytest.raises(CollectionError, match="is not a file of findings"):
        Findings.load(tmp_path / "findings.json")
    with pytest.raises(CollectionError, match="There are no findings at"):
        Findings.load(tmp_path / "absent.json")
