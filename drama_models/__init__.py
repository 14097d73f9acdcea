"""Dense retrievers on pruned Llama backbones: load, encode, index, search, evaluate.

The public names below are imported when they are first used, so `import drama_models` loads neither torch nor
transformers (PEP 562); only `DramaModel` needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from drama_models.errors import MissingExtraError

if TYPE_CHECKING:
    from drama_models.bm25 import BM25
    from drama_models.collection import Collection
    from drama_models.encoder import Encoder
    from drama_models.evaluation import evaluate
    from drama_models.index import Index
    from drama_models.modeling_drama import DramaModel
    from drama_models.profile import Profile
    from drama_models.retriever import Retriever

__all__ = ["BM25", "Collection", "DramaModel", "Encoder", "Index", "Profile", "Retriever", "evaluate"]

_HOMES = {
    "BM25": "bm25",
    "Collection": "collection",
    "DramaModel": "modeling_drama",
    "Encoder": "encoder",
    "Index": "index",
    "Profile": "profile",
    "Retriever": "retriever",
    "evaluate": "evaluation",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'drama_models' has no attribute {name!r}; choose one of: {', '.join(__all__)}")
    try:
        value = getattr(import_module(f"drama_models.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers"):
            raise
        raise MissingExtraError(name, "torch") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
