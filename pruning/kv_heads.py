"""Exact expansion of KV heads: a grouped-query model becomes one with more KV heads and the same output.

KV head j of the result is a copy of source head j // g. Pruned afterwards, heads can go one by one: the way to the
published drama-base shape (12 query and 12 KV heads) from Llama-3.2-1B (32 and 8). Spec section 7.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from drama_models.errors import ShapeError
from drama_models.folders import atomic_folder
from drama_models.provenance import write_provenance
from pruning.model_folder import WEIGHTS, copy_other_files, read_config, read_weights, write_weights
from pruning.shape import BackboneShape

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor


def expand_kv_heads(state: Mapping[str, Tensor], shape: BackboneShape, num_kv_heads: int) -> dict[str, Tensor]:
    """Copy KV heads until there are `num_kv_heads`.

    Args:
        state: weights by name; the k and v projections are (G * head_dim, D), their biases (G * head_dim,).
        shape: of the model they belong to.
        num_kv_heads: wanted number, a multiple of the present one that divides the query heads.

    Raises:
        ShapeError: a number that is neither.
    """
    multiples = range(shape.num_kv_heads, shape.num_heads + 1, shape.num_kv_heads)
    allowed = [number for number in multiples if shape.num_heads % number == 0]
    if num_kv_heads not in allowed:
        raise ShapeError(
            f"{shape.num_kv_heads} KV heads cannot become {num_kv_heads} beside {shape.num_heads} query heads; "
            f"choose one of {allowed}."
        )
    copies = num_kv_heads // shape.num_kv_heads
    expanded = dict(state)
    for name, tensor in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            heads = tensor.unflatten(0, (shape.num_kv_heads, shape.head_dim))
            expanded[name] = heads.repeat_interleave(copies, dim=0).flatten(0, 1)
    return expanded


def expand_folder(source: Path, out: Path, num_kv_heads: int) -> None:
    """Write a model folder with more KV heads and the same output.

    Raises:
        ShapeError: as `expand_kv_heads`.
        ModelFolderError: unreadable weights.
    """
    shape = BackboneShape.of(read_config(source))
    expand_kv_heads({}, shape, num_kv_heads)  # refuses a number that does not fit before anything is written
    with atomic_folder(out) as partial:
        expanded = (
            (name, tensor.contiguous())
            for part in read_weights(source)
            for name, tensor in expand_kv_heads(dict([part]), shape, num_kv_heads).items()
        )
        write_weights(partial / WEIGHTS, expanded)
        copy_other_files(source, partial)
        settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
        text = json.dumps(settings | {"num_key_value_heads": num_kv_heads, "head_dim": shape.head_dim}, indent=2)
        (partial / "config.json").write_text(text + "\n", encoding="utf-8")
        recipe = {"num_kv_heads": num_kv_heads}
        write_provenance(
            partial, stage="pruning.expand_kv_heads", recipe=recipe, inputs={"model": source}, figures={}, parent=source
        )
