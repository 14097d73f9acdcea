"""`make demo`: run every stage that is not made yet, evaluate, and write the report."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from demo.collect import QUESTIONS
from demo.metrics import measure
from demo.report import table_rows, verdict, write_report
from demo.stages import RECIPES, SOURCE, STAGES
from drama_models.cli import main as drama
from drama_models.errors import DramaError
from drama_models.folders import atomic_file, sha256_of_file, sha256_of_folder
from drama_models.progress import hide_loading_bars
from drama_models.provenance import installed_versions

OUT = Path(__file__).parent / "out"
STATE, METRICS = "state.json", "metrics.json"
QUESTION = "shortest path between two nodes of a graph"


def main() -> int:
    """Make what is missing; a run that finds everything made says so and changes nothing."""
    hide_loading_bars()
    out, key = OUT, _key()
    state = _read_state(out)
    if state.get("key") != key:
        if state:
            print("Recipes, questions, source model or packages have changed: starting afresh.")
        shutil.rmtree(out, ignore_errors=True)
        state = {"key": key, "seconds": {}}
    out.mkdir(parents=True, exist_ok=True)
    if (out / METRICS).is_file() and (out / "report.html").is_file():
        print(f"Nothing to do: {out} is complete. `make clean` removes it.")
        _show(out, json.loads((out / METRICS).read_text(encoding="utf-8")))
        return 0
    try:
        for name, make in STAGES.items():
            if (out / name).is_dir():
                continue
            print(f"== {name}: {make.__doc__.splitlines()[0] if make.__doc__ else ''}", flush=True)
            _timed(state, out, name, make)
        began_s = time.perf_counter()
        metrics, runs = measure(out)
        state["seconds"]["evaluate"] = time.perf_counter() - began_s
        metrics["seconds"] = {name: round(value, 1) for name, value in state["seconds"].items()}
        write_report(out, metrics, runs)
        _write_json(out / METRICS, metrics)
    except DramaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; `make demo` goes on where it stopped", file=sys.stderr)
        return 130
    _show(out, metrics)
    return 0


def _timed(state: dict[str, Any], out: Path, name: str, make: Any) -> None:
    """Run a stage and keep its time, adding to what an interrupted attempt took."""
    began_s = time.perf_counter()
    try:
        make(out / name)
    finally:
        state["seconds"][name] = state["seconds"].get(name, 0.0) + time.perf_counter() - began_s
        _write_json(out / STATE, state)


def _show(out: Path, metrics: dict[str, Any]) -> None:
    rows = table_rows(metrics)
    width = max(len(row[0]) for row in rows)
    print(f"\n{'':{width}}  nDCG@10               Recall@100")
    for label, ndcg, recall in rows:
        print(f"{label:{width}}  {ndcg:20}  {recall}")
    print(f"\n{verdict(metrics)}\nONNX against torch: {metrics['onnx']['max_abs_difference']:.1e}")
    print(f"{sum(metrics['seconds'].values()):.0f} seconds; report: {out / 'report.html'}\n")
    print(f'drama search {out / "index"} "{QUESTION}" -k 5', flush=True)
    drama(["search", str(out / "index"), QUESTION, "-k", "5"])


def _key() -> str:
    """Hash of everything that decides the result."""
    files = [sha256_of_file(path) for folder in (RECIPES, QUESTIONS) for path in sorted(folder.iterdir())]
    source = sha256_of_folder(SOURCE)
    return hashlib.sha256(json.dumps([files, source, installed_versions()]).encode()).hexdigest()


def _read_state(out: Path) -> dict[str, Any]:
    path = out / STATE
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return state


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
