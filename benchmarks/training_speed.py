"""Speed and memory of a contrastive training step with cached gradients, against sentence-transformers' own losses.

    python -m benchmarks.training_speed [--collection BEIR] [--queries 128] [--rounds 8] [--out FILE.json]

The same model (`demo/source` made bidirectional), the same texts of their natural lengths, the same optimiser, in
float32: `CachedMultipleNegativesRankingLoss` inside `MatryoshkaLoss` on one side, `training.step_loss` on the other. A
query is the start of its document; a step is forward, backward and AdamW. Rounds are interleaved, each system in a
process of its own; both start from the same weights, so their losses must stay together.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.interleaved import interleave
from benchmarks.machine import machine_record, write_result
from drama_models.collection import Collection
from training.encoders import EncoderRecipe, build_encoder, tokenise
from training.objectives import Contrastive, Labels, Matryoshka
from training.start import write_start_folder
from training.step_loss import StepLoss

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentence_transformers import SentenceTransformer

SOURCE = Path(__file__).parents[1] / "demo" / "source"
DIMS = (192, 96, 48)
TEMPERATURE = 0.05
MAX_LENGTH = 256
QUERY_WORDS = 12
TEXTS_AT_ONCE = 32  # sentence-transformers' mini-batch
TOKENS_AT_ONCE = 4096  # ours: about as much memory
LEARNING_RATE = 1e-4


def pairs_of(collection: Path, count: int, batch: int) -> tuple[list[str], list[str]]:
    """Queries and documents of a batch: documents in file order, each asked for with its own first words."""
    documents = islice(Collection(collection).documents(), batch * count, (batch + 1) * count)
    texts = [document.content for document in documents]
    return [" ".join(text.split()[:QUERY_WORDS]) for text in texts], texts


def set_up_stock(start: str, collection: str, queries: int) -> Callable[[], float]:
    """A step of sentence-transformers' losses."""
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, MatryoshkaLoss

    model = build_encoder(Path(start), EncoderRecipe(max_length=MAX_LENGTH, packed=False), device="cpu")
    cached = CachedMultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE, mini_batch_size=TEXTS_AT_ONCE)
    loss = MatryoshkaLoss(model, cached, list(DIMS))
    prompt = (model.prompts or {}).get("query") or ""

    def loss_of(query: list[str], document: list[str]) -> torch.Tensor:
        features = [model.preprocess([prompt + text for text in query]), model.preprocess(document)]
        value: torch.Tensor = loss(features, torch.empty(0))
        return value

    return _step(model, loss_of, Path(collection), queries)


def set_up_ours(start: str, collection: str, queries: int) -> Callable[[], float]:
    """A step of ours."""
    model = build_encoder(Path(start), EncoderRecipe(max_length=MAX_LENGTH), device="cpu")
    objective = Matryoshka(objective=Contrastive(temperature=TEMPERATURE), dims=DIMS)
    loss = StepLoss(model, objective, chunk_tokens=TOKENS_AT_ONCE)
    prompt = (model.prompts or {}).get("query") or ""

    def loss_of(query: list[str], document: list[str]) -> torch.Tensor:
        count = len(query)
        facts = Labels.of(positives=range(count), absent=[False] * count, scores=[[float("nan")]] * count)
        tokens = tokenise(model, [prompt + text for text in query], "query"), tokenise(model, document, "document")
        value: torch.Tensor = loss({"query": tokens[0], "document": tokens[1], "facts": facts})
        return value

    return _step(model, loss_of, Path(collection), queries)


def _step(
    model: SentenceTransformer,
    loss_of: Callable[[list[str], list[str]], torch.Tensor],
    collection: Path,
    queries: int,
) -> Callable[[], float]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    model.train()
    number = 0

    def step() -> float:
        nonlocal number
        query, document = pairs_of(collection, queries, number)
        number += 1
        optimiser.zero_grad()
        loss = loss_of(query, document)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def tokens_of(start: Path, collection: Path, queries: int, rounds: int) -> list[int]:
    """Real tokens of each round."""
    model = build_encoder(start, EncoderRecipe(max_length=MAX_LENGTH), device="cpu")
    counts = []
    for number in range(rounds):
        query, document = pairs_of(collection, queries, number)
        rows = [*tokenise(model, query, "query"), *tokenise(model, document, "document")]
        counts.append(sum(map(len, rows)))
    return counts


def measure(collection: Path, queries: int, rounds: int) -> dict[str, Any]:
    """Steps and real tokens a second, peak memory, loss by step, and the median of the rounds' ratios."""
    with tempfile.TemporaryDirectory() as work:
        start = Path(work) / "start"
        write_start_folder(SOURCE, start, bidirectional=True)
        arguments = (str(start), str(collection), queries)
        tokens = tokens_of(start, collection, queries, rounds)
        systems = {"sentence-transformers": (set_up_stock, arguments), "drama-models": (set_up_ours, arguments)}
        measured = interleave(systems, rounds)
    rows = {
        name: {
            "steps_per_second": round(1 / statistics.median(found.seconds), 4),
            "tokens_per_second": round(sum(tokens) / sum(found.seconds)),
            "peak_mib": round(found.peak_mib),
            "losses": [round(loss, 5) for loss in found.results],
        }
        for name, found in measured.items()
    }
    stock, ours = (measured[name].seconds for name in systems)
    pairs = zip(*(measured[name].results for name in systems), strict=True)
    return {
        "command": f"python -m benchmarks.training_speed --queries {queries} --rounds {rounds}",
        "systems": rows,
        "ratio": round(statistics.median(a / b for a, b in zip(stock, ours, strict=True)), 2),
        "largest_difference_of_losses": round(max(abs(one - other) for one, other in pairs), 6),
        "tokens": {"mean_of_a_step": round(statistics.mean(tokens)), "texts_of_a_step": 2 * queries},
        "settings": {
            "model": "demo/source, bidirectional", "dims": DIMS, "temperature": TEMPERATURE, "max_length": MAX_LENGTH,
            "queries": queries, "rounds": rounds, "precision": "fp32", "mini_batch_texts": TEXTS_AT_ONCE,
            "chunk_tokens": TOKENS_AT_ONCE, "threads": torch.get_num_threads(),
        },
        "machine": machine_record(),
    }  # fmt: skip


def main() -> None:
    """Parse the command line, measure, write the results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collection", type=Path, default=Path("demo/out/collection"), help="BEIR folder")
    parser.add_argument("--queries", type=int, default=128, help="pairs of a step")
    parser.add_argument("--rounds", type=int, default=8, help="steps of each system")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_speed.json"))
    options = parser.parse_args()
    write_result(options.out, measure(options.collection, options.queries, options.rounds))


if __name__ == "__main__":
    main()
