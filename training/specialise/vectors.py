"""Vectors of passages that are encoded once: when documents are added or changed, only what is new is encoded.

FOLDER/0000.jsonl         id and hash of the content of each passage of this part; written first
FOLDER/0000/              their vectors, as `drama_models.bulk` writes shards: resumable after a kill
FOLDER/0001.jsonl …       what a later collection had beside these

Passages that a collection has no more, or with another content, stay in their part and are passed over.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING

from drama_models.bulk import MANIFEST, encode_shards, read_shards
from drama_models.collection import Collection
from drama_models.folders import atomic_file
from drama_models.index import ModelIdentity

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from drama_models.encoder import Encoder

FINGERPRINT_CHARACTERS = 16
HASH_CHARACTERS = 32


class PassageVectors:
    """The vectors of a collection's passages by one encoder.

    Args:
        encoder: at its full size.
        root: folder of the vectors of all models.
        collection: folder of the passages.
    """

    def __init__(self, encoder: Encoder, root: Path, collection: Path) -> None:
        self.encoder, self.collection = encoder, Collection(collection)
        self.folder = root / encoder.fingerprint()[:FINGERPRINT_CHARACTERS]
        self._wanted = {each.id: _content_hash(encoder.content_of(each)) for each in self.collection.documents()}

    def encode(self) -> int:
        """Encode what has no vectors yet; returns the number of those passages. A killed call goes on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        known: set[tuple[str, str]] = set()
        lists = sorted(self.folder.glob("*.jsonl"))
        for path in lists:
            part = _read_part(path)
            if (path.with_suffix("") / MANIFEST).is_file():
                known |= part.items()
            elif part.items() <= self._wanted.items():  # killed: the same passages are still asked for
                self._encode_part(path, part)
                known |= part.items()
            else:
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                path.unlink()
        new = {key: content for key, content in self._wanted.items() if (key, content) not in known}
        if new:
            path = self.folder / f"{len(lists):04}.jsonl"
            with atomic_file(path) as partial:
                partial.write_text("".join(f"{json.dumps(pair)}\n" for pair in new.items()), encoding="utf-8")
            self._encode_part(path, new)
        return len(new)

    def read(self) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Ids and vectors of the collection's passages, (M, D), a shard at a time."""
        given: set[str] = set()
        for path in sorted(self.folder.glob("*.jsonl")):
            part = _read_part(path)
            for ids, rows in read_shards(path.with_suffix("")):
                kept = [row for row, key in enumerate(ids) if self._wanted.get(key) == part[key] and key not in given]
                given |= {ids[row] for row in kept}
                if kept:
                    yield [ids[row] for row in kept], rows if len(kept) == len(ids) else rows[kept]

    def _encode_part(self, path: Path, part: dict[str, str]) -> None:
        documents = (
            (each.id, self.encoder.content_of(each)) for each in self.collection.documents() if each.id in part
        )
        identity = ModelIdentity(name=self.folder.name, fingerprint=self.encoder.fingerprint())
        encode_shards(
            self.encoder, documents, path.with_suffix(""), model=identity, total=len(part), show_progress=True
        )


def _content_hash(content: str) -> str:
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:HASH_CHARACTERS]


def _read_part(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8") as file:
        return dict(json.loads(line) for line in file)
