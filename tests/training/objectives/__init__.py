"""Objectives against plain expressions, stock losses and closed forms."""
