"""Tests of `training.specialise`."""
