"""Training on from a published retriever: its profile says what its encoders are, so no recipe has to.

DRAGON's two BERTs, bge-en-icl, bge-multilingual-gemma2, and any other folder that `Encoder.from_pretrained` takes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from drama_models.layout import find_folders, find_layouts
from drama_models.profile import Profile
from training.encoders import EncoderRecipe, build_encoder
from training.start import write_start_folder

if TYPE_CHECKING:
    from pathlib import Path

    from sentence_transformers import SentenceTransformer


def published_encoder(
    model: str | Path, document_model: str | Path | None = None, revision: str | None = None
) -> tuple[EncoderRecipe, list[Path]]:
    """The recipe by which a retriever's encoders are built again, and the folder of each encoder's backbone.

    Args:
        model: folder or hub name, as for `Encoder.from_pretrained`.
        document_model: its document encoder, where that is not in `model`.
        revision: branch, tag or commit on the hub.

    Raises:
        ModelFolderError: the model is incomplete, damaged, or cannot be found.
        AttentionDirectionError: its attention direction cannot be honoured.
    """
    layouts = find_layouts(*find_folders(model, document_model, revision))
    query, document = (Profile.of(layout) for layout in layouts)
    two_encoders = layouts[0] is not layouts[1]
    recipe = EncoderRecipe(
        bidirectional=query.bidirectional,
        pooling=query.pooling,
        max_length=max(query.max_length, document.max_length),
        normalise=query.normalise,
        query_prompt=query.query_prompt,
        document_prompt=document.document_prompt,
        two_encoders=two_encoders,
    )
    return recipe, [layout.backbone for layout in (layouts if two_encoders else layouts[:1])]


def continue_from(
    model: str | Path,
    start: Path,
    *,
    document_model: str | Path | None = None,
    revision: str | None = None,
    device: str | None = None,
    **changes: Any,
) -> SentenceTransformer:
    """A published retriever as a trainable model, with its pooling, prompts, lengths and normalisation.

    Args:
        model: folder or hub name, as for `Encoder.from_pretrained`.
        start: folder to make for its weights and tokenizers.
        document_model: its document encoder, where that is not in `model`.
        revision: branch, tag or commit on the hub.
        device: such as "cuda"; the best there is by default.
        changes: fields of `EncoderRecipe` that are to differ, such as lora.

    Raises:
        ModelFolderError: the model is incomplete, damaged, or cannot be found.
        AttentionDirectionError: its attention direction cannot be honoured.
    """
    recipe, backbones = published_encoder(model, document_model, revision)
    recipe = replace(recipe, **changes)
    folders = [start / name for name in ("query", "document")[: len(backbones)]]
    for backbone, folder in zip(backbones, folders, strict=True):
        write_start_folder(backbone, folder, bidirectional=recipe.bidirectional)
    document_start = folders[1] if recipe.two_encoders else None
    built = build_encoder(folders[0], recipe, document_start=document_start, device=device)
    built.prompts = {**Profile.from_folder(backbones[0]).prompts, **built.prompts}
    return built
