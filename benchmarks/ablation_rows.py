"""The ablations' rows: a base recipe, and what each row changes, in which other row, beside what the papers saw."""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.ablation_material import BM25_NAME, DENSE_NAME, GIVEN_NAME
from training.data.datasets import DatasetRecipe
from training.data.supervision import RankWindows, Supervision
from training.encoders import EncoderRecipe
from training.objectives import Contrastive, Listwise
from training.recipe import ObjectiveRecipe, TrainRecipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.ablation_material import Material

BASE = "base"
DIMS = (160, 80, 40, 20)
CONTRASTIVE = Contrastive(temperature=0.05)  # the demo's
STEPS, BATCH_SIZE, MAX_LENGTH = 32, 32, 32
TEST_QUERIES = 1000
LEARNING_RATE = 2e-3
DENSE_SOURCE, NANO = Path("demo/source"), Path("demo/nano")
STRONG = "nano"
STRONG_RATE = 2e-4  # arXiv 2502.19712, section 4


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the ablation: what it changes, in which other row, and what the papers saw."""

    parent: str = BASE
    field: str = ""
    """Path of the one changed field of TrainRecipe; numbers are places in a list. Empty for what others differ from."""
    value: Callable[[Material], Any] = lambda _: None
    """Of that field."""
    paper: str = ""
    """The published difference to the parent, sign first; empty where none is published."""
    source: str = ""
    """Where that was published, and on what."""
    needs_teacher: bool = False
    """Whether it is left out without a given teacher."""


def _ranked(material: Material) -> list[DatasetRecipe]:
    """The same queries, labelled by teachers' lists instead of people; windows of DRAMA's reranked lists."""
    return [
        DatasetRecipe(
            name="train",
            task="retrieval",
            collection=material.train_collection,
            teachers=material.teachers,
            supervision=_supervision("uniform", material),
            windows=RankWindows(k=20, positives=1, negatives=10),
        )
    ]


def _supervision(kind: Any, material: Material) -> Supervision:
    return Supervision(kind=kind, steps_per_iteration=-(-material.steps // len(material.teachers)))


def _one_teacher(name: str) -> Callable[[Material], Any]:
    return lambda material: [teacher for teacher in material.teachers if teacher.name == name]


BEIR = "BEIR-13"
DRAMA, DRAGON, SPECIAL = f"DRAMA 0.1B, {BEIR}", f"DRAGON table 2, {BEIR}", "arXiv 2502.19712, E5, four sets"
SPECIAL_STRONG = "arXiv 2502.19712, BGE, four sets"
LISTWISE = ObjectiveRecipe(contrastive=None, listwise=Listwise())
BOTH = ObjectiveRecipe(contrastive=CONTRASTIVE, contrastive_weight=0.1, listwise=Listwise())
ROWS: dict[str, Row] = {
    BASE: Row(),
    "causal": Row(field="encoder.bidirectional", value=lambda _: False, paper="-0.59", source=DRAMA),
    "EOS": Row(field="encoder.pooling", value=lambda _: "last", paper="-0.10", source=DRAMA),
    "causal, EOS": Row(
        parent="causal", field="encoder.pooling", value=lambda _: "last", paper="-0.30", source=DRAMA
    ),
    "random start": Row(
        field="backbone", paper="-", source="DRAMA's premise, no figure",
        value=lambda material: material.random_backbone,
    ),
    "0 negatives": Row(field="negatives", value=lambda _: 0),
    "7 negatives": Row(field="negatives", value=lambda _: 7),
    "listwise": Row(parent="7 negatives", field="objective", value=lambda _: LISTWISE, paper="+3.5", source=SPECIAL),
    "listwise + contrastive": Row(
        parent="7 negatives", field="objective", value=lambda _: BOTH, paper="+4.6", source=SPECIAL
    ),
    "uniform teachers": Row(field="datasets", value=_ranked),
    "progressive teachers": Row(
        parent="uniform teachers", field="datasets.0.supervision", paper="+1.6", source=DRAGON,
        value=lambda material: _supervision("progressive", material),
    ),
    "fused teachers": Row(
        parent="uniform teachers", field="datasets.0.supervision", paper="-1.1", source=DRAGON,
        value=lambda material: _supervision("fused", material),
    ),
    "teacher BM25": Row(
        parent="uniform teachers", field="datasets.0.teachers", paper="-1.0", source=f"{DRAGON}: uniCOIL",
        value=_one_teacher(BM25_NAME),
    ),
    "teacher dense": Row(
        parent="uniform teachers", field="datasets.0.teachers", paper="-0.7", source=f"{DRAGON}: Contriever",
        value=_one_teacher(DENSE_NAME),
    ),
    "teacher MiniLM": Row(
        parent="uniform teachers", field="datasets.0.teachers", paper="-1.4", source=f"{DRAGON}: ColBERTv2",
        value=_one_teacher(GIVEN_NAME), needs_teacher=True,
    ),
    "Matryoshka": Row(field="objective.dims", value=lambda _: DIMS),
    STRONG: Row(),
    "nano, untrained": Row(  # the first step has a rate of 0
        parent=STRONG, field="steps", value=lambda _: 1, paper="+1.4", source=SPECIAL_STRONG
    ),
    "nano, listwise": Row(
        parent=STRONG, field="objective", value=lambda _: LISTWISE, paper="+3.9", source=SPECIAL_STRONG
    ),
    "nano, listwise at 0.2": Row(  # the paper's students have cosines of a narrow range, a MiniLM has not
        parent="nano, listwise", field="objective.listwise.student_temperature", value=lambda _: 0.2
    ),
    "nano, listwise + contrastive": Row(
        parent=STRONG, field="objective", value=lambda _: BOTH, paper="+3.8", source=SPECIAL_STRONG
    ),
}  # fmt: skip


def base_recipe(material: Material, backbone: Path) -> TrainRecipe:
    """The first row: DRAMA's ablation setting in miniature (one hard negative), on human labels."""
    dataset = DatasetRecipe(
        name="train", task="retrieval", collection=material.train_collection, examples=material.examples
    )
    return TrainRecipe(
        backbone=backbone,
        out=material.work / "run",
        datasets=[dataset],
        encoder=EncoderRecipe(max_length=MAX_LENGTH),
        objective=ObjectiveRecipe(contrastive=CONTRASTIVE),
        steps=material.steps,
        batch_size=BATCH_SIZE,
        negatives=1,
        learning_rate=LEARNING_RATE,
        warmup_steps=3,
        weight_decay=0.01,
        precision="fp32",
        device="cpu",
        save_every=10_000,
    )


def dense_recipe(material: Material) -> TrainRecipe:
    """Training of the dense teacher: the base recipe, twice as long, from the model that the backbone was cut from.

    Its rate is half the base recipe's, since the model is larger.
    """
    recipe = base_recipe(material, DENSE_SOURCE)
    dataset = replace(recipe.datasets[0], examples=material.unscored)
    return replace(recipe, datasets=[dataset], steps=2 * material.steps, learning_rate=LEARNING_RATE / 2)


def strong_recipe(base: TrainRecipe) -> TrainRecipe:
    """Contrastive training of `demo/nano`, which is a good retriever before it, as the students of the paper are."""
    encoder = EncoderRecipe(max_length=MAX_LENGTH, query_prompt="")
    return replace(base, backbone=NANO, encoder=encoder, negatives=7, learning_rate=STRONG_RATE)


def recipe_of(name: str, base: TrainRecipe, material: Material) -> TrainRecipe:
    """The recipe of a row: its parent's with one field changed."""
    row = ROWS[name]
    if not row.field:
        return strong_recipe(base) if name == STRONG else base
    parent = recipe_of(row.parent, base, material)
    changed: TrainRecipe = with_field(parent, row.field.split("."), row.value(material))
    return changed


def with_field(settings: Any, path: list[str], value: Any) -> Any:
    """A copy of nested dataclasses and lists with the value at a path replaced."""
    if not path:
        return value
    first, *rest = path
    if is_dataclass(settings) and not isinstance(settings, type):
        return replace(settings, **{first: with_field(getattr(settings, first), rest, value)})
    place = int(first)
    return [with_field(item, rest, value) if number == place else item for number, item in enumerate(settings)]
