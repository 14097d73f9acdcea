"""From a backbone folder to a retriever folder: training examples, objectives, supervision, the trainer (DRAMA)."""
