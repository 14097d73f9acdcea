"""The table of reference losses: what each domain's loss is expected to come down to.

Either the held-out losses of a model (usually the source, which a pruned model cannot beat by much), or a power law
through the losses of larger siblings, read at the size of the pruned model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from drama_models.errors import CorpusError
from drama_models.folders import atomic_file
from drama_models.recipe import check_least
from pruning.corpus import Corpus
from pruning.held_out import held_out_figures
from pruning.model_folder import load_causal_model
from pruning.scaling_law import extrapolated_loss


@dataclass(frozen=True, kw_only=True)
class ReferenceLossRecipe:
    """Settings of a table of reference losses: `model` and `corpus`, or `curve` and `target_size`."""

    out: Path
    """JSON file to make: nats a token by domain."""
    model: Path | None = None
    """Model folder to evaluate."""
    corpus: Path | None = None
    """Tokenised corpus whose held-out text it is evaluated on."""
    curve: Path | None = None
    """YAML or JSON file: for every domain, losses by number of parameters, such as {en: {1235814400: 2.51, ...}}."""
    target_size: int | None = None
    """Parameters of the model to be, embeddings included."""
    sequence_length: int = 4096
    """Tokens in a sequence."""
    batch_size: int = 8
    """Sequences evaluated at a time."""
    held_out_sequences: int = 64
    """Held-out sequences of each domain, at most."""
    separate_documents: bool = False
    """Whether documents are kept apart, as in the stage that the table is for."""

    def __post_init__(self) -> None:
        check_least(self, {"sequence_length": 2, "batch_size": 1, "held_out_sequences": 1})
        by_model = self.model is not None and self.corpus is not None
        by_curve = self.curve is not None and self.target_size is not None
        if by_model == by_curve:
            raise ValueError("Set either model and corpus, or curve and target_size, to say where losses come from.")


def reference_losses(recipe: ReferenceLossRecipe) -> dict[str, float]:
    """Build the table and write it.

    Returns:
        Nats a token by domain.

    Raises:
        CorpusError: corpus and model do not fit, or the curve cannot be read or fitted.
        ModelFolderError: the model is not whole.
    """
    if recipe.model is not None and recipe.corpus is not None:
        losses = _losses_of_model(recipe, recipe.model, Corpus.open(recipe.corpus))
    elif recipe.curve is not None and recipe.target_size is not None:
        table = _read_curve(recipe.curve)
        losses = {domain: extrapolated_loss(points, recipe.target_size) for domain, points in table.items()}
    with atomic_file(recipe.out) as partial:
        partial.write_text(json.dumps(losses, indent=2) + "\n", encoding="utf-8")
    return losses


def _losses_of_model(recipe: ReferenceLossRecipe, folder: Path, corpus: Corpus) -> dict[str, float]:
    corpus.check_tokenizer(folder)
    model = load_causal_model(folder)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    figures = held_out_figures(
        model,
        corpus,
        length=recipe.sequence_length,
        batch_size=recipe.batch_size,
        limit=recipe.held_out_sequences,
        separate_documents=recipe.separate_documents,
    )
    return {domain: values["loss"] for domain, values in figures.items()}


def _read_curve(path: Path) -> dict[str, dict[int, float]]:
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {
            str(domain): {int(size): float(loss) for size, loss in points.items()} for domain, points in table.items()
        }
    except FileNotFoundError:
        raise CorpusError(f"There is no {path}; pass a file with losses by domain and number of parameters.") from None
    except (yaml.YAMLError, AttributeError, TypeError, ValueError):
        raise CorpusError(
            f"{path} must hold, for every domain, losses by number of parameters, "
            "such as {en: {1235814400: 2.51, 3212749824: 2.33, 8030261248: 2.14}}; correct it."
        ) from None
