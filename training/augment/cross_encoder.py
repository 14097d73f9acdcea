"""Scores of query and passage by any cross-encoder of sentence-transformers, kept on disk where a file is named.

Scores that are kept are known by the model's files, the length it reads and both texts, so that of lists that have
grown or changed only the new pairs are scored. Those of one call are kept together or not at all: batches, and with
them the last bits of a score, are the same in a run that was killed.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drama_models.errors import CollectionError, ModelFolderError
from drama_models.folders import sha256_of_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentence_transformers import CrossEncoder

    Pair = tuple[str, str]  # query, passage

KEY_BYTES = 16
NO_PICKLE = {"use_safetensors": True}  # stock loading takes pytorch_model.bin where there is nothing else


class CrossEncoderReranker:
    """Scores pairs with any sentence-transformers CrossEncoder, raw: before a sigmoid, which would flatten the best.

    Args:
        model: folder or hub name.
        max_length: tokens of query and passage together; the model's own limit, where that is lower.
        batch_size: pairs scored at once.
        device: such as cuda; a GPU if there is one by default.
        cache: file of the scores, made if absent; None keeps none.

    Raises:
        ModelFolderError: it cannot be loaded, gives more than one score, or has no weights for it, as an encoder.
        CollectionError: the cache is something else.
    """

    def __init__(
        self, model: str, *, max_length: int, batch_size: int, device: str | None = None, cache: Path | None = None
    ) -> None:
        self._model = load_cross_encoder(model, device)
        self._model.max_seq_length = min(max_length, self._model.max_seq_length or max_length)
        self._batch_size = batch_size
        self._kept = KeptScores(cache, f"{cross_encoder_identity(model)}:{max_length}") if cache else None

    def scores(self, queries: Sequence[str], passages: Sequence[Sequence[str]]) -> list[list[float]]:
        """Score of each passage for its query, in the shape of `passages`."""
        pairs = [(query, text) for query, texts in zip(queries, passages, strict=True) for text in texts]
        known = self._kept.of(pairs) if self._kept is not None else {}
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in known]
        new = dict(zip(missing, self._predicted(missing), strict=True))
        if self._kept is not None:
            self._kept.keep(new)
        known |= new
        remaining = iter([known[pair] for pair in pairs])
        return [list(islice(remaining, len(texts))) for texts in passages]

    def close(self) -> None:
        """Close the file of scores."""
        if self._kept is not None:
            self._kept.close()

    def _predicted(self, pairs: list[Pair]) -> list[float]:
        from torch.nn import Identity

        if not pairs:
            return []
        scores = self._model.predict(
            pairs, batch_size=self._batch_size, show_progress_bar=False, activation_fn=Identity()
        )
        return list(np.asarray(scores, dtype=np.float64).tolist())


def load_cross_encoder(model: str, device: str | None = None) -> CrossEncoder:
    """A sentence-transformers CrossEncoder that gives one score.

    Raises:
        ModelFolderError: it cannot be loaded, gives more than one score, or has no weights for it, as an encoder.
    """
    from sentence_transformers import CrossEncoder

    try:
        loaded = CrossEncoder(model, device=device, model_kwargs=NO_PICKLE)
        untrained = _untrained_head(loaded[0])
    except (OSError, ValueError, KeyError) as error:
        words = " ".join(str(error).split())[:200]
        raise ModelFolderError(
            f"{model} is no cross-encoder that can be loaded ({words}); "
            "pass the folder of one whose weights are safetensors."
        ) from None
    if loaded.num_labels != 1:
        raise ModelFolderError(f"{model} gives {loaded.num_labels} scores; pass a cross-encoder with one.")
    if untrained:
        raise ModelFolderError(
            f"{model} is no cross-encoder: it has no weights for a score ({', '.join(untrained)}), which would be "
            "drawn at random; pass a model that was trained to score pairs."
        )
    return loaded


def _untrained_head(module: Any) -> list[str]:
    """Weights between a classifier's encoder and its score that its files lack; stock classes draw them at random."""
    from transformers import AutoModelForSequenceClassification

    if module.transformer_task != "sequence-classification":  # the score is a token's, or a module's of its own
        return []
    model, loaded = AutoModelForSequenceClassification.from_pretrained(
        module.model.name_or_path, output_loading_info=True, device_map="meta", **NO_PICKLE
    )
    return sorted(name for name in loaded["missing_keys"] if not name.startswith(f"{model.base_model_prefix}."))


class KeptScores:
    """Scores of pairs by one model, in a SQLite file that survives a kill at any moment.

    Raises:
        CollectionError: the file is something else, or cannot be read or written.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.path, self.model = path, model
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(path, isolation_level=None)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS scores (pair BLOB PRIMARY KEY, score REAL) WITHOUT ROWID"
            )
        except sqlite3.Error as error:
            raise self._error(error) from None

    def of(self, pairs: Sequence[Pair]) -> dict[Pair, float]:
        """Those of the pairs that have a score."""
        found = {}
        try:
            for pair in pairs:
                row = self._database.execute("SELECT score FROM scores WHERE pair = ?", (self._key(pair),)).fetchone()
                if row is not None:
                    found[pair] = float(row[0])
        except sqlite3.Error as error:
            raise self._error(error) from None
        return found

    def keep(self, scores: dict[Pair, float]) -> None:
        """Keep scores, all of them or none."""
        rows = [(self._key(pair), score) for pair, score in scores.items()]
        try:
            with self._database:  # all of them, or after an error as it was
                self._database.execute("BEGIN")
                self._database.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise self._error(error) from None

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _key(self, pair: Pair) -> bytes:
        said = json.dumps([self.model, *pair]).encode()
        return hashlib.sha256(said).digest()[:KEY_BYTES]

    def _error(self, error: sqlite3.Error) -> CollectionError:
        return CollectionError(f"{self.path} cannot hold scores ({error}); remove it, or make room for it.")


def cross_encoder_identity(cross_encoder: str) -> str:
    """What tells a cross-encoder from every other one: a hash of its folder's files, or its name on the hub."""
    return sha256_of_folder(cross_encoder) if Path(cross_encoder).is_dir() else cross_encoder
