"""Effectiveness of the demo's retriever beside BM25, no training, and training from random weights.

    python -m benchmarks.demo

Runs `make demo` (which leaves a complete result alone) and keeps its metrics with the machine they were measured on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.machine import machine_record, write_result
from demo.__main__ import METRICS, OUT
from demo.__main__ import main as make_demo

RESULT = Path("benchmarks/results/demo.json")


def main() -> int:
    """Make the demo, write the results file; the demo's exit code."""
    code = make_demo()
    if code == 0:
        metrics = json.loads((OUT / METRICS).read_text(encoding="utf-8"))
        record = {"benchmark": "demo", "command": "python -m benchmarks.demo", "machine": machine_record()}
        write_result(RESULT, record | {"metrics": metrics})
    return code


if __name__ == "__main__":
    sys.exit(main())
