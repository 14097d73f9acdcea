"""What a training run reads: texts by id, examples, ranked lists, mixtures, and the batches planned from them."""
