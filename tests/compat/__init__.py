"""Older clients, in an environment of their own: `make compat`."""
