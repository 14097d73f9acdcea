"""Memory and speed of training data: N examples over N documents, from JSON lines to the texts of a step.

    python -m benchmarks.training_data [--size 2000000] [--out benchmarks/results/training_data.json]

Generates a collection and examples in a temporary folder; builds the caches in a process that is killed (SIGKILL) on
the way, then again to the end; and reads 1,000 batches in a fresh process. Resident memory (mapped pages included) is
sampled in both; the slope of a straight line through the second half of the samples says whether it grows. Takes about
3 GB of disk for 2 million.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import re
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.machine import machine_record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from training.data.datasets import DatasetRecipe

BATCH_SIZE, NEGATIVES, LISTED_NEGATIVES, BATCHES = 512, 7, 10, 1000
MIB = 2**20


def generate(folder: Path, size: int) -> None:
    """A corpus of `size` documents of 20 to 120 words, and as many examples with one positive and 10 negatives."""
    generator = random.Random(0)  # noqa: S311
    words = ["".join(generator.choices("etaoinshrdlu", k=generator.randint(2, 9))) for _ in range(20_000)]
    phrases = [" ".join(generator.choices(words, k=10)) for _ in range(20_000)]
    (folder / "collection").mkdir()
    with (folder / "collection" / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for number in range(size):
            text = f"{number} {' '.join(generator.choices(phrases, k=generator.randint(2, 12)))}"
            file.write(json.dumps({"_id": f"doc-{number}", "title": words[number % len(words)], "text": text}) + "\n")
    with (folder / "examples.jsonl").open("w", encoding="utf-8") as file:
        for number in range(size):
            drawn = {generator.randrange(size) for _ in range(LISTED_NEGATIVES)} - {number}
            example = {
                "query_id": f"query-{number}",
                "query": f"{number} {generator.choice(phrases)}",
                "positive_ids": [f"doc-{number}"],
                "negative_ids": [f"doc-{other}" for other in drawn],
            }
            file.write(json.dumps(example) + "\n")


def recipe(folder: Path) -> DatasetRecipe:
    """The generated dataset."""
    from training.data.datasets import DatasetRecipe

    return DatasetRecipe(
        name="generated", task="retrieval", collection=folder / "collection", examples=folder / "examples.jsonl"
    )


def build(folder: Path) -> None:
    """Build the caches, or open them where they are."""
    from training.data.datasets import open_datasets

    open_datasets([recipe(folder)], batch_size=BATCH_SIZE, negatives=NEGATIVES)


def build_measured(folder: Path, out: Path) -> None:
    """The same, with the memory of this process."""
    began_s = time.perf_counter()
    with Samples() as samples:
        build(folder)
    write_json(out, {"seconds": round(time.perf_counter() - began_s, 1), **samples.figures("second")})


def read(folder: Path, out: Path) -> None:
    """Read batches from the caches: time to the first, rate, memory."""
    began_s = time.perf_counter()
    from training.data.datasets import open_datasets
    from training.data.sampling import BatchPlan

    datasets = open_datasets([recipe(folder)], batch_size=BATCH_SIZE, negatives=NEGATIVES)
    plan = BatchPlan(datasets, seed=0)
    plan.batch(0)
    first_s = time.perf_counter() - began_s
    samples = Samples()
    began_s = time.perf_counter()
    for step in range(1, BATCHES + 1):
        batch = plan.batch(step)
        assert len(set(batch.documents) - {""}) == batch.absent.count(False)  # noqa: S101
        samples.take(step)
    seconds = time.perf_counter() - began_s
    rate = {"examples_per_second": round(BATCHES * BATCH_SIZE / seconds), "seconds": round(seconds, 1)}
    write_json(out, {"first_batch_seconds": round(first_s, 2), **rate, **samples.figures("batch")})


class Samples:
    """Resident memory of a process over time, taken by hand or, as a context, twice a second."""

    def __init__(self, pid: int | None = None) -> None:
        self.points: list[tuple[float, float]] = []
        self._status, self._done = Path(f"/proc/{pid or 'self'}/status"), threading.Event()

    def __enter__(self) -> Samples:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def take(self, at: float) -> None:
        """Note the memory of this moment."""
        found = re.search(r"VmRSS:\s+(\d+) kB", self._status.read_text(encoding="utf-8"))
        if found:  # not of a process that has just ended
            self.points.append((at, int(found[1]) / 1024))

    def figures(self, unit: str) -> dict[str, Any]:
        """Start, peak and slope, and about fifty of the points for a plot."""
        at, mib = np.array(self.points).T
        late = slice(len(at) // 2, None)
        slope = np.polyfit(at[late], mib[late], 1)[0]
        every = max(len(at) // 50, 1)
        return {
            "rss_start_mib": round(mib[0]),
            "rss_peak_mib": round(mib.max()),
            f"rss_slope_mib_per_1000_{unit}{'es' if unit == 'batch' else 's'}": round(1000 * slope, 2),
            "rss_mib": [[round(float(x), 1), round(float(y))] for x, y in self.points[::every]],
        }

    def _watch(self) -> None:
        began_s = time.perf_counter()
        while not self._done.wait(0.5):
            self.take(time.perf_counter() - began_s)


def kill_on_the_way(folder: Path, kind: str, shards: int) -> tuple[dict[str, int], dict[str, Any]]:
    """Start a build and kill it once `kind` has this many shards: when each was written, and the build's memory."""
    process = multiprocessing.get_context("spawn").Process(target=build, args=(folder,))
    process.start()
    samples, began_s = Samples(process.pid), time.perf_counter()
    while process.is_alive() and len(list(shard_files(folder, kind))) < shards:
        samples.take(time.perf_counter() - began_s)
        time.sleep(0.2)
    process.kill()
    process.join()
    written = {path.name: path.stat().st_mtime_ns for path in shard_files(folder, kind)}
    return written, samples.figures("second")


def shard_files(folder: Path, kind: str) -> Iterator[Path]:
    """Complete shards of a cache, whether it is finished or being built."""
    for pattern in (f"{kind}-*/*.arrow", f".{kind}-*.building/*.arrow"):
        yield from (path for path in (folder / "collection" / ".cache").glob(pattern) if path.name[0] != ".")


def run(function: Any, *arguments: Any) -> None:
    """Run in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} failed with exit code {process.exitcode}")


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record for people and plots."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def measure(folder: Path, size: int) -> dict[str, Any]:
    """Generate, build with two kills, read."""
    generate(folder, size)
    shards = max(size // 100_000, 1)
    killed = {kind: kill_on_the_way(folder, kind, shards) for kind in ("texts", "examples")}
    run(build_measured, folder, folder / "build.json")
    resumed = {}
    for kind, (before, memory) in killed.items():
        after = {path.name: path.stat().st_mtime_ns for path in shard_files(folder, kind)}
        kept = sum(after.get(name) == time_ns for name, time_ns in before.items())
        counts = {"shards": len(after), "complete_when_killed": len(before), "kept": kept}
        resumed[f"killed_in_{kind}"] = {**counts, **memory}
    run(read, folder, folder / "read.json")
    cache = folder / "collection" / ".cache"
    return {
        "corpus_mib": round((folder / "collection" / "corpus.jsonl").stat().st_size / MIB),
        "examples_mib": round((folder / "examples.jsonl").stat().st_size / MIB),
        "cache_mib": round(sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) / MIB),
        "builds": resumed,
        "last_build": json.loads((folder / "build.json").read_text(encoding="utf-8")),
        "reading": json.loads((folder / "read.json").read_text(encoding="utf-8")),
    }


def main() -> None:
    """Measure, print, write the results file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=2_000_000, help="documents, and examples over them")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_data.json"), help="results file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        figures = measure(Path(work), options.size)
    settings = {"size": options.size, "batch_size": BATCH_SIZE, "negatives": NEGATIVES, "batches": BATCHES}
    record = {
        "benchmark": "training_data",
        "command": f"python -m benchmarks.training_data --size {options.size}",
        "settings": settings,
        "machine": machine_record(),
        **figures,
    }
    write_json(options.out, record)
    built, reading = figures["last_build"], figures["reading"]
    print(  # noqa: T201
        f"built in {built['seconds']} s after two kills, peak {built['rss_peak_mib']} MiB\n"
        f"first batch after {reading['first_batch_seconds']} s, {reading['examples_per_second']:,} examples/s, memory "
        f"{reading['rss_start_mib']} MiB at first, at most {reading['rss_peak_mib']}, "
        f"{reading['rss_slope_mib_per_1000_batches']:+} MiB per 1,000 batches\nmade {options.out}"
    )


if __name__ == "__main__":
    main()
