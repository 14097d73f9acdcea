"""The model that is trained: a stock sentence-transformers model, one encoder or two, whole or through LoRA.

It is built from start folders (`training.start`), trained through `embed`, and saved as what any client loads: nothing
here adds a class of its own to the model. `embed` takes token ids and gives embeddings with gradients, on the packed
attention of inference where the backbone can run it and with padding where it cannot. Weights are float32 whatever the
backbone was stored in; bfloat16 is autocast's affair.

Two encoders with separate weights from one checkpoint: DRAGON (arXiv 2302.07452). Causal with the state of EOS and
LoRA: bge-en-icl (arXiv 2409.15700).

n texts, T tokens of all of them, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer
from torch import Tensor

from drama_models.attention import PACKED, enable_packing, first_position, pack, sees_later_tokens
from drama_models.errors import AttentionDirectionError, DeviceError, TrainingError
from drama_models.layout import find_layouts
from drama_models.profile import POOLING_MODES
from training.lora import Lora, add_updates, merge_updates

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Kind = Literal["query", "document"]
KINDS: tuple[Kind, ...] = ("query", "document")
ADAPTERS = "adapter_model.safetensors"  # peft's name
UNTRAINED = "pooler"  # BERT's head over its first token, which no embedding goes through


@dataclass(frozen=True, kw_only=True)
class EncoderRecipe:
    """How a backbone becomes an encoder; defaults as for DRAMA."""

    bidirectional: bool = True
    """Whether every token sees every other; a BERT always does."""
    pooling: Literal["mean", "last", "cls"] = "mean"
    """Mean over all tokens, the state of the last one (EOS), or of the first one."""
    max_length: int = 256
    """Tokens kept of each text, its ends included."""
    normalise: bool = True
    """Whether the saved model scales its embeddings to length 1, so that scores are cosines."""
    query_prompt: str = "Query: "
    """Text put before every query."""
    document_prompt: str = ""
    """Text put before every document."""
    title_separator: str = " "
    """Between title and text of a document, as it is; " [SEP] " for DRAGON."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Prompts of further tasks by name, which the saved model offers too; training does not use them."""
    two_encoders: bool = False
    """Separate weights for queries and documents."""
    dropout: float | None = None
    """Of hidden states and attention while training, where the backbone has any; the backbone's own by default."""
    lora: Lora | None = None
    """Train low-rank updates instead of the weights themselves."""
    gradient_checkpointing: bool = False
    """Compute each layer a second time in the backward pass instead of keeping what is inside it."""
    packed: bool = True
    """Train without padding where the backbone can."""

    def __post_init__(self) -> None:
        if self.max_length < 3:
            raise ValueError(f"max_length={self.max_length} leaves no room between the ends of a text; set at least 3.")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1; leave it out for the backbone's.")


def build_encoder(
    start: Path, recipe: EncoderRecipe, *, document_start: Path | None = None, device: str | None = None
) -> SentenceTransformer:
    """A trainable model from a start folder.

    Args:
        start: made by `write_start_folder`, or any encoder that transformers loads.
        recipe: what is put on top of it.
        document_start: start of the document encoder, where the two begin differently; `start` by default.
        device: such as "cuda"; the best there is by default.

    Raises:
        AttentionDirectionError: the backbone does not attend in the direction that the recipe asks for.
        MissingExtraError: LoRA without peft.
        DeviceError: a device that is not here.
        TrainingError: LoRA targets that the backbone does not have.
        ValueError: `document_start` for a single encoder.
    """
    if document_start is not None and not recipe.two_encoders:
        raise ValueError("document_start is for two encoders; set two_encoders, or leave it out.")
    modules: list[torch.nn.Module]
    if recipe.two_encoders:
        modules = [Router.for_query_document(_tower(start, recipe), _tower(document_start or start, recipe))]
    else:
        modules = list(_tower(start, recipe))
    if recipe.normalise:
        modules.append(Normalize())
    prompts = recipe.prompts | {"query": recipe.query_prompt, "document": recipe.document_prompt}
    similarity: Literal["cosine", "dot"] = "cosine" if recipe.normalise else "dot"
    _check_device(device)
    return SentenceTransformer(modules=modules, prompts=prompts, similarity_fn_name=similarity, device=device)


def embed(model: SentenceTransformer, token_ids: Sequence[Tensor], kind: Kind) -> Tensor:
    """Embeddings of tokenised texts, with gradients.

    Args:
        model: of `build_encoder` or loaded from a folder, on any device; also one that DistributedDataParallel wraps.
        token_ids: ids of each text, (length,) each, ends included, at least one text and one token in each.
        kind: which of two encoders; no matter for a single one.

    Returns:
        (n, D), pooled and not normalised, so that Matryoshka sizes can be cut first.
    """
    inner = cast(SentenceTransformer, getattr(model, "module", model))
    transformer = _transformers(inner)[KINDS.index(kind)]
    backbone = transformer.auto_model
    ids = [row.to(backbone.device) for row in token_ids]
    packed = backbone.config._attn_implementation == PACKED
    inputs = pack(ids, first_position(backbone)) if packed else _padded(ids, transformer)
    if transformer.model_forward_params is not None:  # a backbone that names every argument it takes
        transformer.model_forward_params |= inputs.keys()
    # the wrapped model is called as a whole, so that what synchronises gradients sees the pass
    states = model(inputs | {"task": kind})["token_embeddings"]
    ends = "cu_seq_lens_q" if packed else "attention_mask"  # what pooling tells the texts apart by
    features = {"token_embeddings": states, ends: inputs[ends].to(states.device)}
    for module in _after_transformer(inner, kind):
        features = module(features)
    return cast(Tensor, features["sentence_embedding"])


def tokenise(
    model: SentenceTransformer, texts: Sequence[str], kind: Kind, *, max_length: int | None = None
) -> list[Tensor]:
    """Token ids of texts that carry their prompts already, cut to a length: what `embed` takes.

    Args:
        model: whose tokenizer is used.
        texts: with their prompts.
        kind: which of two encoders.
        max_length: tokens kept of each text, its ends included; the model's by default.

    Returns:
        (length,) each, int64, on the CPU.
    """
    transformer = _transformers(model)[KINDS.index(kind)]
    limit = max_length or transformer.max_seq_length
    tokenizer = cast(Any, transformer.tokenizer)
    encoded = tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
    # without ends an empty text, as that of an absent document, would have no token at all
    return [torch.tensor(ids or [tokenizer.pad_token_id or 0]) for ids in encoded]


def plain_tokenizer(model: SentenceTransformer) -> Tokenizer:
    """The model's own tokenizer, which sets the ends of a text and neither pads nor cuts."""
    tokenizer = Tokenizer.from_str(cast(Any, _transformers(model)[0].tokenizer).backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def backbones(model: SentenceTransformer) -> list[Any]:
    """The transformers models inside, one for each set of weights."""
    found = [cast(Any, transformer.auto_model) for transformer in _transformers(model)]
    return found[:1] if found[0] is found[1] else found


def load_adapters(model: SentenceTransformer, checkpoint: Path) -> None:
    """Put the low-rank updates of a checkpoint in place of the model's own.

    sentence-transformers opens the whole checkpoint for this, with a second backbone, and of two encoders it looks for
    each backbone in a subfolder of where that is.

    Args:
        model: of `build_encoder` with LoRA.
        checkpoint: folder that such a model was saved to.

    Raises:
        TrainingError: the checkpoint does not hold the updates of this model.
    """
    from peft import set_peft_model_state_dict

    for backbone, layout in zip(backbones(model), find_layouts(checkpoint), strict=False):
        path = layout.backbone / ADAPTERS
        trained = {name for name, weight in backbone.named_parameters() if weight.requires_grad}
        try:
            loaded: Any = set_peft_model_state_dict(backbone, load_file(path))
            whole = not loaded.unexpected_keys and trained.isdisjoint(loaded.missing_keys)
        except (OSError, SafetensorError, RuntimeError):  # not there, not to be read, of other shapes
            whole = False
        if not whole:
            raise TrainingError(
                f"{path} does not hold the updates of this model; remove {checkpoint} to go on from the one before it."
            )


def merge_lora(model: SentenceTransformer) -> None:
    """Fold low-rank updates into the weights, in place: afterwards the model is a plain one and saves as such."""
    for backbone in backbones(model):
        if getattr(backbone, "_hf_peft_config_loaded", False):
            merge_updates(backbone)
            _mark_trained(backbone)


def _tower(start: Path, recipe: EncoderRecipe) -> list[Any]:
    """Transformer and pooling of one encoder, ready to be trained."""
    # float32 weights whatever the backbone was stored in: optimiser steps vanish in bfloat16, autocast does the rest
    settings: dict[str, Any] = {"model_kwargs": {"dtype": torch.float32}}
    transformer = Transformer(str(start), max_seq_length=recipe.max_length, **settings)
    backbone = cast(Any, transformer.auto_model)
    if sees_later_tokens(backbone) != recipe.bidirectional:
        found, wanted = ("causal", "bidirectional") if recipe.bidirectional else ("bidirectional", "causal")
        raise AttentionDirectionError(
            f"{start} attends {found}ly where the recipe asks for {wanted}: use a start folder of that direction "
            f"(a BERT is always bidirectional), or set bidirectional={not recipe.bidirectional}."
        )
    _mark_trained(backbone)
    if recipe.dropout is not None:
        _set_dropout(backbone, recipe.dropout)
    if recipe.lora is not None:
        add_updates(backbone, recipe.lora, but=UNTRAINED)
    if recipe.packed:
        enable_packing(backbone)
    if recipe.gradient_checkpointing:
        renamed = getattr(backbone, "activation_checkpointing_enable", None)  # its newer name
        (renamed or backbone.gradient_checkpointing_enable)({"use_reentrant": False})
    return [transformer, Pooling(transformer.get_embedding_dimension(), cast(Any, POOLING_MODES[recipe.pooling]))]


def _check_device(device: str | None) -> None:
    try:
        kind = torch.device(device or "cpu").type
    except RuntimeError:  # a word that is no device
        raise DeviceError(f"device={device!r} is none; use cuda, mps or cpu.") from None
    there = [name for name in ("cuda", "mps") if getattr(torch, name).is_available()]
    if kind in ("cuda", "mps") and kind not in there:
        raise DeviceError(f"device={device!r} is not available here; use {', '.join([*there, 'cpu'])}.")


def _set_dropout(backbone: torch.nn.Module, share: float) -> None:
    """While training here: the configuration, which is saved, keeps what it says."""
    for module in backbone.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = share
        elif isinstance(getattr(module, "attention_dropout", None), float):
            cast(Any, module).attention_dropout = share


def _mark_trained(backbone: Any) -> None:
    for name, weight in backbone.named_parameters():
        weight.requires_grad_(not name.startswith(UNTRAINED))


def _transformers(model: SentenceTransformer) -> list[Transformer]:
    """Of queries and of documents; the same one twice where there is one encoder."""
    first = model[0]
    if isinstance(first, Router):
        return [cast(Transformer, cast(Any, first.sub_modules[kind])[0]) for kind in KINDS]
    return [cast(Transformer, first)] * 2


def _after_transformer(model: SentenceTransformer, kind: Kind) -> list[torch.nn.Module]:
    """Pooling and whatever follows it, but for normalisation."""
    first = model[0]
    routed = list(cast(Any, first.sub_modules[kind]))[1:] if isinstance(first, Router) else []
    return [module for module in (*routed, *list(model)[1:]) if not isinstance(module, Normalize)]


def _padded(ids: list[Tensor], transformer: Transformer) -> dict[str, Any]:
    """Ids and mask as rectangles, (n, longest) each, padded on the right."""
    padding = cast(Any, transformer.tokenizer).pad_token_id or 0
    rectangle = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=padding)
    lengths = torch.tensor([len(row) for row in ids], device=rectangle.device)
    mask = torch.arange(rectangle.shape[1], device=rectangle.device) < lengths[:, None]
    return {"input_ids": rectangle, "attention_mask": mask.long()}
