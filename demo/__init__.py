"""`make demo`: the whole chain in minutes, on the documentation of one's own Python environment."""
