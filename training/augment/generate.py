"""Queries written by a large model, for passages that nobody has searched yet.

Seven kinds, each a prompt file that may be edited: the six of the specialisation paper (search queries with and
without worked examples, questions, claims, titles, keywords), and DRAMA's, where the model invents the task first and
writes in the document's language. An answer that does not parse is counted and kept aside, never guessed.

Tamber et al., 2025, https://arxiv.org/abs/2502.19712, section 3; DRAMA, https://arxiv.org/abs/2502.18460, section 3.1.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from drama_models.collection import Collection, Document
from drama_models.errors import EndpointError
from drama_models.folders import atomic_folder
from drama_models.provenance import write_provenance
from drama_models.ray_workers import Engine
from training.augment.llm import ChatClient, ChatRequest, Endpoint, Sampling
from training.augment.sentences import word_count
from training.augment.templates import draw_examples, load_examples, load_prompt
from training.augment.untrusted import delimited
from training.data.examples import TrainingExample, example_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from training.augment.answer_cache import Answer

QueryKind = Literal["search", "search-zero-shot", "question", "claim", "title", "keywords", "drama"]
PASSAGE_CHARACTERS = 2048
EXAMPLES_SHOWN = 3
SHOWN_AS = {"search-zero-shot": "search"}  # a kind that has no worked examples of its own


@dataclass(frozen=True, kw_only=True)
class GenerateRecipe:
    """Settings of query generation."""

    collection: Path
    """Collection of passages (BEIR folder)."""
    out: Path
    """Folder to make: examples.jsonl, what did not parse in rejected.jsonl."""
    llm: Endpoint
    """The large model."""
    kinds: tuple[QueryKind, ...] = ("search", "search-zero-shot", "question", "claim", "title", "keywords")
    """Kinds of queries, one of each for every passage; drama is the kind of the DRAMA paper."""
    sampling: Sampling = field(default_factory=Sampling)
    """How the model draws its answers."""
    prompts: Path | None = None
    """Folder whose files replace shipped prompts and examples of the same name."""
    cache: Path | None = None
    """File of the answers that were paid for; OUT.answers beside the folder by default."""
    max_words: int = 48
    """A longer query is kept aside; models that explain themselves write such."""
    engine: Engine = "local"
    """ray asks from several processes, of this machine or of a Ray cluster."""
    workers: int = 2
    """Processes of engine ray, which share the endpoint's concurrency."""

    def __post_init__(self) -> None:
        if not self.kinds or len(set(self.kinds)) != len(self.kinds) or self.max_words < 1:
            raise ValueError(
                f"kinds={list(self.kinds)} must name each kind once, and max_words={self.max_words} must be positive; "
                "try kinds=[question] and max_words=48."
            )
        if self.workers < 1:
            raise ValueError(f"workers={self.workers} must be positive; try 2.")

    @property
    def answers(self) -> Path:
        """File of the answers that were paid for."""
        return self.cache or self.out.parent / f"{self.out.name}.answers"


@dataclass(frozen=True)
class TaskQuery:
    """What DRAMA's prompt asks for; only the query is trained on."""

    task: str
    query: str
    language: str


def generate(recipe: GenerateRecipe) -> dict[str, Any]:
    """Write queries for every passage; returns the provenance record.

    Raises:
        CollectionError: the collection is malformed.
        RecipeError: a prompt is.
        EndpointError: the endpoint does not answer, or none of its answers is a query.
        MissingExtraError: Ray is not installed.
        ClusterError: its cluster is not there, or a worker keeps dying.
    """
    collection = Collection(recipe.collection)
    client = ChatClient(recipe.llm, recipe.answers, engine=recipe.engine, workers=recipe.workers)
    total = collection.count() * len(recipe.kinds)
    figures: dict[str, Any] = {"kept": Counter(), "rejected": Counter()}
    with atomic_folder(recipe.out) as partial:
        with (
            (partial / "examples.jsonl").open("w", encoding="utf-8") as examples,
            (partial / "rejected.jsonl").open("w", encoding="utf-8") as rejected,
        ):
            for (document, kind), answer in client.ask(_requests(collection, recipe), total=total):
                found, reason = read_answer(answer, kind, recipe.max_words)
                if found is None:
                    figures["rejected"][reason] += 1
                    said = answer.text if answer else None
                    _write(rejected, {"document": document.id, "kind": kind, "reason": reason, "answer": said})
                else:
                    figures["kept"][kind] += 1
                    examples.write(example_line(_example(document.id, kind, found.query)))
        if not figures["kept"]:
            raise EndpointError(
                f"None of {total:,} answers of {recipe.llm.model} is a query ({_most(figures['rejected'])}); "
                f"look at the answers in {recipe.answers}, and change the prompts with --prompts."
            )
        return write_provenance(
            partial,
            stage="training.generate",
            recipe=recipe,
            inputs={"collection": recipe.collection},
            figures=figures | {"usage": asdict(client.usage)},
            parent=recipe.collection,
        )


def read_answer(answer: Answer | None, kind: QueryKind, max_words: int) -> tuple[TaskQuery | None, str]:
    """The query in an answer, or None and the reason why there is none."""
    if answer is None:
        return None, "no answer"
    if kind == "drama":
        found = parse_task_query(answer.text)
        if found is None:
            return None, "not the three lines asked for"
    else:
        found = TaskQuery("", clean_query(answer.text), "")
    found = TaskQuery(found.task, " ".join(found.query.split()), found.language)
    if not found.query:
        return None, "empty"
    return (found, "") if word_count(found.query) <= max_words else (None, f"more than {max_words} words")


def parse_task_query(raw: str) -> TaskQuery | None:
    """DRAMA's three lines `Task:`, `Query:`, `Language:`; None where they are not there in this order, each once.

    The task is all before the first `Query:` line, the query ends at the only `Language:` line between that one and
    any second `Query:` line; what follows the language's line is ignored. An empty query is none.
    """
    parts = raw.split("\nQuery:")
    if len(parts) < 2:
        return None
    query, *languages = parts[1].split("\nLanguage:")
    if len(languages) != 1 or not query.strip():
        return None
    task = parts[0].replace("Task:", "").strip()
    return TaskQuery(task, query.strip(), languages[0].strip().partition("\n")[0].strip())


def clean_query(raw: str, *, header: bool = False) -> str:
    """The query in an answer that should be nothing else: its first line, without tabs and enclosing quotes.

    Args:
        raw: the model's text.
        header: the answer starts with the name of its role on a line of its own, as the paper's scripts made the
            model write: what stands before the first line break is dropped. A correct chat template makes none.
    """
    text = raw if header else raw.strip()
    if header and "\n" in text:
        text = text.partition("\n")[2].strip()
    if "\n" in text:
        text = text.partition("\n")[0].strip()
    text = text.replace("\t", " ")
    return text[1:-1] if text.startswith('"') and text.endswith('"') else text


def _requests(
    collection: Collection, recipe: GenerateRecipe
) -> Iterator[tuple[tuple[Document, QueryKind], ChatRequest]]:
    prompts = {kind: load_prompt(kind, recipe.prompts) for kind in recipe.kinds}
    examples = {
        kind: load_examples(SHOWN_AS.get(kind, kind), recipe.prompts) for kind in recipe.kinds if prompts[kind].example
    }
    for document in collection.documents():
        passage = delimited(document.text, PASSAGE_CHARACTERS)
        for kind in recipe.kinds:
            seed = f"{recipe.sampling.seed}:{document.id}:{kind}"
            drawn = draw_examples(examples[kind], EXAMPLES_SHOWN, seed) if kind in examples else []
            messages = prompts[kind].with_examples(drawn, SHOWN_AS.get(kind, kind), passage)
            yield (document, kind), ChatRequest(messages, recipe.sampling)


def _example(document: str, kind: QueryKind, query: str) -> TrainingExample:
    return TrainingExample(
        query_id=f"{document}:{kind}", query=query, positive_ids=[document], task=kind, source="generate"
    )


def _write(file: IO[str], record: dict[str, Any]) -> None:
    file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _most(reasons: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(3))
