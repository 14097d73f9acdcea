"""Triplets from a loopback endpoint: tasks told apart, broken answers counted, the result a collection to train on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drama_models import Collection
from drama_models.errors import EndpointError
from tests.training.augment.chat_server import serving
from training.augment.llm import Endpoint
from training.augment.triplets import Triplet, TripletsRecipe, make_triplets, parse_tasks, parse_triplet
from training.data.examples import read_examples

TASKS = "Here are some:\n1. Find a manual for a machine.\n- Find a law.\n2) find a LAW.\n\n* Find a review."


def reply(messages: list[dict[str, str]]) -> str:
    if "$" in messages[-1]["content"]:
        return "unfilled"
    if messages[-1]["content"].startswith("List 20"):
        return TASKS
    task = messages[-1]["content"].partition("\n")[0].removeprefix("The task: ")
    if "law" in task:
        return "I cannot."
    record = {"query": f"q of {task}", "positive": "yes\nit is", "hard_negative": "it is not"}
    return f"Sure!\n```json\n{json.dumps(record)}\n```"


def test_triplets_become_a_collection_with_examples(tmp_path: Path) -> None:
    with serving(reply) as server:
        llm = Endpoint(url=server.url, model="m")
        recipe = TripletsRecipe(out=tmp_path / "made", llm=llm, tasks=3, per_task=2)
        record = make_triplets(recipe)
        asked = len(server.bodies)
        make_triplets(recipe)
        assert len(server.bodies) == asked == 2 + 3 * 2
    examples = list(read_examples(recipe.out / "examples.jsonl"))
    texts = {document.id: document.text for document in Collection(recipe.out).documents()}
    assert [example.query for example in examples] == ["q of Find a manual for a machine."] * 2 + [
        "q of Find a review."
    ] * 2
    assert all(texts[example.positive_ids[0]] == "yes it is" for example in examples)
    assert all(texts[example.negative_ids[0]] == "it is not" for example in examples)
    assert record["figures"]["rejected"] == {"not the JSON object asked for": 2}


def test_answers_are_read_tolerantly_but_never_guessed(tmp_path: Path) -> None:
    assert parse_tasks(TASKS) == ["Find a manual for a machine.", "Find a law.", "find a LAW.", "Find a review."]
    assert parse_triplet('x {"query": "a", "positive": "b", "hard_negative": "c", "more": 1} y') == Triplet(
        "a", "b", "c"
    )
    whole = {"query": "a", "positive": "b", "hard_negative": "c"}
    records = [whole | change for change in ({"query": ""}, {"hard_negative": "b"}, {"query": 1})] + [{"query": "a"}]
    for raw in ("", "}{", "[1]", "{" * 50_000 + "}", *map(json.dumps, records)):
        assert parse_triplet(raw) is None
    with serving(lambda _: "\n") as server, pytest.raises(EndpointError):
        llm = Endpoint(url=server.url, model="m", attempts=1)
        make_triplets(TripletsRecipe(out=tmp_path / "made", llm=llm))
    with serving(lambda _: "Find a law.") as server, pytest.raises(EndpointError, match="gave no triplet"):
        llm = Endpoint(url=server.url, model="m")
        make_triplets(TripletsRecipe(out=tmp_path / "made", llm=llm, per_task=1))
    assert not (tmp_path / "made").exists()
