"""An encoder and an index that belong together: text in, documents out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from drama_models.encoder import Encoder
    from drama_models.evaluation import Run
    from drama_models.index import Index


class Retriever:
    """Searches an index with the model it was built with.

    Args:
        encoder: for the queries.
        index: of the documents.

    Raises:
        IndexFolderError: the index was built with another model or size.
    """

    def __init__(self, encoder: Encoder, index: Index) -> None:
        index.check_encoder(encoder)
        self.encoder, self.index = encoder, index

    def search(self, query: str, k: int = 10) -> list[tuple[str, float]]:
        """Best documents for one query: (document id, cosine), best first."""
        return self.index.search(self.encoder.encode_queries(query), k)[0]

    def run(self, queries: Mapping[str, str], k: int = 100, *, show_progress: bool = False) -> Run:
        """Best documents for many queries, as a run: query id to document id to score."""
        vectors = self.encoder.encode_queries(list(queries.values()), show_progress=show_progress)
        return {query: dict(hits) for query, hits in zip(queries, self.index.search(vectors, k), strict=True)}
