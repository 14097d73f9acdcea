"""From a fresh process to embeddings: time to the first one, a query's time, memory; and int8 on stressed weights.

    python -m benchmarks.cold_start [--rounds 3] [--texts 24] [--queries 24] [--out benchmarks/results/cold_start.json]

Every system starts in a new process in every round, in alternating order, with the same random weights in the
drama-base shape, their files in the page cache. Seconds are given twice, on the clock and of processor time: on a busy
machine the second is the steadier one. Memory is what /proc says: resident at the end and at its peak.

Then int8's cosines to sentence-transformers' float32 vectors, as the weights are and with outlier channels: six
channels of every norm gain times a factor and the weights that read them divided by it, which is the same function.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.machine import machine_record, write_result
from benchmarks.sample_model import SHAPE, query_texts, sample_texts, write_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOAD_PEER = """
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(folder, device="cpu")
queries, documents = model.encode_query, model.encode_document
"""
LOAD_OURS = """
from drama_models import Encoder
model = Encoder.from_pretrained(folder, runtime={runtime!r}, precision={precision!r}, device={device!r})
queries, documents = model.encode_queries, model.encode_documents
"""
PROGRAM = """
import json, os, sys, time
began_s, folder, given = time.perf_counter(), sys.argv[1], json.load(open(sys.argv[2]))
{load}
queries([given["queries"][0]])
first_s, first_cpu_s = time.perf_counter() - began_s, time.process_time()
import numpy as np
vectors = np.concatenate([documents([text]) for text in given["documents"]])
query_ms = []
for query in given["queries"]:
    started_s = time.perf_counter()
    queries([query])
    query_ms.append(1000 * (time.perf_counter() - started_s))
lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
memory = {{key: int(lines[name].split()[0]) / 1024 for key, name in (("rss_mib", "VmRSS"), ("peak_mib", "VmHWM"))}}
np.save(sys.argv[3], vectors)
print(json.dumps({{"first_s": first_s, "first_cpu_s": first_cpu_s, "query_ms": query_ms}} | memory))
"""
BASELINE = "sentence-transformers"
SYSTEMS = {BASELINE: LOAD_PEER} | {
    name: LOAD_OURS.format(runtime=runtime, precision=precision, device=device)
    for name, runtime, precision, device in (
        ("Encoder torch", "torch", "fp32", "cpu"),
        ("Encoder openvino", "openvino", "fp32", None),
        ("Encoder onnx", "onnx", "fp32", None),
        ("Encoder onnx int8", "onnx", "int8", None),
    )
}
FACTORS = (1, 30, 100)
OUTLIERS = [7, 101, 233, 390, 512, 700]  # channels


def start(system: str, folder: Path, given: Path, work: Path) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Run one system in a new process: its figures, and its vectors of the documents."""
    vectors = work / "vectors.npy"
    command = [sys.executable, "-c", PROGRAM.format(load=SYSTEMS[system]), str(folder), str(given), str(vectors)]
    environment = os.environ | {"DRAMA_CACHE": str(work / "cache"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
    if result.returncode:
        raise RuntimeError(f"{system} failed: {result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1]), np.load(vectors, allow_pickle=False)


def stress(folder: Path, factor: float) -> None:
    """Outlier channels in every norm gain, the weights that read them as much smaller."""
    from safetensors.numpy import load_file, save_file

    path = folder / "model.safetensors"
    state = {name: np.array(value) for name, value in load_file(path).items()}
    readers = {
        "input_layernorm": [f"self_attn.{part}_proj" for part in "qkv"],
        "post_attention_layernorm": ["mlp.gate_proj", "mlp.up_proj"],
    }
    for name in state:
        for norm, reading in readers.items():
            if name.endswith(f"{norm}.weight"):
                state[name][OUTLIERS] *= factor
                for reader in reading:
                    state[name.replace(norm, reader)][:, OUTLIERS] /= factor
    save_file(state, path, metadata={"format": "pt"})


def compare(rounds: int, texts: int, queries: int) -> dict[str, Any]:
    """Run everything.

    Returns:
        Settings, machine, figures of each system with ratios to sentence-transformers (of time and of memory: smaller
        is better), and int8's cosines by factor.
    """
    documents = sample_texts(texts)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        given = work / "given.json"
        write_model(work)
        folder = work / "model"
        asked = query_texts(folder, count=queries)
        given.write_text(json.dumps({"documents": documents, "queries": asked}), encoding="utf-8")
        start("Encoder onnx int8", folder, given, work)  # the conversion, once; its result is kept
        runs: dict[str, list[dict[str, Any]]] = {system: [] for system in SYSTEMS}
        vectors = {}
        for number in range(rounds):
            for system in list(SYSTEMS) if number % 2 == 0 else reversed(list(SYSTEMS)):
                figures, vectors[system] = start(system, folder, given, work)
                runs[system].append(figures)
                print(f"round {number + 1}/{rounds} | {system} | {figures['first_s']:.2f} s", file=sys.stderr)  # noqa: T201
        stressed = {}
        done = 1.0
        for factor in FACTORS:
            stress(folder, factor / done)
            done = factor
            _, found = start("Encoder onnx int8", folder, given, work)
            cosines = (found * vectors[BASELINE]).sum(axis=1)
            stressed[str(factor)] = {"smallest": float(cosines.min()), "mean": float(cosines.mean())}
    rows = {system: row(runs[system], runs[BASELINE], vectors[system], vectors[BASELINE]) for system in SYSTEMS}
    settings = {"rounds": rounds, "texts": texts, "queries": queries}
    return {
        "benchmark": "cold_start",
        "settings": settings | SHAPE,
        "machine": machine_record() | {"load": os.getloadavg()[0]},
        "systems": rows,
        "int8_cosine_by_outlier_factor": stressed,
    }


def row(
    own: list[dict[str, Any]],
    baseline: list[dict[str, Any]],
    vectors: NDArray[np.float32],
    wanted: NDArray[np.float32],
) -> dict[str, Any]:
    """Figures of one system: medians over rounds, a query's over all queries, and ratios within a round."""

    def of(run: dict[str, Any], key: str) -> float:
        return statistics.median(run[key]) if key == "query_ms" else float(run[key])

    keys = ("first_s", "first_cpu_s", "query_ms", "rss_mib", "peak_mib")
    figures: dict[str, Any] = {key: round(statistics.median(of(run, key) for run in own), 3) for key in keys}
    for key in keys:
        ratios = [of(run, key) / of(theirs, key) for run, theirs in zip(own, baseline, strict=True)]
        figures[f"{key}_ratio"] = round(statistics.median(ratios), 3)
    cosines = (vectors * wanted).sum(axis=1)
    return figures | {"smallest_cosine": float(cosines.min()), "mean_cosine": float(cosines.mean())}


def main() -> None:
    """Compare, print a table, write the results file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes of each system; default: 3")
    parser.add_argument("--texts", type=int, default=24, help="documents, encoded one by one; default: 24")
    parser.add_argument("--queries", type=int, default=24, help="queries, timed one by one; default: 24")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cold_start.json"), help="results file")
    options = parser.parse_args()
    result = compare(options.rounds, options.texts, options.queries)
    arguments = f"--rounds {options.rounds} --texts {options.texts} --queries {options.queries}"
    result["command"] = f"python -m benchmarks.cold_start {arguments}"
    print(f"{'':24}{'first s':>9}{'cpu s':>8}{'query ms':>10}{'peak MiB':>10}  ratios of the four; smallest cosine")  # noqa: T201
    for system, figures in result["systems"].items():
        shown = [figures[key] for key in ("first_s", "first_cpu_s", "query_ms", "peak_mib")]
        ratios = [figures[f"{key}_ratio"] for key in ("first_s", "first_cpu_s", "query_ms", "peak_mib")]
        line = f"{shown[0]:9.2f}{shown[1]:8.2f}{shown[2]:10.1f}{shown[3]:10.0f}"
        print(f"{system:24}{line}  {ratios}  {figures['smallest_cosine']:.6f}")  # noqa: T201
    print(f"int8 by outlier factor: {result['int8_cosine_by_outlier_factor']}")  # noqa: T201
    write_result(options.out, result)


if __name__ == "__main__":
    main()
