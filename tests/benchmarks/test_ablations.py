"""The ablations' rows change one line each; their table says what the figures say, reckoned here by hand."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks.ablation_material import METRIC, Material, best_documents
from benchmarks.ablation_rows import BASE, DIMS, NANO, ROWS, STRONG, base_recipe, recipe_of, with_field
from benchmarks.ablations import differences, plot, table, verdict
from drama_models.collection import Collection
from drama_models.evaluation import evaluate

if TYPE_CHECKING:
    from training.recipe import TrainRecipe


@pytest.fixture
def material(tmp_path: Path) -> Material:
    return Material(
        work=tmp_path, collection=tmp_path / "c", train_queries=2, test_queries=2, steps=10,
        given_teacher=tmp_path / "minilm",
    )  # fmt: skip


def flat(settings: Any, path: str = "") -> dict[str, Any]:
    """Leaves of nested dictionaries and lists by path."""
    if isinstance(settings, dict):
        pairs = settings.items()
    elif isinstance(settings, (list, tuple)):
        pairs = dict(enumerate(settings)).items()
    else:
        return {path: settings}
    return {key: leaf for name, value in pairs for key, leaf in flat(value, f"{path}.{name}".strip(".")).items()}


def changed(recipe: TrainRecipe, parent: TrainRecipe) -> set[str]:
    """Paths of the leaves that two recipes do not share."""
    one, other = flat(asdict(recipe)), flat(asdict(parent))
    return {path for path in one.keys() | other.keys() if one.get(path, "absent") != other.get(path, "absent")}


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.field])
def test_a_row_differs_from_its_parent_in_its_one_field(name: str, material: Material) -> None:
    base, row = base_recipe(material, Path("backbone")), ROWS[name]
    found = changed(recipe_of(name, base, material), recipe_of(row.parent, base, material))
    assert found
    assert all(path == row.field or path.startswith(f"{row.field}.") for path in found)


def test_two_rows_are_no_change_of_another_but_what_others_change(material: Material) -> None:
    assert [name for name, row in ROWS.items() if not row.field] == [BASE, STRONG]
    base = base_recipe(material, Path("backbone"))
    strong = recipe_of(STRONG, base, material)
    assert (base.steps, strong.steps, strong.backbone, strong.learning_rate) == (10, 10, NANO, 2e-4)
    assert recipe_of("progressive teachers", base, material).datasets[0].supervision.steps_per_iteration == 4


def test_changing_a_field_leaves_the_original_as_it_was(material: Material) -> None:
    base = base_recipe(material, Path("backbone"))
    copy = with_field(base, ["datasets", "0", "name"], "other")
    assert (base.datasets[0].name, copy.datasets[0].name) == ("train", "other")
    assert changed(copy, base) == {"datasets.0.name"}


def record_of(**rows: list[float]) -> dict[str, Any]:
    """A results file with nDCG@10 of some rows by seed, halved at every smaller size."""
    runs = {
        name.replace("_", " "): {
            str(seed): {METRIC: {str(dim): value / 2**place for place, dim in enumerate(DIMS)}}
            for seed, value in enumerate(values)
        }
        for name, values in rows.items()
    }
    return {"runs": runs}


def cells(lines: list[str], name: str) -> list[str]:
    """What the first table says in a row."""
    (line,) = [line for line in lines[: lines.index("")] if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_has_means_deviations_differences_and_the_papers_sign() -> None:
    lines = table(record_of(base=[0.30, 0.32, 0.34], causal=[0.27, 0.30, 0.33], EOS=[0.31, 0.33, 0.35]))
    assert cells(lines, BASE) == [BASE, "", "", "3", "32.0 ± 2.0", "", "", ""]
    # differences -3, -2, -1: mean -2, deviation 1
    assert cells(lines, "causal")[4:] == ["30.0 ± 3.0", "-2.0 ± 1.0", "-0.59 (DRAMA 0.1B, BEIR-13)", "same"]
    assert cells(lines, "EOS")[-1] == "opposite"
    assert lines[-2] == "| base | 32.0 ± 2.0 | 16.0 ± 1.0 | 8.0 ± 0.5 | 4.0 ± 0.2 |"


def test_differences_pair_the_seeds_that_both_rows_have() -> None:
    record = record_of(base=[0.30, 0.50], causal=[0.25])
    assert differences(record, "causal") == pytest.approx([-5.0])
    assert differences(record_of(causal=[0.25]), "causal") == []


def test_embeddings_of_any_size_are_compared_whole() -> None:
    runs = {
        STRONG: {"0": {METRIC: {"384": 0.50, "80": 0.45}}},
        "nano, listwise": {"0": {METRIC: {"384": 0.53, "80": 0.40}}},
    }
    assert differences({"runs": runs}, "nano, listwise") == pytest.approx([3.0])


def test_rows_without_runs_are_left_out_of_the_table() -> None:
    assert not any("random start" in line for line in table(record_of(base=[0.3])))


def test_a_sign_needs_two_seeds_and_two_standard_errors() -> None:
    assert verdict([1.0, -0.9, 0.2], "+1.6") == "undecided"
    assert verdict([1.0, 0.9, 1.2], "+1.6") == "same"
    assert verdict([1.0, 0.9, 1.2], "-1.6") == "opposite"
    # mean 1, deviation 1, standard error 0.577
    assert verdict([0.0, 1.0, 2.0], "+1.6") == "undecided"
    assert verdict([-0.5], "+1.6") == "undecided"
    assert verdict([1.0], "") == verdict([], "+1.6") == ""


def test_best_documents_are_those_of_a_full_sort() -> None:
    queries, documents = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    found = best_documents(queries, documents, ["a", "b", "c", "d", "e"], ["v", "w", "x", "y", "z"], k=2)
    for row, query in enumerate("abcde"):
        order = sorted("vwxyz", key=lambda key: -float(queries[row] @ documents["vwxyz".index(key)]))
        assert list(found[query]) == order[:2]


def test_plot_of_some_rows_is_an_svg(tmp_path: Path) -> None:
    plot(record_of(base=[0.3, 0.32], causal=[0.27, 0.3], Matryoshka=[0.3]), tmp_path / "plot.svg")
    assert "</svg>" in (tmp_path / "plot.svg").read_text(encoding="utf-8")


def test_drawn_test_queries_are_the_same_each_time_and_all_judged(tmp_path: Path) -> None:
    documents = [{"_id": f"d{number}", "title": "", "text": f"text {number}"} for number in range(9)]
    queries = {f"q{number}": f"question {number}" for number in range(9)}
    qrels = {"test": {f"q{number}": {f"d{number}": int(number > 2)} for number in range(9)}}
    Collection.write(tmp_path / "c", documents, queries, qrels)
    material = Material(work=tmp_path, collection=tmp_path / "c", train_queries=1, test_queries=4, steps=1)
    drawn, judged = material.test()
    assert drawn == material.test()[0]
    assert len(drawn) == 4
    assert drawn.keys() == judged.keys() <= {f"q{number}" for number in range(3, 9)}
    assert evaluate({query: dict.fromkeys(grades, 1.0) for query, grades in judged.items()}, judged)[METRIC] == 1
