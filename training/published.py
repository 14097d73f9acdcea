"""Training on from a published retriever: its profile says what its encoders are, so no recipe has to.

DRAGON's two BERTs, bge-en-icl, bge-multilingual-gemma2, and any other folder that `Encoder.from_pretrained` takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from drama_models.layout import find_folders, find_layouts
from drama_models.profile import Profile
from training.encoders import EncoderRecipe

if TYPE_CHECKING:
    from pathlib import Path


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
        title_separator=document.title_separator,
        prompts=query.prompts,
        two_encoders=two_encoders,
    )
    return recipe, [layout.backbone for layout in (layouts if two_encoders else layouts[:1])]
