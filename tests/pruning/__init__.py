"""Tests of `pruning`."""
