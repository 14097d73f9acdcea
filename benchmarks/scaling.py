"""How speed changes with the length and with the number of texts, beside sentence-transformers.

    python -m benchmarks.scaling [--tokens 4096] [--rounds 2] [--largest 100000] [--out benchmarks/results/scaling.json]

Lengths: random weights in the drama-base shape over texts of 16 to 8,192 tokens, all of a call of one length, as many
of them as make `--tokens` tokens. Numbers: `demo/nano` over 1 to `--largest` summary lines of docstrings in one call,
in a single round. Systems take turns, each in a process of its own; a call is repeated for half a second at least, and
its median counts. Ratios are taken within a round, and their median is reported.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.inference import BASELINE, SYSTEMS, best_matrix_product, timed, usable_systems, useful_gflop
from benchmarks.interleaved import interleave
from benchmarks.machine import machine_record, write_result
from benchmarks.sample_model import SHAPE, sample_texts, write_model
from drama_models.errors import TextsCutWarning

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.inference import System
    from benchmarks.interleaved import Measured

LENGTHS = (16, 64, 256, 1024, 4096, 8192)
ENDS = 2  # tokens around a text
NANO = Path("demo/nano")
ON_NANO = (BASELINE, "Encoder torch", "Encoder onnx")
LEAST_S = 0.5  # that a call is repeated for
Seconds = dict[int, float]


class Sweep:
    """A system over sets of texts; each call is a round, and returns the seconds of every set in all rounds so far."""

    def __init__(self, system: System, folder: Path, sets: Mapping[int, list[str]]) -> None:
        warnings.simplefilter("error", TextsCutWarning)  # a text that is cut would be quick
        _, self.embed_documents = system.load(folder, **system.settings)
        self.sets = sets
        self.embed_documents(next(iter(sets.values()))[:4])  # first calls allocate and choose kernels
        self.rounds: list[Seconds] = []

    def __call__(self) -> list[Seconds]:
        """One more round."""
        self.rounds.append({key: self._seconds(texts) for key, texts in self.sets.items()})
        return self.rounds

    def _seconds(self, texts: list[str]) -> float:
        began_s, calls = time.perf_counter(), list[float]()
        while not calls or time.perf_counter() - began_s < LEAST_S:
            calls.append(timed(lambda: self.embed_documents(texts)))
        return statistics.median(calls)


def texts_of_length(folder: Path, length: int, count: int) -> tuple[list[str], list[int]]:
    """Texts that a folder's tokenizer cuts into about so many tokens, and into how many it does."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids: list[int] = []
    for text in sample_texts(4 * len(LENGTHS) * max(LENGTHS) // 16):
        ids += tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) >= count * length:
            break
    texts = [tokenizer.decode(ids[number * length : (number + 1) * length - ENDS]) for number in range(count)]
    return texts, [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]


def ratios(own: Measured, baseline: Measured) -> dict[int, float]:
    """Speed beside the baseline's, larger is better, by set of texts."""
    pairs = list(zip(own.result, baseline.result, strict=True))
    return {key: round(statistics.median(their[key] / our[key] for our, their in pairs), 2) for key in own.result[0]}


def measure_lengths(tokens: int, rounds: int) -> dict[str, Any]:
    """Tokens per second, share of the machine's peak and ratio of each system, by length."""
    with tempfile.TemporaryDirectory() as work:
        write_model(Path(work), max_length=2 * max(LENGTHS))  # ids that become text can be a few more when read again
        folder = Path(work) / "model"
        drawn = {length: texts_of_length(folder, length, max(tokens // length, 1)) for length in LENGTHS}
        sets = {length: texts for length, (texts, _) in drawn.items()}
        peak = best_matrix_product()
        systems = {name: (Sweep, (system, folder, sets)) for name, system in usable_systems().items()}
        interleave(systems, 0)  # a conversion to eight bits is kept
        measured = interleave(systems, rounds)
        peak = max(peak, best_matrix_product())
    rows = {}
    for name, own in measured.items():
        best = {length: min(each[length] for each in own.result) for length in LENGTHS}
        rows[name] = {
            "speed_ratio": ratios(own, measured[BASELINE]),
            "tokens_per_second": {length: round(sum(drawn[length][1]) / best[length]) for length in LENGTHS},
            "share_of_peak": {
                length: round(useful_gflop(drawn[length][1]) / best[length] / peak, 2) for length in LENGTHS
            },
            "peak_mib": round(own.peak_mib),
        }
    texts = {length: len(sets[length]) for length in LENGTHS}
    return {"texts": texts, "best_matrix_product_gflops": round(peak, 1), "systems": rows}


def measure_numbers(largest: int) -> dict[str, Any]:
    """Texts per second and ratio of each system over `demo/nano`, by the number of texts in a call."""
    numbers = [10**power for power in range(len(str(largest))) if 10**power <= largest]
    lines = [text.strip().partition("\n")[0] for text in sample_texts(largest)]
    sets = {number: lines[:number] for number in numbers}
    measured = interleave({name: (Sweep, (SYSTEMS[name], NANO, sets)) for name in ON_NANO}, 1)
    return {
        name: {
            "speed_ratio": ratios(own, measured[BASELINE]),
            "texts_per_second": {number: round(number / own.result[0][number]) for number in numbers},
            "peak_mib": round(own.peak_mib),
        }
        for name, own in measured.items()
    }


def table(systems: Mapping[str, Mapping[str, Any]], figure: str) -> list[str]:
    """Markdown: a row for each system, the ratio with the figure in brackets."""
    keys = list(systems[BASELINE]["speed_ratio"])
    lines = [f"| system | {' | '.join(f'{int(key):,}' for key in keys)} | MiB |", "|---" * (len(keys) + 2) + "|"]
    for name, row in systems.items():
        cells = [f"{row['speed_ratio'][key]:.2f} ({row[figure][key]:,})" for key in keys]
        lines.append(f"| {' | '.join([name, *cells, format(row['peak_mib'], ',')])} |")
    return lines


def main() -> None:
    """Measure, print two tables, write the results file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=4096, help="in a call, by length; default: 4096")
    parser.add_argument("--rounds", type=int, default=2, help="over the lengths; default: 2")
    parser.add_argument("--largest", type=int, default=100_000, help="number of texts in a call; default: 100,000")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling.json"), help="results file")
    options = parser.parse_args()
    lengths = measure_lengths(options.tokens, options.rounds)
    numbers = measure_numbers(options.largest)
    record = {
        "benchmark": "scaling",
        "command": f"python -m benchmarks.scaling --tokens {options.tokens} --rounds {options.rounds} "
        f"--largest {options.largest}",
        "settings": {"tokens": options.tokens, "rounds": options.rounds, "largest": options.largest} | SHAPE,
        "machine": machine_record(),
        "lengths": lengths,
        "numbers": numbers,
    }
    print("\n".join([*table(lengths["systems"], "tokens_per_second"), ""]))  # noqa: T201
    print("\n".join(table(numbers, "texts_per_second")))  # noqa: T201
    write_result(options.out, record)


if __name__ == "__main__":
    main()
