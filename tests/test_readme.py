"""The README: its example runs, its commands exist, its figures are those of the results files."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.pruning_quality import UNITS, table
from drama_models.cli import command_line
from drama_models.cli import main as drama

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PAGES = [README, *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))]
SHELL = [text for page in PAGES for text in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)]
DRAMA_LINES = [line for text in SHELL for line in text.splitlines() if re.match(r"(\w+=\S+ )*drama ", line)]


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


@pytest.fixture
def made_demo(release_folder: Path, collection_folder: Path, tmp_path: Path) -> Path:
    """A folder in which `make demo` might have run, with a small release and a small index."""
    shutil.copytree(release_folder, tmp_path / "demo/out/release")
    words = ["index", str(collection_folder), str(tmp_path / "demo/out/index")]
    assert drama([*words, "--model", str(tmp_path / "demo/out/release")]) == 0
    return tmp_path


def test_python_example_runs_and_prints_as_many_lines_as_shown(made_demo: Path) -> None:
    (example,) = blocks("python")
    assert len(example.strip().splitlines()) <= 12
    command = [sys.executable, "-c", example.replace("dim=64", "dim=16")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=made_demo)
    assert result.returncode == 0, result.stderr
    shown = blocks("text")[0].splitlines()
    assert len(result.stdout.splitlines()) == len(shown)
    assert result.stdout.splitlines()[-1].endswith("float32")


def test_commands_exist() -> None:
    shell = "\n".join(blocks("sh"))
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake (\w+)", shell)) <= targets
    modules = set(re.findall(r"python -m ([\w.]+)", README))
    assert {"pruning", "training", "export", "benchmarks.inference"} <= modules
    assert all(find_spec(module) for module in modules)


@pytest.mark.parametrize("line", DRAMA_LINES)
def test_drama_commands_parse(line: str) -> None:
    words = shlex.split(line, comments=True)
    options = command_line().parse_args(words[words.index("drama") + 1 :])  # a wrong flag or value ends the test
    assert callable(options.command)


def test_links_and_pictures_are_there() -> None:
    linked = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert linked
    assert all((ROOT / link).exists() for link in linked), linked


def test_speed_figures_are_those_of_the_results_file() -> None:
    result = json.loads((ROOT / "benchmarks/results/inference.json").read_text(encoding="utf-8"))
    for system, row in result["systems"].items():
        (line,) = (line for line in README.splitlines() if line.startswith(f"| {system} |"))
        speeds = [row["texts_per_second"], row["bulk_speed_ratio"], *row["batch_speed_ratio"].values()]
        cells = [f"{value:.2f}" for value in speeds]
        cells += [f"{row['query_p50_ms']:.0f}", f"{row['query_time_ratio']:.2f}", f"{row['peak_mib']:,}"]
        assert [cell.strip() for cell in line.split("|")[2:-1]] == [*cells, f"{row['smallest_cosine']:.4f}"]


def test_demo_figures_are_those_of_the_results_file() -> None:
    metrics = json.loads((ROOT / "benchmarks/results/demo.json").read_text(encoding="utf-8"))["metrics"]
    for name in ("bm25", "untrained", "random_start", "pruned_start"):
        assert f"{metrics[name]['ndcg@10']:.3f} | {metrics[name]['recall@100']:.3f}" in README, name


def test_nano_figures_are_those_of_the_results_file() -> None:
    systems = json.loads((ROOT / "benchmarks/results/nano.json").read_text(encoding="utf-8"))["systems"]
    for name, found in systems.items():
        cells = []
        for metric in ("ndcg@10", "recall@100"):
            cells += [f"{found[metric]:.3f}", f"{found['p_against_bm25'][metric]:.4f}"]
        assert f"| {' | '.join([name, *cells])} |" in README


def test_specialisation_is_that_of_the_results_file() -> None:
    collections = json.loads((ROOT / "benchmarks/results/specialise.json").read_text(encoding="utf-8"))["collections"]
    assert len(collections) == 2
    for name, found in collections.items():
        ndcg, recall = found["people's queries"]
        uncut = {system: row["ndcg@10"] for system, row in found["collection_as_it_is"].items()}
        cells = [name, f"{found['test_queries']:,}"]
        for change in (ndcg, recall):
            cells += [f"{change['before']:.3f} → {change['after']:.3f}", f"{change['p']:.4f}"]
        cells += [f"{uncut['before']:.3f} → {uncut['after']:.3f}", f"{uncut['bm25']:.3f}"]
        assert f"| {' | '.join(cells)} |" in README


def test_training_memory_is_that_of_the_results_files() -> None:
    data = json.loads((ROOT / "benchmarks/results/training_data.json").read_text(encoding="utf-8"))
    peak = max(build["rss_peak_mib"] for build in data["builds"].values())
    assert f"at most {peak} MiB while the caches are built and {data['reading']['rss_peak_mib']} MiB over" in README


def test_pruning_cost_is_that_of_the_results_file() -> None:
    shapes = json.loads((ROOT / "benchmarks/results/pruning_cost.json").read_text(encoding="utf-8"))["shapes"]
    for row in shapes.values():
        for ratio in (row["time_ratio"], row["memory_ratio"]):
            assert f"{ratio:.2f}" in README


def test_pruning_quality_is_that_of_the_results_file() -> None:
    record = json.loads((ROOT / "benchmarks/results/pruning_quality.json").read_text(encoding="utf-8"))
    assert all(row in README for row in table(record)[2:])
    assert all(row in (ROOT / "docs/pruning.md").read_text(encoding="utf-8") for row in table(record, UNITS)[2:])
    assert f"({record['source_perplexity']:.1f} itself)" in README


def test_slicing_figures_are_those_of_the_results_file() -> None:
    result = json.loads((ROOT / "benchmarks/results/slicing.json").read_text(encoding="utf-8"))
    assert f"takes {result['seconds']} s and {result['peak_beyond_mib']} MiB" in README
    assert f"for {result['output_mib']} MiB of output" in README
