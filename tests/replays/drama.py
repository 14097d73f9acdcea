"""DRAMA."""
KINDS = {}
