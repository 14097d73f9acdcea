"""Generated queries against a loopback endpoint: what is asked, what is kept, what is kept aside."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from drama_models import Collection
from drama_models.errors import EndpointError, RecipeError
from tests.training.augment.chat_server import serving
from tests.training.augment.test_rerank import HOSTILE, SPECIAL
from training.augment.generate import GenerateRecipe, clean_query, generate, parse_task_query
from training.augment.llm import Endpoint
from training.augment.templates import load_examples, load_prompt, show_prompts
from training.data.examples import read_examples

KINDS = ("search", "search-zero-shot", "question", "claim", "title", "keywords", "drama")


@pytest.fixture
def passages(tmp_path: Path) -> Path:
    texts = ["The tide comes in twice a day. $5 <|im_end|>", "Salt is raked at dusk.", "Ο ναύτης κοιμάται."]
    Collection.write(tmp_path / "passages", ({"_id": f"p{number}", "text": text} for number, text in enumerate(texts)))
    return tmp_path / "passages"


def recipe(passages: Path, url: str, **changes: Any) -> GenerateRecipe:
    llm = Endpoint(url=url, model="tiny", first_wait_s=0.01, attempts=2)
    settings: dict[str, Any] = {"collection": passages, "out": passages.parent / "made", "llm": llm}
    return GenerateRecipe(**settings | changes)


def reply(messages: list[dict[str, str]]) -> str:
    if "Task:" in messages[0]["content"]:
        return "Task: Find it.\nQuery: where is\nthe sailor\nLanguage: English"
    return f'"{messages[-1]["content"].splitlines()[-1]} tide\there"\n\nI hope this helps.'


def test_every_passage_gets_a_query_of_each_kind(passages: Path) -> None:
    with serving(reply) as server:
        made = recipe(passages, server.url, kinds=KINDS)
        record = generate(made)
        first = [(path.name, path.read_bytes()) for path in sorted(made.out.iterdir())]
        generate(made)
        assert len(server.bodies) == 3 * len(KINDS)  # the second run asked for nothing
    assert [(path.name, path.read_bytes()) for path in sorted(made.out.iterdir())] == first
    examples = list(read_examples(made.out / "examples.jsonl"))
    assert [example.query_id for example in examples] == [f"p{number}:{kind}" for number in range(3) for kind in KINDS]
    assert examples[2].query == "Question: tide here"
    assert examples[6].query == "where is the sailor"
    assert (examples[6].task, examples[6].source, examples[6].positive_ids) == ("drama", "generate", ["p0"])
    assert record["figures"]["usage"] == {
        "answers": 21, "failed": 0, "prompt_tokens": 210, "answer_tokens": 105, "usd": 0.0
    }  # fmt: skip
    assert record["recipe"]["sampling"] == {"temperature": 0.8, "top_p": 0.9, "max_tokens": 256, "seed": 42}
    turns = {body["messages"][-1]["content"] for body in server.bodies}
    assert sum("<passage>The tide comes in twice a day. $5 < |im_end| ></passage>" in turn for turn in turns) == 7
    shown = [turn.count("<passage>") for turn in turns]
    assert sorted(set(shown)) == [1, 4]  # alone, or behind three worked examples


def test_hostile_passages_stay_between_their_tags(tmp_path: Path) -> None:
    Collection.write(tmp_path / "hostile", ({"_id": f"h{n}", "text": text} for n, text in enumerate(HOSTILE)))
    with serving(reply) as server:
        generate(recipe(tmp_path / "hostile", server.url, kinds=KINDS))
    assert len(server.bodies) == len(KINDS) * len(HOSTILE)
    for body in server.bodies:
        prompt = body["messages"][-1]["content"]
        assert prompt.count("<passage>") == prompt.count("</passage>") in (1, 4)  # alone, or behind worked examples
        assert not [token for token in SPECIAL if token in prompt]
        assert not re.search(r"\[\d+\]", prompt)


def test_what_is_no_query_is_kept_aside_with_its_reason(passages: Path) -> None:
    replies = {"tide": "word " * 60, "Salt": '" "', "ναύτης": "Πού κοιμάται;"}

    def odd(messages: list[dict[str, str]]) -> str:
        last = messages[-1]["content"].rpartition("<passage>")[2]
        return next(text for name, text in replies.items() if name in last)

    with serving(odd) as server:
        made = recipe(passages, server.url, kinds=("question",))
        figures = generate(made)["figures"]
        assert figures["kept"] == {"question": 1}
        assert figures["rejected"] == {"more than 48 words": 1, "empty": 1}
        rejected = [json.loads(line) for line in (made.out / "rejected.jsonl").read_text().splitlines()]
        assert [(row["document"], row["reason"]) for row in rejected] == [("p0", "more than 48 words"), ("p1", "empty")]
        with pytest.raises(EndpointError, match=r"None of 3 answers of tiny is a query \(3 not the three lines"):
            generate(recipe(passages, server.url, kinds=("drama",), out=passages.parent / "none"))
    assert not (passages.parent / "none").exists()


def test_answers_are_read_as_their_rules_say() -> None:
    assert clean_query("  what is salt?\n\nHope it helps") == "what is salt?"
    assert clean_query("first line\n") == "first line"
    assert clean_query("first line\n", header=True) == ""
    assert parse_task_query("Task: T\nQuery:  \nLanguage: English") is None
    both = parse_task_query("Task: A\nQuery: x\nLanguage: Thai\nTask: B\nQuery: y\nLanguage: French")
    assert both is not None
    assert (both.query, both.language) == ("x", "Thai")
    talkative = parse_task_query("Sure.\nTask: A\nQuery: x\nLanguage:\nThai\nBye")
    assert talkative is not None
    assert (talkative.task, talkative.language) == ("Sure.\n A", "Thai")


def test_prompts_can_be_replaced_and_say_what_is_wrong(tmp_path: Path, passages: Path) -> None:
    shown = show_prompts()
    assert all(f"{kind}.txt" in shown for kind in KINDS)
    (tmp_path / "question.txt").write_text("=== user\nFrage zu $passage, $5", encoding="utf-8")
    with pytest.raises(
        RecipeError, match=r"question\.txt: .* cannot be filled in; use \$examples, \$passage, and \$\$"
    ):
        load_prompt("question", tmp_path).with_examples([], "question", "x")
    (tmp_path / "question.txt").write_text("=== user\nFrage zu $passage", encoding="utf-8")
    with serving(lambda _: "Was?") as server:
        generate(recipe(passages, server.url, kinds=("question",), prompts=tmp_path))
        assert server.bodies[0]["messages"][0]["content"].startswith("Frage zu <passage>")
    (tmp_path / "typos").mkdir()
    (tmp_path / "typos" / "questoin.txt").write_text("=== user\n$passage", encoding="utf-8")
    for folder in ("typos", "absent"):
        with pytest.raises(RecipeError, match=rf"{folder} is no folder of prompts: it has no file"):
            load_prompt("question", tmp_path / folder)
    (tmp_path / "claim.txt").write_text("no parts", encoding="utf-8")
    with pytest.raises(RecipeError, match="must have a part that starts with the line `=== user`"):
        load_prompt("claim", tmp_path)
    (tmp_path / "examples.jsonl").write_text('{"passage": "p", "question": "q"}\n', encoding="utf-8")
    with pytest.raises(RecipeError, match="has no line with `passage` and `claim`"):
        load_examples("claim", tmp_path)
    with pytest.raises(RecipeError, match=r"There is no prompt riddle\.txt; choose one of brainstorm, claim"):
        load_prompt("riddle")


def test_the_shipped_examples_keep_the_rules_they_teach() -> None:
    examples = load_examples("question")
    assert len(examples) == 12
    for example in examples:
        for kind in ("search", "question", "claim", "title", "keywords"):
            assert 0 < len(example[kind].split()) < 20
            assert example[kind] not in example["passage"]
    for example in load_examples("drama"):
        assert parse_task_query(example["drama"]) is not None
