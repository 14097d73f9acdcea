"""The layer-wise reranker against stock Gemma 2, plain loops and its own folder."""
