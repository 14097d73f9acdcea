"""From documents to mined lists: chunking, de-duplication, one crop for each passage, BM25's 50 best for each crop.

    python -m benchmarks.augment [--passages 100000] [--out benchmarks/results/augment.json]
    python -m benchmarks.augment --deduplicate 1000000 --out benchmarks/results/deduplicate.json

The second command measures de-duplication alone, of as many passages as are asked for.

Documents are sentences of this Python environment's docstrings in random order, with copies and beginnings of others
among them. Each stage is timed by the clock and by the processors' time, its own and its workers', since machines are
shared; memory is that of the whole process tree, shared pages counted once.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from benchmarks.machine import machine_record, write_result
from benchmarks.sample_model import SOURCE, sample_texts

if TYPE_CHECKING:
    from collections.abc import Iterator

SENTENCES_PER_DOCUMENT = 120
PARAGRAPH_SENTENCES = 6
PASSAGE_SENTENCES = 8  # about a hundred words
COPIES = 0.03  # of the documents are copies, and as many beginnings of others
K = 50
SAMPLE_EVERY_S = 0.2
ALLOWED = {"seconds": 300, "peak_mib": 4096}  # for the default number of passages, on two cores


def write_passages(folder: Path, count: int) -> int:
    """A collection of passages, with copies and beginnings of others among them; returns the bytes of its corpus."""
    from drama_models.collection import Collection

    sentences = sample_sentences()
    draw = np.random.default_rng(0)
    recent: list[str] = []

    def records() -> Iterator[dict[str, str]]:
        for number in range(count):
            kind = draw.random()
            if recent and kind < 2 * COPIES:
                text = recent[draw.integers(len(recent))]
                text = text.upper() if kind < COPIES else text[: len(text) // 2]
            else:
                chosen = draw.integers(len(sentences), size=PASSAGE_SENTENCES)
                text = " ".join(sentences[place] for place in chosen)
                recent[:] = [*recent[-500:], text]
            yield {"_id": f"p{number}", "title": "", "text": text}

    return Collection.write(folder, records()).corpus_file.stat().st_size


def sample_sentences() -> list[str]:
    """Sentences of this environment's docstrings, each once."""
    from training.augment.sentences import split_sentences

    found = (sentence for text in sample_texts(4000) for sentence in split_sentences(" ".join(text.split())))
    return sorted({sentence for sentence in found if 4 <= len(sentence.split()) <= 40})


def write_documents(folder: Path, passages: int) -> int:
    """Text files whose passages are about as many as asked for; returns the bytes."""
    from drama_models.tokenisation import load_tokenizer
    from training.augment.chunk import token_counts

    sentences = sample_sentences()
    mean = np.mean(token_counts(sentences, load_tokenizer(SOURCE, set_ends=False)))
    documents = int(passages * 245 / mean / SENTENCES_PER_DOCUMENT)
    draw = np.random.default_rng(0)
    texts: list[str] = []
    for number in range(documents):
        kind = draw.random()
        if texts and kind < 2 * COPIES:
            text = texts[draw.integers(len(texts))]
            text = text.upper() if kind < COPIES else text[: len(text) // 2]
        else:
            chosen = [sentences[place] for place in draw.integers(len(sentences), size=SENTENCES_PER_DOCUMENT)]
            starts = range(0, len(chosen), PARAGRAPH_SENTENCES)
            text = "\n\n".join(" ".join(chosen[start : start + PARAGRAPH_SENTENCES]) for start in starts)
            texts = [*texts[-500:], text]
        (folder / f"{number:05}.txt").write_text(text, encoding="utf-8")
    return sum(path.stat().st_size for path in folder.iterdir())


class _Memory(threading.Thread):
    """Largest memory of this process and its children together, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mib, self.stopped = 0.0, threading.Event()

    def run(self) -> None:
        own = psutil.Process()
        while not self.stopped.wait(SAMPLE_EVERY_S):
            total = 0
            for process in [own, *own.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue  # it has just ended
            self.peak_mib = max(self.peak_mib, total / 2**20)


@contextmanager
def _timed(stages: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    record: dict[str, Any] = {}
    memory, began_s, before = _Memory(), time.perf_counter(), os.times()
    memory.start()
    yield record
    after = os.times()
    memory.stopped.set()
    memory.join()
    record |= {
        "seconds": round(time.perf_counter() - began_s, 1),
        "processor_seconds": round(sum(after[:4]) - sum(before[:4]), 1),
        "peak_mib": round(memory.peak_mib),
    }
    stages[name] = record
    print(f"{name:12} {record}", flush=True)  # noqa: T201


def measure(passages: int) -> dict[str, Any]:
    """Run all stages; times, memory and counts of each."""
    from training.augment.chunk import ChunkRecipe, chunk
    from training.augment.crop import CropRecipe, crop
    from training.augment.deduplicate import DeduplicateRecipe, deduplicate
    from training.augment.mine import MineRecipe, mine

    stages: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        (root / "documents").mkdir()
        size = write_documents(root / "documents", passages)
        with _timed(stages, "chunk") as record:
            figures = chunk(ChunkRecipe(documents=root / "documents", model=SOURCE, out=root / "passages"))["figures"]
            record |= {"passages": figures["passages"], "documents": figures["documents"]}
        with _timed(stages, "deduplicate") as record:
            record |= deduplicate(DeduplicateRecipe(collection=root / "passages", out=root / "unique"))["figures"]
        with _timed(stages, "crop") as record:
            record["queries"] = crop(CropRecipe(collection=root / "unique", out=root / "crops.jsonl"))
        with _timed(stages, "mine") as record:
            mining = MineRecipe(collection=root / "unique", examples=root / "crops.jsonl", out=root / "run", k=K)
            record["queries"] = mine(mining)
    total = {
        "seconds": round(sum(stage["seconds"] for stage in stages.values()), 1),
        "processor_seconds": round(sum(stage["processor_seconds"] for stage in stages.values()), 1),
        "peak_mib": max(stage["peak_mib"] for stage in stages.values()),
    }
    settings = {"passages": passages, "text_mib": round(size / 2**20), "max_tokens": 256, "k": K, "allowed": ALLOWED}
    load = {"load_average": [round(value, 1) for value in os.getloadavg()]}
    machine = machine_record() | load
    return {"benchmark": "augment", "settings": settings, "machine": machine, "stages": stages, "total": total}


def measure_deduplication(passages: int) -> dict[str, Any]:
    """De-duplicate a collection of so many passages; time, memory and counts."""
    from training.augment.deduplicate import DeduplicateRecipe, deduplicate

    stages: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        size = write_passages(root / "passages", passages)
        with _timed(stages, "deduplicate") as record:
            record |= deduplicate(DeduplicateRecipe(collection=root / "passages", out=root / "unique"))["figures"]
    settings = {"passages": passages, "text_mib": round(size / 2**20)}
    load = {"load_average": [round(value, 1) for value in os.getloadavg()]}
    return {"benchmark": "deduplicate", "settings": settings, "machine": machine_record() | load, "stages": stages}


def main() -> None:
    """Measure, print, write the results file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--passages", type=int, default=100_000, help="about so many; default: 100000")
    parser.add_argument("--deduplicate", type=int, default=0, help="measure this alone, of so many passages")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/augment.json"), help="results file")
    options = parser.parse_args()
    if options.deduplicate:
        result = measure_deduplication(options.deduplicate)
        result["command"] = f"python -m benchmarks.augment --deduplicate {options.deduplicate} --out {options.out}"
        write_result(options.out, result)
        return
    result = measure(options.passages)
    result["command"] = f"python -m benchmarks.augment --passages {options.passages}"
    write_result(options.out, result)
    print(f"total {result['total']}; allowed {ALLOWED} for 100,000 passages")  # noqa: T201


if __name__ == "__main__":
    main()
