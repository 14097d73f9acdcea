"""`make demo`: a retriever for the documentation of one's own Python environment, made by the whole chain in minutes."""
