"""The layer-wise reranker: scores a pair of texts at any depth, with a passage compressed on the way."""
