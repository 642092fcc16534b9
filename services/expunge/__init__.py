"""Expunge: erase people and sources from photos, indexes and models, with evidence that outsiders check."""

__version__ = "0.1.0"
