"""Every runtime of ours beside sentence-transformers on the drama-base shape: bulk, batches, a single query.

    python -m benchmarks.inference [--texts 64] [--queries 12] [--rounds 3] [--corpus FILE] [--out …/inference.json]

Each system holds the same random weights in a process of its own and they take turns, round by round, so that whatever
else the machine does falls on all of them alike. A ratio is taken within a round, and its median over rounds is
reported; beside it stand the cores that others kept busy meanwhile, and the share of the machine's own best matrix
product that a system reached. Texts are docstrings of Python's standard library, or the lines of a file; queries are
beginnings of docstrings, of 9 to 16 tokens with the prompt. Tokenisation counts. A new system is one line in `SYSTEMS`.
"""

from __future__ import annotations

import argparse
import operator
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.interleaved import Measured, interleave
from benchmarks.machine import machine_record, write_result
from benchmarks.sample_model import MAX_LENGTH, QUERY_TOKENS, SHAPE, query_texts, sample_texts, write_model
from drama_models.hardware import train_in_bf16

if TYPE_CHECKING:
    from drama_models.runtimes.choice import Precision

Encode = Callable[[list[str]], NDArray[np.float32]]
BATCHES = (8, 32, 128)  # texts that a server might see at once


@dataclass(frozen=True, kw_only=True)
class System:
    """One way to encode with a folder."""

    load: Callable[..., tuple[Encode, Encode]]
    """Gives functions that embed queries and documents."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Passed to it."""
    needs_bf16: bool = False
    """Left out where the processor would have to emulate the number format."""


def load_sentence_transformers(folder: Path, dtype: str = "float32") -> tuple[Encode, Encode]:
    """The peer, as its documentation says, in its default batches."""
    import torch
    from sentence_transformers import SentenceTransformer

    settings: dict[str, Any] = {"model_kwargs": {"dtype": getattr(torch, dtype)}}
    model = SentenceTransformer(str(folder), device="cpu", **settings)
    return (lambda texts: np.asarray(model.encode_query(texts)), lambda texts: np.asarray(model.encode_document(texts)))


def load_torch(folder: Path, dtype: str = "float32") -> tuple[Encode, Encode]:
    """Our torch runtime on the CPU."""
    from drama_models import Encoder
    from drama_models.runtimes.torch_runtime import TorchRuntime

    encoder = Encoder.from_pretrained(folder, runtime="torch", device="cpu")
    if dtype != "float32":
        encoder.runtime = TorchRuntime(folder, encoder.profile, "cpu", dtype)
    return encoder.encode_queries, encoder.encode_documents


def load_onnx(folder: Path, precision: Precision = "fp32") -> tuple[Encode, Encode]:
    """ONNX Runtime straight from the safetensors."""
    from drama_models import Encoder

    encoder = Encoder.from_pretrained(folder, runtime="onnx", precision=precision)
    return encoder.encode_queries, encoder.encode_documents


def load_openvino(folder: Path, precision: Precision = "fp32") -> tuple[Encode, Encode]:
    """OpenVINO straight from the safetensors."""
    from drama_models import Encoder

    encoder = Encoder.from_pretrained(folder, runtime="openvino", precision=precision)
    return encoder.encode_queries, encoder.encode_documents


BASELINE = "sentence-transformers"
SYSTEMS: dict[str, System] = {
    BASELINE: System(load=load_sentence_transformers),
    f"{BASELINE} bf16": System(load=load_sentence_transformers, settings={"dtype": "bfloat16"}, needs_bf16=True),
    "Encoder torch": System(load=load_torch),
    "Encoder torch bf16": System(load=load_torch, settings={"dtype": "bfloat16"}, needs_bf16=True),
    "Encoder openvino": System(load=load_openvino),
    "Encoder openvino bf16": System(load=load_openvino, settings={"precision": "bf16"}, needs_bf16=True),
    "Encoder onnx": System(load=load_onnx),
    "Encoder onnx int8": System(load=load_onnx, settings={"precision": "int8"}),
}


def usable_systems() -> dict[str, System]:
    """Those that this machine can run at their own speed."""
    return {name: system for name, system in SYSTEMS.items() if not system.needs_bf16 or train_in_bf16("auto")}


@dataclass
class Round:
    """What one system took in one round."""

    bulk_s: float
    batch_s: dict[int, float]
    """By the number of texts."""
    query_ms: list[float]
    foreign_cores: float
    """Cores that other processes kept busy during the bulk."""


class Workload:
    """Loads a system; each call is a round, and returns all rounds so far and the bulk's vectors."""

    def __init__(self, system: System, folder: Path, documents: list[str], queries: list[str]) -> None:
        self.queries, self.documents = queries, documents
        self.embed_queries, self.embed_documents = system.load(folder, **system.settings)
        self.embed_documents(documents[:4])  # first calls allocate and choose kernels
        self.embed_queries(queries[:1])
        self.rounds: list[Round] = []

    def __call__(self) -> tuple[list[Round], NDArray[np.float32]]:
        """One more round."""
        busy_s, own_s, began_s = machine_busy_s(), process_busy_s(), time.perf_counter()
        vectors = self.embed_documents(self.documents)
        bulk_s = time.perf_counter() - began_s
        foreign = (machine_busy_s() - busy_s - (process_busy_s() - own_s)) / bulk_s
        batch_s = {
            size: timed(lambda size=size: self.embed_documents((self.documents * size)[:size]))  # type: ignore[misc]
            for size in BATCHES
        }
        query_ms = [1000 * timed(lambda text=query: self.embed_queries([text])) for query in self.queries]  # type: ignore[misc]
        self.rounds.append(Round(bulk_s, batch_s, query_ms, max(0.0, foreign)))
        return self.rounds, vectors


def timed(run: Callable[[], Any]) -> float:
    """Seconds of one call."""
    began_s = time.perf_counter()
    run()
    return time.perf_counter() - began_s


def machine_busy_s() -> float:
    """Core seconds that all processes of the machine have used."""
    numbers = [int(value) for value in Path("/proc/stat").read_text(encoding="utf-8").split("\n")[0].split()[1:9]]
    return (sum(numbers) - numbers[3] - numbers[4]) / os.sysconf("SC_CLK_TCK")


def process_busy_s() -> float:
    """Core seconds that this process has used."""
    times = os.times()
    return times.user + times.system


def best_matrix_product(repeats: int = 12) -> float:
    """GFLOP/s of the fastest float32 product of NumPy or torch, which use different libraries: the practical peak.

    One shape is the model's own, the other large enough that nothing but arithmetic counts.
    """
    import torch

    fastest = 0.0
    for rows, columns, inner in ((1024, SHAPE["intermediate_size"], SHAPE["hidden_size"]), (2048, 2048, 2048)):
        left, right = np.ones((rows, inner), np.float32), np.ones((inner, columns), np.float32)
        pairs = ((left, right), (torch.from_numpy(left), torch.from_numpy(right)))
        best_s = min(timed(partial(operator.matmul, *pair)) for pair in pairs for _ in range(repeats))
        fastest = max(fastest, 2e-9 * rows * columns * inner / best_s)
    return fastest


def useful_gflop(lengths: Sequence[int]) -> float:
    """Arithmetic of the forward pass over texts of these lengths, without any padding."""
    hidden, width = SHAPE["hidden_size"], SHAPE["num_attention_heads"] * SHAPE["head_dim"]
    per_token = 2 * (4 * hidden * width + 3 * hidden * SHAPE["intermediate_size"])
    return 1e-9 * SHAPE["num_hidden_layers"] * sum(length * per_token + 4 * length**2 * width for length in lengths)


def corpus_texts(path: Path, count: int) -> list[str]:
    """Lines of a file, drawn with a fixed seed."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [lines[number] for number in np.random.default_rng(0).choice(len(lines), count, replace=count > len(lines))]


def compare(texts: int, queries: int, rounds: int, corpus: Path | None = None) -> dict[str, Any]:
    """Run all systems in turn.

    Returns:
        Settings, machine, and for each system seconds, texts/s, query times, smallest cosine to the baseline's vectors,
        peak memory, and ratios to the baseline within a round: of speed (larger is better) for the bulk and the
        batches, of time (smaller is better) for a query.
    """
    from tokenizers import Tokenizer

    documents = corpus_texts(corpus, texts) if corpus else sample_texts(texts)
    with tempfile.TemporaryDirectory() as work:
        write_model(Path(work))
        folder = Path(work) / "model"
        asked = query_texts(folder, count=queries)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(MAX_LENGTH)
        lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(documents)]
        peak = best_matrix_product()
        systems = usable_systems()
        workloads = {name: (Workload, (system, folder, documents, asked)) for name, system in systems.items()}
        interleave(workloads, 0)  # a conversion to eight bits is kept, so no figure below holds one
        measured = interleave(workloads, rounds)
        peak = max(peak, best_matrix_product())
    work_gflop = useful_gflop(lengths)
    rows = {name: row(own, measured[BASELINE], texts, work_gflop, peak) for name, own in measured.items()}
    settings: dict[str, Any] = {
        "texts": texts,
        "queries": queries,
        "rounds": rounds,
        "max_length": MAX_LENGTH,
        "tokens": sum(lengths),
    }
    settings |= {"query_tokens": f"{QUERY_TOKENS[0]} to {QUERY_TOKENS[-1]}"}
    settings |= {"median_tokens": int(np.median(lengths)), "longest_tokens": max(lengths)}
    figures = {"best_matrix_product_gflops": round(peak, 1), "left_out": sorted(SYSTEMS.keys() - systems.keys())}
    return (
        {"benchmark": "inference", "settings": settings | SHAPE, "machine": machine_record()}
        | figures
        | {"systems": rows}
    )


def row(own: Measured, baseline: Measured, texts: int, work_gflop: float, peak: float) -> dict[str, Any]:
    """Figures of one system beside the baseline's."""
    (rounds, vectors), (theirs, wanted) = own.result, baseline.result
    pairs = list(zip(rounds, theirs, strict=True))
    bulk_s = statistics.median(each.bulk_s for each in rounds)
    return {
        "bulk_s": [round(each.bulk_s, 3) for each in rounds],
        "texts_per_second": round(texts / bulk_s, 2),
        "bulk_speed_ratio": round(statistics.median(their.bulk_s / our.bulk_s for our, their in pairs), 3),
        "batch_speed_ratio": {
            size: round(statistics.median(their.batch_s[size] / our.batch_s[size] for our, their in pairs), 3)
            for size in BATCHES
        },
        "query_p50_ms": round(statistics.median(value for each in rounds for value in each.query_ms), 2),
        "query_time_ratio": round(
            statistics.median(
                statistics.median(our.query_ms) / statistics.median(their.query_ms) for our, their in pairs
            ),
            3,
        ),
        "share_of_peak": round(work_gflop / min(each.bulk_s for each in rounds) / peak, 3),
        "foreign_cores": [round(each.foreign_cores, 2) for each in rounds],
        "peak_mib": round(own.peak_mib),
        "smallest_cosine": float((vectors * wanted).sum(axis=1).min()),
    }


def main() -> None:
    """Compare, print a table, write the results file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--texts", type=int, default=64, help="documents of the bulk; default: 64")
    parser.add_argument("--queries", type=int, default=12, help="single queries in a round; default: 12")
    parser.add_argument("--rounds", type=int, default=3, help="times that each system does all; default: 3")
    parser.add_argument("--corpus", type=Path, help="file with a text on each line; default: docstrings of Python")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/inference.json"), help="results file")
    options = parser.parse_args()
    result = compare(options.texts, options.queries, options.rounds, options.corpus)
    sizes = f"--texts {options.texts} --queries {options.queries} --rounds {options.rounds}"
    result["command"] = f"python -m benchmarks.inference {sizes}"
    batches = "".join(f"{f'of {size}':>8}" for size in BATCHES)
    print(f"{'':26}{'texts/s':>9}{'bulk':>7}{batches}{'query ms':>10}{'query':>7}{'peak':>6}{'MiB':>7}  cosine")  # noqa: T201
    for name, figures in result["systems"].items():
        batches = "".join(f"{figures['batch_speed_ratio'][size]:8.2f}" for size in BATCHES)
        speed = f"{figures['bulk_speed_ratio']:7.2f}{batches}"
        query = f"{figures['query_p50_ms']:10.1f}{figures['query_time_ratio']:7.2f}{figures['share_of_peak']:6.2f}"
        tail = f"{figures['peak_mib']:7,}  {figures['smallest_cosine']:.6f}"
        print(f"{name:26}{figures['texts_per_second']:9.2f}{speed}{query}{tail}")  # noqa: T201
    write_result(options.out, result)


if __name__ == "__main__":
    main()
