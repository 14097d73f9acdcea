"""What a specialisation is told: documents, model, where queries and labels come from, and how long to train.

Losses, filters and kinds of queries follow Tamber et al., 2025 (https://arxiv.org/abs/2502.19712). The size of a batch,
the length of the training, its learning rate and warm-up are for collections of hundreds to a hundred thousand passages
and one machine; a large model is asked with the sampling of `training generate`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from drama_models.hardware import TrainingPrecision
from training.augment.find_queries import FoundKind
from training.augment.generate import QueryKind
from training.augment.llm import Endpoint

FEWEST_DOCUMENTS = 10
FEWEST_TOKENS = 10  # of a passage: `chunk` leaves shorter ones out than 8, and two are its ends
FREE_SETTINGS = (
    "out",
    "documents",
    "qrels",
    "split",
    "workers",
    "device",
    "llm",
    "llm_concurrency",
    "llm_key_variable",
    "llm_timeout_s",
    "llm_usd_per_million",
)
"""May change between a run and another one in the same folder; what is made of them is told by its content."""
GENERATED: tuple[QueryKind, ...] = ("search", "search-zero-shot", "question", "claim", "title", "keywords")
FOUND: tuple[FoundKind, ...] = ("title", "heading", "question")


@dataclass(frozen=True, kw_only=True)
class SpecialiseRecipe:
    """Settings of a specialisation."""

    documents: Path
    """Folder or file of txt, md, html or jsonl; or a collection (BEIR folder)."""
    model: Path
    """Folder of the retriever to specialise."""
    out: Path
    """Folder of the run: the new retriever, the report, and everything in between."""
    llm: str | None = None
    """Base address of an OpenAI-compatible endpoint, such as http://localhost:8000/v1; it then writes queries too."""
    llm_model: str = ""
    """Name of the model there."""
    llm_concurrency: int = 16
    """Requests under way at once."""
    llm_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key."""
    llm_timeout_s: float = 120.0
    """Seconds for one answer."""
    llm_usd_per_million: tuple[float, float] = (0.0, 0.0)
    """Prices of a million prompt tokens and of a million answer tokens, for the cost that is shown."""
    prompts: Path | None = None
    """Folder whose files replace shipped prompts of the same name."""
    generated: tuple[QueryKind, ...] = GENERATED
    """Kinds of queries that the large model writes, one of each for every passage."""
    found: tuple[FoundKind, ...] = FOUND
    """Kinds of queries that are taken from the documents; [] for none."""
    crops: int | None = None
    """Sentences of each passage that become queries; by default 1 without a large model and 0 with one."""
    teacher: tuple[str, ...] | str = ()
    """Folders of encoders that label the lists, beside BM25; one, or a list."""
    reranker: str | None = None
    """Folder of a cross-encoder that labels the lists, instead of the large model or the teachers."""
    qrels: Path | None = None
    """Your own queries with judgements: a BEIR folder, or JSON lines of `query` and `documents`. Never trained on."""
    split: str = "test"
    """Which judgements of that folder."""
    language: str = "en"
    """Two-letter code of the documents."""
    max_tokens: int = 256
    """Tokens of a passage at most; the model's own limit, where that is lower."""
    max_passages: int = 100_000
    """Passages that queries are made of, drawn from all; every passage is searched."""
    held_out: float = 0.1
    """Share of the documents whose queries are for the figures before and after."""
    dev: float = 0.1
    """Share of the documents whose queries choose the checkpoint."""
    test_queries: int = 1000
    """Held-out queries at most."""
    dev_queries: int = 300
    """Dev queries at most."""
    candidates: int = 20
    """Passages of each list that is labelled and trained on."""
    epochs: float = 3.0
    """Passes over the training queries at most."""
    batch_size: int = 64
    """Queries of a step; fewer where there are not as many."""
    learning_rate: float = 1e-4
    """Of AdamW."""
    patience: int = 5
    """Training stops after so many evaluations in a row (ten in all) without a better nDCG@10 on the dev queries."""
    precision: TrainingPrecision = "auto"
    """fp32, bf16 (autocast), or auto: bf16 where the processor has it."""
    seed: int = 42
    """Of every draw."""
    device: str | None = None
    """For training and the cross-encoder, such as cuda; a GPU if there is one by default."""
    workers: int = 0
    """Processes for BM25; 0 takes one for each core."""

    def __post_init__(self) -> None:
        if (self.llm is None) == bool(self.llm_model):
            raise ValueError(
                "llm and llm_model go together: give the endpoint's address and the model's name, or none."
            )
        if not (0 < self.held_out < 1 and 0 < self.dev < 1 and self.held_out + self.dev < 1):
            raise ValueError(
                f"held_out={self.held_out} and dev={self.dev} must be shares that leave documents to train on; try 0.1."
            )
        if min(self.test_queries, self.dev_queries, self.max_passages, self.batch_size, self.patience) < 1:
            raise ValueError(
                f"test_queries={self.test_queries}, dev_queries={self.dev_queries}, max_passages={self.max_passages}, "
                f"batch_size={self.batch_size} and patience={self.patience} must be at least 1."
            )
        if self.candidates < 2 or min(self.crops or 0, self.workers, self.seed) < 0:
            raise ValueError(
                f"candidates={self.candidates} must be at least 2, and crops={self.crops}, workers={self.workers} and "
                f"seed={self.seed} not negative."
            )
        if not (0 < self.epochs < math.inf and 0 < self.learning_rate < math.inf):
            raise ValueError(
                f"epochs={self.epochs} and learning_rate={self.learning_rate} must be positive; try 3 and 1e-4."
            )
        if self.max_tokens < FEWEST_TOKENS:
            raise ValueError(f"max_tokens={self.max_tokens} must be at least {FEWEST_TOKENS}; 256 is usual.")
        if not self.crops_per_passage and not self.found and (self.llm is None or not self.generated):
            raise ValueError("No queries are asked for; set crops=1, or give llm with llm_model.")
        if self.endpoint is not None and len(set(self.generated)) < len(self.generated):
            raise ValueError(f"generated={list(self.generated)} names a kind twice; name each once.")

    @property
    def endpoint(self) -> Endpoint | None:
        """The large model, if there is one; ValueError for an address that is none."""
        if self.llm is None:
            return None
        asked, answered = self.llm_usd_per_million
        return Endpoint(
            url=self.llm,
            model=self.llm_model,
            concurrency=self.llm_concurrency,
            key_variable=self.llm_key_variable,
            timeout_s=self.llm_timeout_s,
            usd_per_million_prompt_tokens=asked,
            usd_per_million_answer_tokens=answered,
        )

    @property
    def crops_per_passage(self) -> int:
        """Sentences of each passage that become queries."""
        return int(self.llm is None) if self.crops is None else self.crops

    @property
    def teachers(self) -> tuple[str, ...]:
        """Folders of the encoders that label."""
        return tuple(filter(None, (self.teacher,) if isinstance(self.teacher, str) else self.teacher))
