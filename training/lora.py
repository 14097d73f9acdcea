"""Low-rank updates beside frozen weights (LoRA), through peft: added to a backbone, and folded into it in the end.

Hu et al., 2021, https://arxiv.org/abs/2106.09685; rank 64 for bge-en-icl (arXiv 2409.15700).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers.pytorch_utils import Conv1D

from drama_models.errors import MissingExtraError, TrainingError


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank updates beside frozen weights; defaults as in bge-en-icl's paper."""

    rank: int = 64
    """Of each update."""
    alpha: float = 32.0
    """Updates are scaled by alpha / rank."""
    dropout: float = 0.1
    """On the input of an update."""
    targets: tuple[str, ...] | None = None
    """Names of the linear layers to update, such as q_proj; all linear layers by default."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"rank={self.rank} must be at least 1 and alpha={self.alpha} positive.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1; 0.1 is a usual choice.")


def check_targets(backbone: torch.nn.Module, lora: Lora) -> None:
    """Whether the backbone has every linear layer that is to be updated; peft is content with one of them.

    Raises:
        TrainingError: it has not.
    """
    names = [name for name, module in backbone.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    for target in lora.targets or ():
        if not any(is_target(name, (target,)) for name in names):
            raise TrainingError(
                f"lora.targets has {target!r}, which the backbone does not have; its linear layers are "
                f"{', '.join(sorted({name.rpartition('.')[2] for name in names}))}."
            )


def is_target(name: str, targets: tuple[str, ...] | None) -> bool:
    """Whether a layer of that dotted name is meant: by its end, as peft reads it, or because all are."""
    return targets is None or any(name == target or name.endswith(f".{target}") for target in targets)


def add_updates(backbone: Any, lora: Lora, *, but: str) -> None:
    """Freeze a backbone and give its linear layers updates that are trained.

    Args:
        backbone: a transformers model, changed in place.
        lora: which, and how large.
        but: first part of the names of layers that get none.

    Raises:
        MissingExtraError: peft is not installed.
        TrainingError: a target that the backbone does not have.
    """
    check_targets(backbone, lora)
    try:
        from peft import LoraConfig
    except ImportError:
        raise MissingExtraError("encoder.lora", package="peft>=0.19") from None
    backbone.add_adapter(
        LoraConfig(
            task_type="FEATURE_EXTRACTION",
            r=lora.rank,
            lora_alpha=cast(Any, lora.alpha),
            lora_dropout=lora.dropout,
            target_modules=list(lora.targets) if lora.targets else "all-linear",
            exclude_modules=rf"{but}\..*" if hasattr(backbone, but) else None,
        )
    )


def merge_updates(backbone: Any) -> None:
    """Fold the updates into the weights, in place: afterwards the model is a plain one and saves as such."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            backbone.set_submodule(name, module.get_base_layer())
    del backbone.peft_config
    backbone._hf_peft_config_loaded = False
