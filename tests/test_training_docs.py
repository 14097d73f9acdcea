"""The guides to data and training: commands and their options exist, the code that they show runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from training.__main__ import COMMANDS
from training.data.datasets import DatasetRecipe, open_datasets
from training.recipe import TrainRecipe

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {name: (DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("training", "data")}
SHELL = "\n".join(
    block.replace("\\\n", " ") for page in PAGES.values() for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
)
CALLS = sorted(set(re.findall(r"python -m training (\w+) (.*)", SHELL)))
FLAGS = {"--dry-run", "--show-prompts", "--help"}


@pytest.mark.parametrize("command", sorted({command for command, _ in CALLS} - {"augment"}))
def test_commands_have_the_options_that_the_guides_give_them(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = {word for name, words in CALLS if name == command for word in re.findall(r"(--[\w.-]+)", words)} - FLAGS
    with pytest.raises(SystemExit) as end:
        COMMANDS[command][0](["--help"])
    assert not end.value.code
    known = set(re.findall(r"(--[\w.]+)", capsys.readouterr().out))
    # of what is optional as a whole, such as a large model, help names the whole alone
    assert {word for word in given if word not in known and word.partition(".")[0] not in known} == set()


def test_every_shipped_recipe_is_explained() -> None:
    recipes = {path.stem for path in (ROOT / "training" / "recipes").glob("*.yaml")}
    section = PAGES["training"].partition("## The recipes, one by one")[2].partition("\n## ")[0]
    assert recipes <= set(re.findall(r"[\w-]+", section))


def test_rows_of_flagembedding_become_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGES["training"], re.DOTALL)
    lines = [
        {"query": "one", "pos": ["a", "a"], "neg": ["b", "c"], "pos_scores": [3.0, 3.0], "neg_scores": [1.0, -2.0]},
        {"query": "two", "pos": ["b"], "neg": ["a", "b"], "category": "letters"},
    ]
    monkeypatch.chdir(tmp_path)
    Path("msmarco.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    made = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    recipe = DatasetRecipe(
        name="msmarco", task="retrieval", collection=Path("data/msmarco"),
        examples=Path("data/msmarco/examples.jsonl"),
    )  # fmt: skip
    (dataset,) = open_datasets([recipe], batch_size=1, negatives=2)
    rows = np.arange(2)
    pools = dataset.labels.pools(rows)
    assert [dataset.documents.contents(found) for found in pools.positives] == [["a"], ["b"]]
    assert [dataset.documents.contents(found) for found in pools.negatives] == [["b", "c"], ["a"]]
    assert (pools.positive_scores[0].tolist(), pools.negative_scores[0].tolist()) == ([3.0], [1.0, -2.0])
    assert dataset.labels.categories(rows) == ["", "letters"]


def test_the_first_recipe_of_the_guide_has_fields_that_there_are() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGES["training"], re.DOTALL)
    (text,) = (block for block in blocks if "backbone:" in block)
    assert set(yaml.safe_load(text)) <= set(TrainRecipe.__dataclass_fields__)
