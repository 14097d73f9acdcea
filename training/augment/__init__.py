"""Training examples from documents alone: what large models, rankers and simple rules can make of a corpus."""
