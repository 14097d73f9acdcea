"""Training data out of nothing: a large model thinks up tasks, then a query, a positive and a hard negative for each.

DRAMA tried this (section 3.1.4) and left it out of its recipe, since it did not help beside queries made for real
passages; it is here for comparisons, and for those who have no documents yet.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drama_models.collection import Collection
from drama_models.errors import EndpointError
from drama_models.folders import atomic_folder
from drama_models.provenance import write_provenance
from training.augment.llm import ChatClient, ChatRequest, Endpoint, Sampling
from training.augment.templates import load_prompt
from training.augment.untrusted import neutralise
from training.data.examples import TrainingExample, write_examples

if TYPE_CHECKING:
    from collections.abc import Iterator

BULLET = re.compile(r"^\s*(?:[-*\u2022]|\(?\d{1,3}[.):])\s*")
TASKS_PER_ANSWER = 20
FIELDS = ("query", "positive", "hard_negative")


@dataclass(frozen=True, kw_only=True)
class TripletsRecipe:
    """Settings of triplets."""

    out: Path
    """Collection to make, with examples.jsonl beside its corpus."""
    llm: Endpoint
    """The large model."""
    tasks: int = 100
    """Tasks to think up; fewer where the model repeats itself."""
    per_task: int = 10
    """Triplets of each task."""
    language: str = "English"
    """Of queries and passages."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0, top_p=1.0, max_tokens=1024))
    """How the model draws its answers; each request has a seed of its own, counted from this one."""
    prompts: Path | None = None
    """Folder whose brainstorm.txt and triplet.txt replace the shipped ones."""
    cache: Path | None = None
    """File of the answers that were paid for; OUT.answers beside the folder by default."""

    def __post_init__(self) -> None:
        if self.tasks < 1 or self.per_task < 1:
            raise ValueError(f"tasks={self.tasks} and per_task={self.per_task} must be positive; try 100 and 10.")


@dataclass(frozen=True)
class Triplet:
    """What one answer holds."""

    query: str
    positive: str
    hard_negative: str


def make_triplets(recipe: TripletsRecipe) -> dict[str, Any]:
    """Write a collection of made-up passages and the examples on it; returns the provenance record.

    Raises:
        EndpointError: the endpoint does not answer, or no answer can be used.
        RecipeError: a prompt is malformed.
    """
    client = ChatClient(recipe.llm, recipe.cache or recipe.out.parent / f"{recipe.out.name}.answers")
    tasks = _brainstorm(recipe, client)
    documents, examples, rejected = [], [], Counter[str]()
    for (number, task, copy), answer in client.ask(_requests(recipe, tasks), total=len(tasks) * recipe.per_task):
        triplet = parse_triplet(answer.text) if answer else None
        if triplet is None:
            rejected["no answer" if answer is None else "not the JSON object asked for"] += 1
            continue
        key = f"task{number}-{copy}"
        for role, text in (("positive", triplet.positive), ("negative", triplet.hard_negative)):
            documents.append({"_id": f"{key}-{role}", "title": "", "text": text, "task": task})
        examples.append(
            TrainingExample(
                query_id=key,
                query=triplet.query,
                positive_ids=[f"{key}-positive"],
                negative_ids=[f"{key}-negative"],
                task="triplet",
                source="generate",
            )
        )
    if not examples:
        raise EndpointError(
            f"{recipe.llm.model} gave no triplet that can be read; look at its answers, or try another."
        )
    with atomic_folder(recipe.out) as partial:
        Collection.write(partial, documents)
        write_examples(partial / "examples.jsonl", examples)
        figures = {"tasks": len(tasks), "examples": len(examples), "rejected": rejected, "usage": asdict(client.usage)}
        return write_provenance(partial, stage="training.triplets", recipe=recipe, inputs={}, figures=figures)


def parse_tasks(raw: str) -> list[str]:
    """Tasks of an answer, one a line, without bullets and numbers; a line that only introduces them is none."""
    lines = (BULLET.sub("", line).strip() for line in raw.splitlines())
    return [neutralise(line) for line in lines if line and not line.endswith(":")]


def parse_triplet(raw: str) -> Triplet | None:
    """The triplet in an answer: its outermost JSON object, whatever stands around it; None where there is none.

    All three texts must be there, and positive and hard negative must differ.
    """
    try:
        record = json.loads(raw[raw.index("{") : raw.rindex("}") + 1])
    except (ValueError, RecursionError):
        return None
    values = [record.get(name) for name in FIELDS]
    if not all(isinstance(value, str) and value.strip() for value in values):
        return None
    query, positive, negative = (" ".join(value.split()) for value in values)
    return Triplet(query, positive, negative) if positive != negative else None


def _brainstorm(recipe: TripletsRecipe, client: ChatClient) -> list[str]:
    """Different tasks, in the order they were thought up."""
    prompt = load_prompt("brainstorm", recipe.prompts).messages({"count": TASKS_PER_ANSWER})
    rounds = 2 * -(-recipe.tasks // TASKS_PER_ANSWER)  # twice as many as needed, since answers repeat each other
    asked = ((number, ChatRequest(prompt, _seeded(recipe.sampling, number))) for number in range(rounds))
    tasks: dict[str, str] = {}
    for _, answer in client.ask(asked, total=rounds):
        for task in parse_tasks(answer.text) if answer else ():
            tasks.setdefault(task.casefold(), task)
    if not tasks:
        raise EndpointError(f"{recipe.llm.model} thought up no task; look at its answers, or try another model.")
    return list(tasks.values())[: recipe.tasks]


def _requests(recipe: TripletsRecipe, tasks: list[str]) -> Iterator[tuple[tuple[int, str, int], ChatRequest]]:
    prompt = load_prompt("triplet", recipe.prompts)
    for number, task in enumerate(tasks):
        messages = prompt.messages({"task": task, "language": recipe.language})
        for copy in range(recipe.per_task):
            yield (number, task, copy), ChatRequest(messages, _seeded(recipe.sampling, copy))


def _seeded(sampling: Sampling, number: int) -> Sampling:
    """The same request with another seed is another request, to the endpoint and to the cache."""
    return Sampling(**asdict(sampling) | {"seed": sampling.seed + number})
