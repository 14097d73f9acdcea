"""A stock causal language model that is called under masks. No forward pass is patched.

Each call computes masked parameters and hands them to the stock model through `torch.func.functional_call`, so any
attention kernel and autocast work as they do without masks. Gradient checkpointing computes layers a second time when
the call is over; they are then given the same masked parameters again.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.modeling_outputs import CausalLMOutput

from pruning.lagrangian import Lagrangian, target_sparsities
from pruning.masked_weights import MaskValues, masked_parameters
from pruning.masks import Masks, mask_shapes
from pruning.packing import share_of_step

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from transformers import PreTrainedModel

EPS = "variance_epsilon"


class MaskedCausalLM(nn.Module):
    """Model, masks and multipliers as one module for the Trainer.

    In training mode each call draws masks and its loss is cross-entropy plus penalty; in evaluation mode masks are
    deterministic at the size they expect at present, and the loss is the cross-entropy alone (spec section 2).

    Args:
        model: a LlamaForCausalLM; its norms' eps become buffers, so that they can be exchanged like weights.
        masks: the gates.
        warmup_steps: of the target sparsities.
    """

    step: Tensor

    def __init__(self, model: PreTrainedModel, masks: Masks, warmup_steps: int) -> None:
        super().__init__()
        self.model, self.masks = model, masks
        self.tied = bool(model.config.tie_word_embeddings)
        targets = target_sparsities(mask_shapes(masks.source), mask_shapes(masks.target))
        self.lagrangian = Lagrangian(targets, warmup_steps)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.penalty = 0.0  # of the last training call, for the log
        self._eps = expose_norm_eps(model)
        self.register_state_dict_post_hook(_drop_tied_head)
        self.register_load_state_dict_pre_hook(_restore_tied_head)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **inputs: Any) -> CausalLMOutput:
        """Call the model under masks; inputs, shapes and outputs as of LlamaForCausalLM.

        Args:
            input_ids: (B, T).
            labels: (B, T), shifted inside; with it the output has a loss.
            inputs: passed on, such as attention_mask, position_ids or num_items_in_batch.
        """
        self.masks.clamp()
        values = self.masks.draw() if self.training else self.masks.deterministic(at_target=False)
        output = self.call_with(values, input_ids=input_ids, labels=labels, **inputs)
        loss = output.loss
        if self.training and loss is not None and labels is not None:
            penalty = self.lagrangian.penalty(self.masks.scores(), int(self.step))
            self.penalty = penalty.item()
            loss = loss + penalty * share_of_step(labels, inputs.get("num_items_in_batch"))
        return CausalLMOutput(loss=loss, logits=output.logits)

    def call_with(self, values: Mapping[str, Tensor], **inputs: Any) -> Any:
        """Call the model under given mask values, shapes as in `pruning.masks`."""
        masks = MaskValues(values, self.masks.source, tied=self.tied)
        masked = masked_parameters(dict(self.model.named_parameters()), masks, self._eps)
        with _recomputed_with(self.model, masked):
            return functional_call(self.model, masked, kwargs=inputs)

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """What the Trainer asks for; settings as of the stock model."""
        self.model.gradient_checkpointing_enable(**settings)

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """The same by its newer name."""
        self.model.activation_checkpointing_enable(**settings)


def expose_norm_eps(model: nn.Module) -> dict[str, Tensor]:
    """Turn the eps of every RMSNorm from a Python number into a buffer, where it is not one already.

    Returns:
        The eps by the buffers' names, as scalars.
    """
    exposed = {}
    for name, module in model.named_modules():
        eps = getattr(module, EPS, None)
        if isinstance(eps, float):
            delattr(module, EPS)
            module.register_buffer(EPS, torch.tensor(eps), persistent=False)
        if eps is not None:
            exposed[f"{name}.{EPS}"] = torch.tensor(float(eps))
    return exposed


@contextmanager
def _recomputed_with(model: nn.Module, masked: Mapping[str, Tensor]) -> Iterator[None]:
    """Where gradient checkpointing is on: what is called in here computes layers again with these tensors."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _shadowed(model, masked)

    layers: list[Any] = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    stock = [layer._gradient_checkpointing_func for layer in layers]
    for layer, checkpoint in zip(layers, stock, strict=True):
        layer._gradient_checkpointing_func = partial(checkpoint, context_fn=contexts)
    try:
        yield
    finally:  # the layers that were called have made their contexts; kept here, the masked weights would outlive them
        for layer, checkpoint in zip(layers, stock, strict=True):
            layer._gradient_checkpointing_func = checkpoint


@contextmanager
def _shadowed(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Lay tensors over the parameters and buffers of their names: an attribute of a module's own is found first."""
    places = [(vars(model.get_submodule(name.rpartition(".")[0])), name.rpartition(".")[2]) for name in tensors]
    for (attributes, name), tensor in zip(places, tensors.values(), strict=True):
        attributes[name] = tensor
    try:
        yield
    finally:
        for attributes, name in places:
            del attributes[name]


def _drop_tied_head(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:  # noqa: ARG001
    """A tied head is the embedding matrix under a second name, which safetensors refuses to store twice."""
    if getattr(module, "tied", False):
        state.pop(f"{prefix}model.lm_head.weight", None)


def _restore_tied_head(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """The other way: torch asks for every name, tied or not."""
    embedding = state.get(f"{prefix}model.model.embed_tokens.weight")
    if getattr(module, "tied", False) and embedding is not None:
        state[f"{prefix}model.lm_head.weight"] = embedding
