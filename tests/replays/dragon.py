"""DRAGON."""
KINDS = {}
