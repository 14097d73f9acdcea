"""Which sequence comes next: domains drawn by proportion, sequences of a domain in shuffled order.

Each sequence independently draws its domain, then takes the next unused sequence of that domain's shuffled list
(Xia et al., 2023, section 2.2). A domain that runs out is shuffled anew and started again. The whole order follows
from the seed and from when the proportions changed to what, so a resumed run sees what an uninterrupted one would
have seen.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from drama_models.errors import CorpusError
from pruning.packing import packed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pruning.corpus import Corpus


class MixedSequences(Dataset[dict[str, torch.Tensor]]):
    """A fixed number of training sequences, drawn from a corpus.

    Args:
        corpus: tokenised text.
        proportions: share of each domain, any positive scale; empty means the natural mixture (by tokens).
        length: tokens in a sequence.
        count: sequences to draw.
        seed: of the draws and shuffles.
        separate_documents: as in `pruning.packing.packed`.

    Raises:
        CorpusError: a proportion for an unknown domain, or none above zero.
    """

    def __init__(
        self,
        corpus: Corpus,
        proportions: Mapping[str, float],
        length: int,
        count: int,
        seed: int,
        *,
        separate_documents: bool = False,
    ) -> None:
        self.corpus = corpus
        self.start_token = corpus.bos_token_id if separate_documents else None
        self.proportions = normalised_proportions(corpus, proportions)
        self.seed = seed
        generator = np.random.default_rng(seed)
        self.sources = [corpus.sequences(domain, "train", length) for domain in self.proportions]
        self.domain_of = self._draw(count, generator)
        self.row_of = np.empty(count, dtype=np.int64)
        self.orders: list[NDArray[np.int64]] = []  # rows of each domain in the order in which they are used
        for number, source in enumerate(self.sources):
            drawn = np.flatnonzero(self.domain_of == number)
            self.orders.append(_shuffled_rounds(len(source), len(drawn), generator))
            self.row_of[drawn] = self.orders[number][: len(drawn)]

    def redraw(self, start: int, proportions: Mapping[str, float]) -> None:
        """Draw all sequences from `start` on anew, by other proportions.

        What was used before stays used: each domain goes on where sequence `start - 1` left it.

        Args:
            start: first sequence to draw again.
            proportions: share of each domain, in the corpus' order, sum 1.
        """
        self.proportions = dict(proportions)
        generator = np.random.default_rng([self.seed, start])
        self.domain_of[start:] = self._draw(len(self) - start, generator)
        for number, source in enumerate(self.sources):
            of_domain = np.flatnonzero(self.domain_of == number)
            missing = len(of_domain) - len(self.orders[number])
            if missing > 0:
                more = _shuffled_rounds(len(source), missing, generator)
                self.orders[number] = np.concatenate([self.orders[number], more])
            self.row_of[of_domain] = self.orders[number][: len(of_domain)]

    @property
    def epochs(self) -> dict[str, float]:
        """How often each domain's text is read."""
        counts = np.bincount(self.domain_of, minlength=len(self.sources))
        return {
            domain: int(count) / len(source)
            for domain, count, source in zip(self.proportions, counts, self.sources, strict=True)
        }

    def _draw(self, count: int, generator: np.random.Generator) -> NDArray[np.int16]:
        shares = list(self.proportions.values())
        return generator.choice(len(shares), size=count, p=shares).astype(np.int16)

    def __len__(self) -> int:
        return len(self.row_of)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.sources[self.domain_of[index]][self.row_of[index]]
        self.corpus.check_tokens(row)
        return packed(row, self.start_token)


class HeldOutSequences(Dataset[dict[str, torch.Tensor]]):
    """The first sequences of a domain's held-out text, in order; at most `limit` of them."""

    def __init__(
        self, corpus: Corpus, domain: str, length: int, limit: int, *, separate_documents: bool = False
    ) -> None:
        self.corpus = corpus
        self.start_token = corpus.bos_token_id if separate_documents else None
        self.rows = corpus.sequences(domain, "held_out", length)[:limit]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.corpus.check_tokens(self.rows[index])
        return packed(self.rows[index], self.start_token)


def normalised_proportions(corpus: Corpus, proportions: Mapping[str, float]) -> dict[str, float]:
    """Shares that sum to 1, in the corpus' order of domains; the natural mixture where none are given."""
    unknown = sorted(set(proportions) - set(corpus.domains))
    if unknown:
        raise CorpusError(f"No domain {unknown[0]!r} in {corpus.folder}; choose from: {', '.join(corpus.domains)}.")
    if not proportions:
        proportions = {domain: float(splits["train"].tokens) for domain, splits in corpus.domains.items()}
    total = sum(proportions.values())
    if min(proportions.values()) < 0 or not 0 < total < math.inf:
        raise CorpusError(f"Proportions must be positive numbers, found {dict(proportions)}.")
    return {domain: proportions.get(domain, 0.0) / total for domain in corpus.domains}


def _shuffled_rounds(size: int, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """At least `count` row numbers below `size`: one whole permutation after the other."""
    rounds = -(-count // size)
    return np.concatenate([generator.permutation(size) for _ in range(rounds)] or [np.empty(0, np.int64)])
