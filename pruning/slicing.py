"""Cut a model to its masks: rows and columns whose mask is zero go, the values of the others are folded in.

The result is a stock LlamaForCausalLM folder that equals the masked model to float rounding. Tensors are read, cut and
written one by one, so memory stays near the size of the largest of them. The whole configuration is carried over from
the source (RoPE, eps, vocabulary, ...); only sizes change.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from drama_models.errors import ShapeError
from drama_models.folders import atomic_folder
from drama_models.provenance import write_provenance
from pruning.masked_weights import LAYER, MaskValues
from pruning.masks import mask_shapes
from pruning.model_folder import WEIGHTS, copy_other_files, read_config, read_weights, write_weights
from pruning.shape import BackboneShape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

ROWS_AT_ONCE = 4096


def slice_tensor(name: str, weight: Tensor, masks: MaskValues) -> Tensor:
    """One weight after slicing: cut, and scaled by its mask values in float32; in its own dtype and contiguous.

    Works through the rows in parts, so that float32 copies stay small.
    """
    rows, columns = masks.kept(name)
    rows = torch.arange(len(weight)) if rows is None else rows
    columns = columns if weight.ndim == 2 else None  # a bias has rows only
    width = weight.shape[1:] if columns is None else (len(columns),)
    cut = torch.empty((len(rows), *width), dtype=weight.dtype)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        values = weight.index_select(0, part)
        if columns is not None:
            values = values.index_select(1, columns)
        cut[start : start + len(part)] = masks.scaled(name, values.float(), part, columns)
    return cut


def renumbered(name: str, kept_layers: list[int]) -> str | None:
    """A parameter's name once removed blocks are gone; None if it is in one of them."""
    found = LAYER.search(name)
    if not found:
        return name
    if int(found[1]) not in kept_layers:
        return None
    return name.replace(f"layers.{found[1]}.", f"layers.{kept_layers.index(int(found[1]))}.", 1)


def sliced_shape(masks: MaskValues) -> BackboneShape:
    """Sizes after slicing.

    Raises:
        ShapeError: kept layers differ in heads or intermediate size, which a stock Llama cannot have.
    """
    source, layers = masks.source, masks.kept_layers()
    kept = {name: masks.values[name] != 0 for name in ("head", "query_head", "intermediate")}
    groups = {int(kept["head"][layer].sum()) for layer in layers}
    heads = {int(count) for layer in layers for count in kept["query_head"][layer][kept["head"][layer]].sum(dim=-1)}
    units = {int(kept["intermediate"][layer].sum()) for layer in layers}
    if not len(groups) == len(heads) == len(units) == 1:
        raise ShapeError(
            f"Kept layers have {sorted(groups)} KV groups of {sorted(heads)} query heads and {sorted(units)} "
            "intermediate units; every layer must have the same numbers: use masks cut to the target sizes."
        )
    num_kv_heads = groups.pop()
    return BackboneShape(
        hidden_size=masks.kept_hidden,
        num_layers=len(layers),
        num_heads=num_kv_heads * heads.pop(),
        num_kv_heads=num_kv_heads,
        head_dim=source.head_dim,
        intermediate_size=units.pop(),
        attention_bias=source.attention_bias,
        mlp_bias=source.mlp_bias,
    )


def sliced_config(config: Mapping[str, Any], shape: BackboneShape) -> dict[str, Any]:
    """The source's config.json with the new sizes."""
    changed = dict(config) | {
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate_size,
    }
    if isinstance(changed.get("layer_types"), list):
        changed["layer_types"] = changed["layer_types"][: shape.num_layers]
    return changed


def slice_folder(
    source: str | Path, values: Mapping[str, Tensor], out: str | Path, recipe: Mapping[str, Any]
) -> BackboneShape:
    """Write the sliced model as a new folder.

    Args:
        source: model folder whose weights the masks were learned on.
        values: deterministic mask values by dimension, shapes as in `pruning.masks`.
        out: folder to make.
        recipe: settings to record in its provenance.

    Returns:
        The shape of the result.

    Raises:
        ShapeError: masks that do not fit the model, or leave layers of different sizes.
        ModelFolderError: unreadable weights.
    """
    with atomic_folder(out) as partial:
        target, figures = write_sliced(partial, Path(source), values)
        write_provenance(
            partial, stage="pruning.slice", recipe=recipe, inputs={"model": source}, figures=figures, parent=source
        )
    return target


def write_sliced(folder: Path, source: Path, values: Mapping[str, Tensor]) -> tuple[BackboneShape, dict[str, Any]]:
    """Fill a folder with the sliced model, its configuration and tokenizer; the provenance is the caller's to write.

    Args:
        folder: empty.
        source: as of `slice_folder`.
        values: as of `slice_folder`.

    Returns:
        The shape of the result; and its figures: `parameters`, and `kept_layers` by their numbers in the source.

    Raises:
        ShapeError: as of `slice_folder`.
        ModelFolderError: unreadable weights.
    """
    config = read_config(source)
    shape = BackboneShape.of(config)
    _check_masks(values, shape)
    masks = MaskValues(values, shape, tied=bool(config.tie_word_embeddings))
    target, layers = sliced_shape(masks), masks.kept_layers()
    cut = (
        (new_name, slice_tensor(name, weight, masks))
        for name, weight in read_weights(source)
        if (new_name := renumbered(name, layers)) is not None and not (masks.tied and name == "lm_head.weight")
    )
    figures = {"parameters": write_weights(folder / WEIGHTS, cut), "kept_layers": layers}
    copy_other_files(source, folder)
    settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    text = json.dumps(sliced_config(settings, target), indent=2)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    return target, figures


def _check_masks(values: Mapping[str, Tensor], shape: BackboneShape) -> None:
    wanted_shapes = mask_shapes(shape)
    unknown = sorted(set(values) - set(wanted_shapes))
    if unknown:
        raise ShapeError(f"No dimension is called {unknown[0]!r}; masks are by {', '.join(wanted_shapes)}.")
    for name, wanted in wanted_shapes.items():
        if name in values and tuple(values[name].shape) != wanted:
            raise ShapeError(
                f"The {name} mask has shape {tuple(values[name].shape)}, this model needs {wanted}; "
                "use the model that the masks were learned on."
            )
