"""From a retriever folder to a release folder that every client loads as it is, and the proof that they agree."""
