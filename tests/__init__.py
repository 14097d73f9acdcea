"""Tests, in the folders of the rooms they test; `replay` compares with the reference implementations."""
