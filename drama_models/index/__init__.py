"""The index: vectors of documents with their ids and the identity of their model, searched, changed, saved, loaded."""

from drama_models.index.identity import ModelIdentity
from drama_models.index.index import Index

__all__ = ["Index", "ModelIdentity"]
