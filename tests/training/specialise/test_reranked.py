"""A specialisation whose labels come from a cross-encoder: the stock class, called by hand, says what they must be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import CrossEncoder
from torch.nn import Identity

from drama_models import Collection
from drama_models.evaluation import evaluate, read_run
from tests.training.augment.cross_encoders import write_cross_encoder
from tests.training.specialise.documents import QUICK, write_manuals
from training.__main__ import COMMANDS
from training.augment.cross_encoder import CrossEncoderReranker
from training.data.examples import read_examples
from training.specialise.findings import Findings


def stock_scores(reranker: Path, out: Path) -> dict[str, dict[str, float]]:
    """Scores of every candidate by the stock class, best first."""
    model = CrossEncoder(str(reranker), max_length=512, device="cpu")
    texts = {each.id: each.content for each in Collection(out / "work" / "found").documents()}
    queries = {each.query_id: each.query for each in read_examples(out / "work" / "queries.jsonl")}
    found = {}
    for key, hits in read_run(out / "work" / "runs" / "candidates.run").items():
        scores = model.predict([(queries[key], texts[each]) for each in hits], activation_fn=Identity())
        found[key] = dict(sorted(zip(hits, scores.tolist(), strict=True), key=lambda hit: -hit[1]))
    return found


def same(labels: dict[str, dict[str, float]], expected: dict[str, dict[str, float]]) -> bool:
    """Whether two runs agree but for rounding: another batch pads otherwise."""
    return labels.keys() == expected.keys() and all(
        hits.keys() == expected[key].keys()
        and np.allclose([*hits.values()], [*expected[key].values()], atol=1e-4)
        and np.allclose([expected[key][each] for each in hits], [*hits.values()], atol=1e-4)
        for key, hits in labels.items()
    )


def test_labels_are_the_cross_encoders_scores_and_made_anew_for_other_weights(
    retriever_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, labels = tmp_path / "zoo", tmp_path / "zoo" / "work" / "runs" / "labels.run"
    reranker = write_cross_encoder(tmp_path / "judge", seed=1)
    manuals = write_manuals(tmp_path / "manuals")
    settings = QUICK | {"documents": manuals, "model": retriever_folder, "out": out, "reranker": reranker}
    words = [f"--{name}={value}" for name, value in settings.items()]

    COMMANDS["specialise"][0](words)
    first, expected = read_run(labels), stock_scores(reranker, out)
    assert len(first) > 100
    assert same(first, expected)
    findings = Findings.load(out / "findings.json")
    assert findings.labels_from == f"the cross-encoder {reranker}"
    assert f"The labels are those of the cross-encoder {reranker}." in (out / "report.html").read_text(encoding="utf-8")
    assert {each.name: each.role for each in findings.rankers} == {
        "model": "model", "bm25": "retriever", "labels": "labels",
    }  # fmt: skip
    qrels = Collection(out / "collection").qrels("dev")
    told = {each.name: each.ndcg_at_10 for each in findings.rankers}["labels"]
    assert told == pytest.approx(evaluate(expected, qrels, ["ndcg@10"])["ndcg@10"])
    for example in read_examples(out / "examples" / "examples.jsonl"):
        first_of_all = next(iter(expected[example.query_id]))
        assert example.positive_ids == [first_of_all]  # the queries of which this is not so are dropped

    capsys.readouterr()
    COMMANDS["specialise"][0](words)
    assert "labels: done before" in capsys.readouterr().err
    write_cross_encoder(reranker, seed=2)
    COMMANDS["specialise"][0](words)
    printed = capsys.readouterr().err
    assert "candidates: done before" in printed
    assert "labels: done before" not in printed
    assert not same(read_run(labels), first)
    assert same(read_run(labels), stock_scores(reranker, out))

    scored: list[tuple[str, str]] = []
    predicted = CrossEncoderReranker._predicted

    def counting(self: CrossEncoderReranker, pairs: list[tuple[str, str]]) -> list[float]:
        scored.extend(pairs)
        return predicted(self, pairs)

    before = pairs_of(out)
    write_manuals(manuals, range(100, 104))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(CrossEncoderReranker, "_predicted", counting)
        COMMANDS["specialise"][0](words)
    after = pairs_of(out)
    assert after != before
    assert sorted(scored) == sorted(after - before)  # what is new, each once
    assert same(read_run(labels), stock_scores(reranker, out))


def pairs_of(out: Path) -> set[tuple[str, str]]:
    """Query and passage of every candidate."""
    texts = {each.id: each.content for each in Collection(out / "work" / "found").documents()}
    queries = {each.query_id: each.query for each in read_examples(out / "work" / "queries.jsonl")}
    run = read_run(out / "work" / "runs" / "candidates.run")
    return {(queries[key], texts[each]) for key, hits in run.items() for each in hits}
