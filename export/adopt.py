"""`python -m export adopt`: a published drama folder as a release that every client computes the same vectors with.

The published folders say in remote code alone that attention is bidirectional: loaded without it, or with a version of
transformers that no longer calls what it overrides, they encode causally without a word. The first revisions' tokenizer
leaves EOS out besides. The weights stay as they are; configuration, tokenizer, graph and card are written anew, as for
a retriever of our own. The folder's code is never run and, from the hub, never fetched.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drama_models.errors import ModelFolderError, RecipeError
from drama_models.model_folder import find_model_folder, read_json, stated_license
from drama_models.profile import is_drama
from export.golden_scores import golden_difference
from export.release import FolderRecipe, Origin, write_release

if TYPE_CHECKING:
    from export.verify import Parity


@dataclass(frozen=True, kw_only=True)
class AdoptRecipe(FolderRecipe):
    """Settings of an adoption."""

    model: str
    """Published drama folder: a path, or its name on the hub such as facebook/drama-base."""
    license: str = ""
    """The published model's licence identifier, which the release carries on; what its card states by default."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    base_model: str = ""
    """Name of the published model on the card; `model` itself by default."""
    golden: bool = False
    """Also check the scores published for facebook/drama-base; only its own weights give them."""


def adopt(recipe: AdoptRecipe) -> list[Parity]:
    """Write the release folder, after every installed client has loaded it and agreed with the others.

    Returns:
        How far each client is from our own encoder.

    Raises:
        ModelFolderError: no drama folder, no safetensors, a client that disagrees, or golden scores that are missed.
        RecipeError: the folder's own card names another licence, or none is given and it names none.
        DimensionError: an announced size that the model does not have.
    """
    folder = find_model_folder(recipe.model, recipe.revision)
    config = read_json(folder / "config.json")
    if not is_drama(config):
        raise ModelFolderError(
            f"{recipe.model} is no published drama folder, its class is {config.get('architectures')}; "
            "a retriever trained here becomes a release by `python -m export release`."
        )
    stated = stated_license(folder)
    if not recipe.license:
        if stated is None:
            raise RecipeError(f"The card of {recipe.model} states no licence; pass --license, such as cc-by-nc-4.0.")
        try:
            recipe = replace(recipe, license=stated)
        except ValueError as error:  # a licence that asks for a name
            raise RecipeError(str(error)) from None
    if stated not in (None, recipe.license):
        raise RecipeError(
            f"license={recipe.license!r}, but the card of {recipe.model} says {stated!r}, which its copies carry on; "
            f"pass --license {stated}."
        )
    return write_release(folder, recipe, origin_of(recipe), _golden_figures if recipe.golden else None)


def origin_of(recipe: AdoptRecipe) -> Origin:
    """What provenance and card say of the source: its name on the hub or its folder's, never the path of a machine."""
    folder = Path(recipe.model)
    name = recipe.base_model or (folder.resolve().name if folder.is_dir() else recipe.model)
    return Origin(stage="export.adopt", role="model", settings=asdict(recipe) | {"model": name}, base_model=name)


def _golden_figures(folder: Path) -> dict[str, Any]:
    return {"largest_difference_from_published_scores": golden_difference(folder)}
