"""All stages from a source model to a backbone, one folder each below `out`; a stage that is done is not done again.

expanded/   the source with one KV head for each query head (where the recipe asks for it)
masks/      learned masks with the full-size weights
sliced/     cut to the target shape
backbone/   after continued pretraining
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drama_models.errors import TrainingError
from drama_models.provenance import plain_settings, read_provenance
from pruning.checkpoints import FREE_SETTINGS
from pruning.distributed import world_size
from pruning.kv_heads import expand_folder
from pruning.learn_masks import Gates, LearnMasksRecipe, LearnMasksSettings, learn_masks, load_masks
from pruning.model_folder import read_config
from pruning.recover import RecoverRecipe, RecoverSettings, recover
from pruning.shape import BackboneShape
from pruning.slicing import slice_folder

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, kw_only=True)
class RunRecipe:
    """Settings of a whole run."""

    model: Path
    """Source folder: a Llama-shaped causal language model with its tokenizer."""
    corpus: Path
    """Tokenised corpus, made by `python -m pruning tokenise`."""
    out: Path
    """Folder for all stages."""
    recover_corpus: Path | None = None
    """Another tokenised corpus for recovery, as Sheared-LLaMA has it; the same one by default."""
    origin: str = "a recipe"
    """Where the target comes from, in words."""
    expand_kv_heads: bool = False
    """Whether grouped KV heads are first expanded, exactly, to one for each query head."""
    learn_masks: LearnMasksSettings = field(default_factory=LearnMasksSettings)
    """Settings of the mask stage, the target among them."""
    recover: RecoverSettings = field(default_factory=RecoverSettings)
    """Settings of continued pretraining."""
    gates: Gates = "soft"
    """Value of a kept gate in slicing: soft as learned, or hard, 1, which is better after a short mask stage."""
    force: bool = False
    """Slice even if the masks have not converged."""

    @property
    def backbone(self) -> Path:
        """The folder that the whole run is for."""
        return self.out / "backbone"


def run(recipe: RunRecipe) -> BackboneShape:
    """Run all stages that are not done.

    Returns:
        The shape of the backbone.

    Raises:
        ShapeError: a target the source cannot be cut to.
        CorpusError: corpus and model do not fit.
        TrainingError: a stage had to stop, was made with other settings, or several processes were started.
    """
    if world_size() > 1:
        raise TrainingError(
            "`run` drives one process; to train on several, start learn-masks and recover with torchrun, one by one."
        )
    source = BackboneShape.of(read_config(recipe.model))
    model = recipe.model
    if recipe.expand_kv_heads and source.num_kv_heads != source.num_heads:
        model = recipe.out / "expanded"
        _stage(model, {"num_kv_heads": source.num_heads}, lambda: expand_folder(recipe.model, model, source.num_heads))
    masks, sliced = recipe.out / "masks", recipe.out / "sliced"
    learn = LearnMasksRecipe(model=model, corpus=recipe.corpus, out=masks, **vars(recipe.learn_masks))
    _stage(masks, learn, lambda: learn_masks(learn))
    cut: dict[str, Any] = {"force": recipe.force, "gates": recipe.gates}
    _stage(sliced, cut, lambda: slice_folder(masks, load_masks(masks, **cut), sliced, cut))
    again = RecoverRecipe(
        model=sliced, corpus=recipe.recover_corpus or recipe.corpus, out=recipe.backbone, **vars(recipe.recover)
    )
    _stage(recipe.backbone, again, lambda: recover(again))
    return BackboneShape.of(read_config(recipe.backbone))


def _stage(out: Path, settings: object, make: Callable[[], object]) -> None:
    record = read_provenance(out)
    if record is None:
        print(f"{out.name}: starts", file=sys.stderr)  # noqa: T201
        make()
        return
    wanted = plain_settings(settings)
    made = record["recipe"]
    changed = [name for name in wanted if name not in FREE_SETTINGS and made.get(name, wanted[name]) != wanted[name]]
    if changed:
        was = ", ".join(f"{name}={made[name]}" for name in changed)
        raise TrainingError(f"{out} was made with other settings ({was}); remove it, or choose another out.")
    print(f"{out.name}: done before", file=sys.stderr)  # noqa: T201
