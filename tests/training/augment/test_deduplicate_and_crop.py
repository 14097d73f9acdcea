"""Duplicates against a slow reading of the rule; sentence crops against the passages they come from."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from drama_models import Collection
from drama_models.errors import CollectionError
from training.augment.crop import CropRecipe, crop
from training.augment.deduplicate import DeduplicateRecipe, deduplicate, duplicate_positions, normalise
from training.data.examples import read_examples


def slow_duplicates(texts: list[str]) -> set[int]:
    """The rule as the paper's scripts go about it, all in memory: what was removed stays among the neighbours."""
    rows = [(normalise(text), position) for position, text in enumerate(texts)]
    removed = {position for text, position in rows if len(text) < 10}
    for reverse in (False, True):
        rows.sort(key=lambda row: (row[0][::-1] if reverse else row[0], row[1]))
        for place, (text, position) in enumerate(rows):
            if any(text in other for other, _ in rows[place + 1 : place + 10]):
                removed.add(position)
    return removed


@pytest.mark.parametrize("part_characters", [50, 2000, 1 << 26])
def test_duplicates_are_those_of_the_slow_rule_in_parts_of_any_size(part_characters: int) -> None:
    draw = random.Random(1)
    base = [
        " ".join(draw.choices(["sea", "salt", "Öl", "wave", "12", "reef,", "tide"], k=draw.randint(2, 8)))
        for _ in range(300)
    ]
    texts = base + [text.upper() + "!" for text in base[:50]] + [f"before {text}" for text in base[50:100]]
    found = duplicate_positions(texts, part_characters=part_characters)
    assert found == slow_duplicates(texts)
    assert 50 < len(found) < len(texts)


def test_what_was_removed_stays_among_the_neighbours() -> None:
    draw = random.Random(2)
    for _ in range(60):  # small corpora with many short texts, where that matters
        texts = [" ".join(draw.choices(["sea", "salt", "wave", "tide", "7"], k=draw.randint(0, 5))) for _ in range(40)]
        assert duplicate_positions(texts) == slow_duplicates(texts)


def test_the_last_of_equal_texts_stays_and_longer_ones_win() -> None:
    texts = [
        "The tide comes in.",
        "the TIDE, comes in",
        "See: the tide comes in",
        "The tide comes in at 5 today",
        "short",
    ]
    assert duplicate_positions(texts) == {0, 1, 4}  # 1 is the beginning of 3 and the end of 2
    assert duplicate_positions(["The tide comes in."] * 30) == set(range(29))
    assert normalise("Café №12: ﬁne_ish\t\n Ünïcode") == "cafe no fine_ish unicode"


def test_a_collection_without_duplicates(tmp_path: Path) -> None:
    records = [
        {"_id": "a", "title": "", "text": "The tide comes in.", "document": "x"},
        {"_id": "b", "title": "", "text": "The tide comes in, slowly.", "document": "y"},
    ]
    Collection.write(tmp_path / "in", records)
    figures = deduplicate(DeduplicateRecipe(collection=tmp_path / "in", out=tmp_path / "out"))["figures"]
    assert figures == {"removed": 1, "kept": 1}
    assert list(Collection(tmp_path / "out").records()) == records[1:]
    assert (tmp_path / "out" / "duplicates.txt").read_text(encoding="utf-8") == "a\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "corpus.jsonl", "duplicates.txt", "provenance.json", "qrels", "queries.jsonl"
    ]  # fmt: skip


def test_crops_are_sentences_of_their_passage_and_do_not_depend_on_the_others(
    collection_folder: Path, tmp_path: Path
) -> None:
    texts = {document.id: document.text for document in Collection(collection_folder).documents()}
    recipe = CropRecipe(collection=collection_folder, out=tmp_path / "crops.jsonl")
    assert crop(recipe) == len(texts)
    examples = list(read_examples(recipe.out))
    assert all(example.query in texts[example.positive_ids[0]] for example in examples)
    assert all(example.source == "crop" for example in examples)
    Collection.write(tmp_path / "fewer", ({"_id": key, "text": text} for key, text in list(texts.items())[5:9]))
    crop(CropRecipe(collection=tmp_path / "fewer", out=tmp_path / "fewer.jsonl"))
    assert list(read_examples(tmp_path / "fewer.jsonl")) == examples[5:9]
    drawn = set()
    for seed in (1, 2, 1):
        seeded = CropRecipe(collection=collection_folder, out=tmp_path / "seeded.jsonl", seed=seed, min_words=0)
        crop(seeded)
        drawn.add(seeded.out.read_bytes())
    assert len(drawn) == 2
    everything = CropRecipe(collection=collection_folder, out=tmp_path / "all.jsonl", per_passage=0, min_words=0)
    assert crop(everything) == sum(text.count(".") for text in texts.values())


def test_no_sentence_long_enough_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    Collection.write(tmp_path / "in", [{"_id": "a", "text": "Too short."}])
    with pytest.raises(CollectionError, match="has no sentence of 4 words; lower min_words"):
        crop(CropRecipe(collection=tmp_path / "in", out=tmp_path / "crops.jsonl"))
    assert not (tmp_path / "crops.jsonl").exists()
    with pytest.raises(ValueError, match="0 means no limit"):
        CropRecipe(collection=tmp_path, out=tmp_path, per_passage=-1)
