"""Every stage killed with SIGKILL in the middle of its work and given again, against the same stage left alone."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from drama_models import Collection
from drama_models.folders import sha256_of_file
from drama_models.recipe import run_command
from tests.processes import kill_when, start
from tests.training.augment.chat_server import serving
from tests.training.augment.test_rerank import cross_encoder  # noqa: F401 (a fixture)
from training.augment.commands import COMMANDS
from training.data.examples import read_examples, write_examples

WORDS = ["pump", "valve", "oil", "salt", "wave", "reef", "tide", "owl", "crow", "seal", "toad", "moss", "rain", "ash"]
CONCURRENCY = 4
OUT = "out"
Words = list[str]


def run(words: Words) -> None:
    assert run_command("training", COMMANDS, words) == 0


def given(command: str, **settings: object) -> Words:
    return [command, *(f"--{name}={value}" for name, value in settings.items())]


@dataclass
class Material:
    """What the stages start from: each file or folder as the stage before it makes it."""

    root: Path
    encoder: Path
    cross: Path

    def __post_init__(self) -> None:
        draw = random.Random(0)
        lines = []
        for number in range(160):
            text = " ".join(f"{' '.join(draw.choices(WORDS, k=8)).capitalize()}." for _ in range(40))
            asked = f"Where is the {draw.choice(WORDS)} {number}? "
            lines.append(
                json.dumps({"_id": number, "title": f"The {draw.choice(WORDS)} {number}", "text": asked + text})
            )
        self.documents.write_text("\n".join(lines), encoding="utf-8")
        run(given("chunk", documents=self.documents, model=self.encoder, out=self.passages, max_tokens=40))
        run(given("crop", collection=self.passages, out=self.crops, per_passage=2))
        Collection.write(self.few, list(Collection(self.passages).records())[:30])
        write_examples(self.few_crops, list(read_examples(self.crops))[:30])
        run(given("mine", collection=self.passages, examples=self.crops, out=self.mined, k=3))
        lists = self.mined.read_text(encoding="utf-8").splitlines(keepends=True)
        self.start_of_mined.write_text("".join(lists[: 600 * 3]), encoding="utf-8")
        run(given("mine", collection=self.few, examples=self.few_crops, out=self.few_mined, k=3))

    def __getattr__(self, name: str) -> Path:
        return self.root / {"documents": "documents.jsonl"}.get(name, name)


def some(pattern: str) -> Callable[[Path], bool]:
    """Whether a file of this name has something in it."""
    return lambda folder: any(path.is_file() and path.stat().st_size for path in folder.glob(pattern))


STAGES: dict[str, tuple[Callable[[Material], Words], Callable[[Path], bool]]] = {
    "chunk": (
        lambda made: given("chunk", documents=made.documents, model=made.encoder, max_tokens=40),
        some("*partial*/corpus.jsonl"),
    ),
    "deduplicate": (lambda made: given("deduplicate", collection=made.passages), some("*partial*/*/*ward/0")),
    "crop": (lambda made: given("crop", collection=made.passages), some(".out.partial-*")),
    "find": (lambda made: given("find", collection=made.passages), some("*partial*/corpus.jsonl")),
    "mine with BM25": (
        lambda made: given("mine", collection=made.passages, examples=made.crops, k=10, workers=2),
        some(".out.parts/000000*"),
    ),
    "mine with an encoder": (
        lambda made: given("mine", collection=made.few, examples=made.crops, k=10, teacher=made.encoder),
        some(".out.parts/000000*"),
    ),
    "rerank with a cross-encoder": (
        lambda made: given(
            "rerank", collection=made.passages, examples=made.crops, run=made.start_of_mined, cross_encoder=made.cross
        ),
        some(".out.parts/000001*"),
    ),
    "filter": (
        lambda made: given(
            "filter", collection=made.passages, examples=made.crops, teacher_run=made.mined, length=2, drop_weak=False
        ),
        some(".out.partial-*/examples.jsonl"),
    ),
}  # fmt: skip
PAID: dict[str, Callable[[Material], Words]] = {
    "generate": lambda made: given("generate", collection=made.few, kinds="[question, title]"),
    "rerank": lambda made: given("rerank", collection=made.few, examples=made.few_crops, run=made.few_mined),
    "triplets": lambda _: given("triplets", tasks=10, per_task=5),
}


@pytest.fixture(scope="module")
def material(
    cross_encoder: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Material:
    return Material(tmp_path_factory.mktemp("material"), Path("demo/nano").absolute(), cross_encoder)


def final_files(folder: Path) -> dict[str, str]:
    """Hash of everything but the cache of answers, whose order on disk is that of their coming."""
    paths = [path for path in folder.rglob("*") if path.is_file() and ".answers" not in path.name]
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in paths}


def killed_and_given_again(
    words: Words, folder: Path, middle: Callable[[], bool]
) -> tuple[dict[str, str], dict[str, str]]:
    """Final files of a run that was left alone, and of one that was killed in the middle and begun again."""
    whole, cut = folder / "whole", folder / "cut"
    whole.mkdir()
    cut.mkdir()
    kill_when(start("training", *words, f"--out={cut / OUT}"), middle)
    assert not (cut / OUT).exists()
    run([*words, f"--out={cut / OUT}"])
    run([*words, f"--out={whole / OUT}"])
    return final_files(whole), final_files(cut)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_ends_as_if_left_alone(stage: str, material: Material, tmp_path: Path) -> None:
    words, middle = STAGES[stage]
    whole, cut = killed_and_given_again(words(material), tmp_path, lambda: middle(tmp_path / "cut"))
    assert any(name.startswith(OUT) for name in whole)
    assert cut == whole


def reply(messages: list[dict[str, str]]) -> str:
    time.sleep(0.02)
    said = messages[-1]["content"]
    if "JSON" in said:
        return json.dumps({"query": said[:20], "positive": said, "hard_negative": "none"})
    return "\n".join([f"{len(said)} [2] > [1]", *(f"Find the rule of {word}" for word in WORDS)])


@pytest.mark.slow
@pytest.mark.parametrize("stage", PAID)
def test_a_killed_stage_pays_for_no_answer_twice(stage: str, material: Material, tmp_path: Path) -> None:
    with serving(reply) as server:
        llm = {"llm.url": server.url, "llm.model": "tiny", "llm.concurrency": CONCURRENCY}
        words = [*PAID[stage](material), *given("", **llm)[1:]]
        whole, cut = killed_and_given_again(words, tmp_path, lambda: len(server.bodies) >= 15)
    assert cut == whole
    once = len({json.dumps(body, sort_keys=True) for body in server.bodies})
    asked_by_cut = len(server.bodies) - once
    assert once <= asked_by_cut <= once + CONCURRENCY  # those under way when it was killed may be asked again
