"""Tests, in the folders of the rooms they test; `replay` runs the reference implementations' numbers against our code."""
