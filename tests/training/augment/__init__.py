"""Tests of `training.augment`."""
