"""Tests of `drama_models`."""
