"""Requests a second and waiting times of `drama serve`, with and without common batches for all callers.

    python -m benchmarks.serve [--model FOLDER] [--seconds 10] [--out benchmarks/results/serve.json]

A server in a process of its own, a small model of random weights unless one is given, one text in a request, and 1, 8
and 32 callers that each ask again as soon as they are answered, over connections that stay open. Each figure is of the
given seconds after a second of warming up. Callers are threads of this process and share the processor with the server
where there is one core only (`taskset`), so figures are of both together.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.machine import machine_record, write_result
from benchmarks.sample_model import SHAPE, sample_texts, write_model

SMALL: dict[str, Any] = SHAPE | {
    "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 6,
    "intermediate_size": 1536, "vocab_size": 8192,
}  # fmt: skip
CALLERS = (1, 8, 32)
WARM_UP_S = 1.0
WORDS = 16  # of a text: what a query or a short passage has


def start(model: Path, *flags: str) -> tuple[subprocess.Popen[str], str]:
    """A server, and host and port once it listens."""
    command = [sys.executable, "-m", "drama_models.cli", "serve", str(model), "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # noqa: S603
    assert process.stderr is not None  # noqa: S101
    for line in process.stderr:
        if found := re.search(r" at (http://\S+?)/v1", line):
            return process, urlsplit(found[1]).netloc
    raise SystemExit(f"the server ended with {process.wait()}")


def ask(place: str, bodies: list[bytes], until_s: float, times_s: list[tuple[float, float]]) -> None:
    """Send one request after another; note when each ended and how long it took."""
    connection = http.client.HTTPConnection(place)
    number = 0
    while (began_s := time.perf_counter()) < until_s:
        connection.request("POST", "/v1/embeddings", bodies[number % len(bodies)], {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        if answer.status != http.client.OK:
            raise SystemExit(f"the server answered {answer.status}")
        ended_s = time.perf_counter()
        times_s.append((ended_s, ended_s - began_s))
        number += 1


def measure(place: str, texts: list[str], callers: int, seconds: float) -> dict[str, float]:
    """Requests a second, and the median and the 99th percentile of the time of one."""
    bodies = [json.dumps({"input": text, "encoding_format": "base64"}).encode() for text in texts]
    times_s: list[tuple[float, float]] = []
    from_s = time.perf_counter() + WARM_UP_S
    threads = [
        threading.Thread(target=ask, args=(place, bodies[number::callers], from_s + seconds, times_s))
        for number in range(callers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = np.array([took for ended, took in times_s if ended > from_s])
    p50, p99 = np.percentile(taken, [50, 99]) * 1000
    return {"requests_per_second": round(len(taken) / seconds, 1), "p50_ms": round(p50, 1), "p99_ms": round(p99, 1)}


def main() -> None:
    """Measure both ways, turn by turn, and write the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="model folder; default: six layers of 384 with random weights")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each figure; default: 10")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serve.json"))
    options = parser.parse_args()
    texts = [" ".join(text.split()[:WORDS]) for text in sample_texts(512)]
    with tempfile.TemporaryDirectory() as work:
        if options.model is None:
            write_model(Path(work), SMALL)
        model = options.model or Path(work) / "model"
        servers = {"together": start(model), "one by one": start(model, "--no-batching")}
        try:
            rows = [
                {"callers": callers, "batches": name, **measure(place, texts, callers, options.seconds)}
                for callers in CALLERS
                for name, (_, place) in servers.items()
            ]
        finally:
            for process, _ in servers.values():
                process.terminate()
                process.wait()
    shape = {} if options.model else SMALL
    settings = {"seconds": options.seconds, "words": WORDS, "shape": shape}
    for row in rows:
        print(" | ".join(map(str, row.values())))  # noqa: T201
    record = {"benchmark": "serve", "command": f"python -m benchmarks.serve --seconds {options.seconds:g}"}
    write_result(options.out, record | {"settings": settings, "machine": machine_record(), "rows": rows})


if __name__ == "__main__":
    main()
