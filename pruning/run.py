"""All stages from a source model to a backbone, one folder each below `out`; a stage that is done is not done again.

expanded/   the source with one KV head for each query head (where the recipe asks for it)
shallow/    without the layers that are missed least (where the recipe asks for it)
masks/      learned masks with the full-size weights
sliced/     cut to the target shape
backbone/   after continued pretraining
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drama_models.checkpoints import changed_settings
from drama_models.errors import ModelFolderError, TrainingError
from drama_models.folders import sha256_of_folder
from drama_models.provenance import FILE_NAME, plain_settings, read_provenance
from pruning.corpus import Corpus
from pruning.distributed import world_size
from pruning.drop_layers import DropLayersRecipe, DropLayersSettings, drop_layers
from pruning.kv_heads import expand_folder
from pruning.language_modelling import StageFolders
from pruning.learn_masks import Gates, LearnMasksRecipe, LearnMasksSettings, learn_masks, load_masks
from pruning.model_folder import read_config
from pruning.recover import RecoverRecipe, RecoverSettings, recover
from pruning.shape import BackboneShape
from pruning.slicing import slice_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, kw_only=True)
class RunRecipe(StageFolders):
    """Settings of a whole run, with its folders; `out` is for all stages."""

    recover_corpus: Path | None = None
    """Another tokenised corpus for recovery, as Sheared-LLaMA has it; the same one by default."""
    origin: str = "a recipe"
    """Where the target comes from, in words."""
    expand_kv_heads: bool = False
    """Whether grouped KV heads are first expanded, exactly, to one for each query head."""
    drop_layers: DropLayersSettings | None = None
    """How layers are measured, to be dropped before masks are learned; by default their gates are learned too."""
    learn_masks: LearnMasksSettings = field(default_factory=LearnMasksSettings)
    """Settings of the mask stage, the target among them."""
    recover: RecoverSettings = field(default_factory=RecoverSettings)
    """Settings of continued pretraining."""
    gates: Gates = "soft"
    """Value of a kept gate in slicing: soft as learned, or hard, 1: few steps leave soft ones below it."""
    force: bool = False
    """Slice even if the masks have not converged."""

    def expands(self, source: BackboneShape) -> bool:
        """Whether KV heads are expanded first."""
        return self.expand_kv_heads and source.num_kv_heads != source.num_heads

    def drops_layers(self, source: BackboneShape) -> bool:
        """Whether layers are dropped before masks are learned."""
        return self.drop_layers is not None and self.learn_masks.target.num_layers not in (None, source.num_layers)

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
        ModelFolderError: a model that is not whole, or a stage's folder whose record is damaged.
        TrainingError: a stage had to stop, was made with other settings, or several processes were started.
    """
    if world_size() > 1:
        raise TrainingError(
            "`run` drives one process; to train on several, start learn-masks and recover with torchrun, one by one."
        )
    source = BackboneShape.of(read_config(recipe.model))
    model = _prepared(recipe, source)
    masks, sliced = recipe.out / "masks", recipe.out / "sliced"
    texts: dict[str, Any] = {"model": model, "corpus": recipe.corpus}
    learn = LearnMasksRecipe(out=masks, **texts, **vars(recipe.learn_masks))
    _stage(masks, texts, learn, lambda: learn_masks(learn))
    cut: dict[str, Any] = {"force": recipe.force, "gates": recipe.gates}
    _stage(sliced, {"model": masks}, cut, lambda: slice_folder(masks, load_masks(masks, **cut), sliced, cut))
    texts = {"model": sliced, "corpus": recipe.recover_corpus or recipe.corpus}
    if recipe.recover.teacher is not None:
        texts["teacher"] = recipe.recover.teacher
    start: dict[str, Any] = {"proportions": recipe.recover.proportions or _learned_proportions(learn, texts["corpus"])}
    again = RecoverRecipe(out=recipe.backbone, **(vars(recipe.recover) | texts | start))
    _stage(recipe.backbone, texts, again, lambda: recover(again))
    return BackboneShape.of(read_config(recipe.backbone))


def _prepared(recipe: RunRecipe, source: BackboneShape) -> Path:
    """The model that masks are learned on: the source, or what the recipe asks to be made of it first."""
    model = recipe.model
    if recipe.expands(source):
        expanded, heads = recipe.out / "expanded", source.num_heads
        inputs, settings = {"model": model}, {"num_kv_heads": heads}
        _stage(expanded, inputs, settings, lambda: expand_folder(recipe.model, expanded, heads))
        model = expanded
    if recipe.drops_layers(source):
        inputs = {"model": model, "corpus": recipe.corpus}
        wanted: dict[str, Any] = vars(recipe.drop_layers) | {"num_layers": recipe.learn_masks.target.num_layers}
        drop = DropLayersRecipe(out=recipe.out / "shallow", model=model, corpus=recipe.corpus, **wanted)
        _stage(drop.out, inputs, drop, lambda: drop_layers(drop))
        model = drop.out
    return model


def _learned_proportions(learned: LearnMasksRecipe, corpus: Path) -> dict[str, float]:
    """The domains' last shares in mask learning, where they followed the losses; none where recovery's domains differ.

    Sheared-LLaMA's recovery starts from them (Xia et al., 2023, arXiv 2310.06694).
    """
    record = read_provenance(learned.out)
    updates = record["figures"]["proportion_updates"] if record else []
    shares: dict[str, float] = updates[-1]["proportions"] if updates else {}
    return shares if shares.keys() == Corpus.open(corpus).domains.keys() else {}


def _stage(out: Path, inputs: Mapping[str, Path], recipe: object, make: Callable[[], object]) -> None:
    record = read_provenance(out)
    if record is None:
        print(f"{out.name}: starts", file=sys.stderr)  # noqa: T201
        make()
        return
    try:
        before, hashes = dict(record["recipe"]), {role: read["sha256"] for role, read in record["inputs"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ModelFolderError(
            f"{out / FILE_NAME} does not say how the folder was made; remove {out}, or choose another out."
        ) from None
    both = inputs.keys() & hashes.keys()
    settings = {name: value for name, value in plain_settings(recipe).items() if name not in both}
    was = changed_settings(before, settings)
    if was:
        raise TrainingError(f"{out} was made with other settings ({was}); remove it, or choose another out.")
    for role in sorted(both):  # by content: another folder may have the same name, and the same folder may have moved
        if sha256_of_folder(inputs[role]) != hashes[role]:
            raise TrainingError(
                f"{out} was made from another {role} than {inputs[role]}; remove it, or choose another out."
            )
    print(f"{out.name}: done before", file=sys.stderr)  # noqa: T201
