"""Several processes that train one model, and how one that FSDP spread over them becomes whole again."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import Trainer

Model = TypeVar("Model", bound=nn.Module)


def world_size() -> int:
    """Processes that train together, as torchrun and accelerate say it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def whole_model(trainer: Trainer, model: Model, make: Callable[[], Model]) -> Model:
    """The trained model in one piece; every process must call this, the main one may use the result.

    Args:
        trainer: after training.
        model: what it was given to train.
        make: builds a model of the same structure, used where FSDP holds the weights in parts.
    """
    if not trainer.is_fsdp_enabled:
        return model
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    whole = make()
    if trainer.args.should_save:
        whole.load_state_dict(state, strict=False)
    return whole
