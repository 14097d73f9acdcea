"""Encoding many short documents: a run that is killed on the way and resumed gives the bytes of one that was not.

    python -m benchmarks.bulk [--documents 1000000] [--out benchmarks/results/bulk.json]

Generates a collection, and a model of random weights that is as small as one can be, so that what is measured is the
way there and back: reading, cutting into tokens, shards, hashes, manifest. `drama encode` runs in processes of its own:
once to the end; once killed (SIGKILL) with half of the shards written, and once more over what is left. Resident memory
is sampled twice a second; the slope of a straight line through its second half says whether it grows with the
documents. Takes about ten minutes of two quiet cores and 1 GB of disk for a million.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine_record, write_result
from benchmarks.sample_model import SHAPE, write_model
from drama_models.folders import sha256_of_folder

SMALL: dict[str, Any] = SHAPE | {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "intermediate_size": 32, "vocab_size": 8192,
}  # fmt: skip
WORDS = ["join", "sort", "mean", "parse", "path", "split", "hash", "plot", "table", "row", "column", "graph", "node"]


def generate(folder: Path, documents: int) -> tuple[Path, Path]:
    """A collection of documents of four to ten words, and a model for it."""
    generator = random.Random(0)  # noqa: S311
    write_model(folder, SMALL)
    model, collection = folder / "model", folder / "collection"
    collection.mkdir()
    with (collection / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for number in range(documents):
            text = f"{number} {' '.join(generator.choices(WORDS, k=generator.randint(4, 10)))}"
            file.write(json.dumps({"_id": f"d{number}", "title": "", "text": text}) + "\n")
    return model, collection


def encode(model: Path, collection: Path, out: Path, *, kill_at: int | None = None) -> dict[str, Any]:
    """Run `drama encode`, killed as soon as it has written this many shards; its time and memory."""
    command = [sys.executable, "-m", "drama_models.cli", "encode", str(model), str(collection), str(out)]
    began_s = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)  # noqa: S603
    samples: list[tuple[int, float]] = []
    while process.poll() is None:
        time.sleep(0.5)
        shards = len(list(out.glob("[0-9]*.json")))
        found = re.search(r"VmRSS:\s+(\d+) kB", _status(process.pid))
        if found:
            samples.append((shards, int(found[1]) / 1024))
        if kill_at is not None and shards >= kill_at:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    said = process.stderr.read().splitlines() if process.stderr else []
    if kill_at is None and process.returncode:
        sys.exit("\n".join(said))
    late = np.array(samples[len(samples) // 2 :])
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) if len(set(late[:, 0])) > 1 else 0.0
    every = max(len(samples) // 40, 1)
    return {
        "seconds": round(time.perf_counter() - began_s, 1),
        "shards": len(list(out.glob("[0-9]*.json"))),
        "peak_mib": round(max(mib for _, mib in samples)),
        "slope_mib_per_shard": round(slope, 3),
        "mib_by_shards": [[shards, round(mib)] for shards, mib in samples[::every]],
        "last_line": next((line for line in reversed(said) if "left" in line), ""),
    }


def _status(process: int) -> str:
    try:
        return Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return ""  # it has just ended


def main() -> None:
    """Measure, print, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000, help="default: 1,000,000")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/bulk.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        model, collection = generate(Path(work), options.documents)
        whole, cut = Path(work) / "whole", Path(work) / "cut"
        runs = {"whole": encode(model, collection, whole)}
        runs["killed"] = encode(model, collection, cut, kill_at=runs["whole"]["shards"] // 2)
        runs["resumed"] = encode(model, collection, cut)
        same = sha256_of_folder(whole) == sha256_of_folder(cut)
    for name, run in runs.items():
        print(  # noqa: T201
            f"{name}: {run['shards']} shards, {run['seconds']} s, peak {run['peak_mib']} MiB, "
            f"{run['slope_mib_per_shard']:+} MiB a shard; {run['last_line']}"
        )
    print(f"the same bytes: {same}")  # noqa: T201
    command = f"python -m benchmarks.bulk --documents {options.documents}"
    record = {"benchmark": "bulk", "command": command, "documents": options.documents, "same_bytes": same, "runs": runs}
    write_result(options.out, record | {"machine": machine_record()})
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
