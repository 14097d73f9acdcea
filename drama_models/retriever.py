"""An encoder and an index that belong together: text in, documents out; BM25 beside them where it is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drama_models.arguments import checked_hits
from drama_models.errors import IndexFolderError
from drama_models.fusion import CONSTANT, ranks, reciprocal_rank_fusion
from drama_models.index import Index

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from drama_models.bm25 import BM25
    from drama_models.collection import Document
    from drama_models.encoder import Encoder
    from drama_models.evaluation import Run

FUSED_HITS = 100  # of each ranking, at least: what neither of them has among these is not found


class Retriever:
    """Searches an index with the model it was built with, alone or fused with BM25.

    Args:
        encoder: for the queries.
        index: of the documents.
        bm25: over the same documents; its ranking is fused with the dense one by reciprocal rank.
        fusion_constant: of the fusion, see `reciprocal_rank_fusion`.

    Raises:
        IndexFolderError: the index was built with another model or size, or lacks a document of `bm25`.
    """

    def __init__(
        self, encoder: Encoder, index: Index, *, bm25: BM25 | None = None, fusion_constant: float = CONSTANT
    ) -> None:
        index.check_encoder(encoder)
        foreign = set() if bm25 is None else set(bm25.ids).difference(index.ids)
        if foreign:
            raise IndexFolderError(
                f"bm25 holds {len(foreign)} documents that the index does not, such as {min(foreign)!r}; "
                "build both over the same collection."
            )
        self.encoder, self.index, self.bm25, self.fusion_constant = encoder, index, bm25, fusion_constant

    @classmethod
    def of_documents(
        cls,
        encoder: Encoder,
        documents: Iterable[Document],
        *,
        bm25: BM25 | None = None,
        fusion_constant: float = CONSTANT,
        show_progress: bool = False,
    ) -> Retriever:
        """A retriever that encodes the documents of a collection now, holds them in memory and searches exactly.

        Args:
            encoder: for queries and documents; its `dim` is the size of the vectors.
            documents: such as `Collection.documents`.
            bm25: as of the class.
            fusion_constant: as of the class.
            show_progress: a progress bar on the terminal.

        Raises:
            IndexFolderError: `bm25` has a document that is not among these.
            ValueError: two documents have one id, or one is no text.
        """
        given = list(documents)
        contents = [encoder.content_of(document) for document in given]
        index = Index(encoder.dim)
        index.add([document.id for document in given], encoder.encode_documents(contents, show_progress=show_progress))
        return cls(encoder, index, bm25=bm25, fusion_constant=fusion_constant)

    def search(self, query: str, k: int = 10, *, task: str | None = None) -> list[tuple[str, float]]:
        """Best documents for one query, best first: (document id, score).

        The score is the inner product, which is the cosine where the model normalises; with BM25, the fused one.

        Args:
            query: one text.
            k: documents to return.
            task: names a prompt of the encoder, see `Encoder.encode_queries`.

        Raises:
            ValueError: `k` is no whole number of at least 1.
            PromptError: the encoder has no such task.
        """
        return self._hits([query], k, task, show_progress=False)[0]

    def run(
        self, queries: Mapping[str, str], k: int = 100, *, task: str | None = None, show_progress: bool = False
    ) -> Run:
        """Best documents for many queries, as a run: query id to document id to score."""
        hits = self._hits(list(queries.values()), k, task, show_progress=show_progress)
        return {query: dict(found) for query, found in zip(queries, hits, strict=True)}

    def _hits(
        self, queries: list[str], k: int, task: str | None, *, show_progress: bool
    ) -> list[list[tuple[str, float]]]:
        k = checked_hits(k)
        vectors = self.encoder.encode_queries(queries, task=task, show_progress=show_progress)
        if self.bm25 is None:
            return self.index.search(vectors, k)
        depth = max(k, FUSED_HITS)
        rankings = zip(self.index.search(vectors, depth), self.bm25.search(queries, depth), strict=True)
        return [
            reciprocal_rank_fusion((ranks(dense), ranks(lexical)), constant=self.fusion_constant)[:k]
            for dense, lexical in rankings
        ]
