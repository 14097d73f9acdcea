"""Everything before training: texts, tokenizer, teacher embeddings, and the starting folder."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from demo.collect import collect
from demo.make_nano.teacher import Teacher, embed_to_disk
from demo.make_nano.texts import (
    Pair,
    environment_comments,
    pairs_of,
    read_texts,
    texts_to_teach,
    training_documents,
    write_texts,
)
from demo.make_nano.vocabulary import BOS, EOS, PAD, SPECIAL, UNKNOWN, choose_entries, empty_tokenizer
from drama_models.folders import atomic_folder
from training.start import set_tokenizer_ends

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from demo.make_nano.recipe import NanoRecipe

COMMON = 1e-3  # share of all tokens at which a token's weight is halved (Arora et al., 2017)
TABLE_RMS = 1.0  # of the table's rows
NEARLY_ZERO = 1e-3  # not quite, so that every token still sees every other, which is checked where a folder is loaded
EPS = 1.0
"""Of every RMSNorm. With the usual tiny value a norm would give each token the same length, and a bag of tokens would
forget which of them matter; with this one a short vector stays short."""


def prepare(recipe: NanoRecipe) -> tuple[list[Pair], list[str], NDArray[np.float16]]:
    """Make what is not there yet.

    Returns:
        Pairs, texts that the teacher embedded, and their embeddings (n, teacher's D).
    """
    recipe.work.mkdir(parents=True, exist_ok=True)
    if not recipe.collection.is_dir():
        collect(recipe.collection)
    documents = training_documents(recipe.collection)
    generator = random.Random(recipe.seed)  # noqa: S311 - no secret
    pairs = [pair for document in documents for pair in pairs_of(document, generator)]
    texts_file, comments_file = recipe.work / "taught.jsonl", recipe.work / "comments.jsonl"
    if not comments_file.is_file():
        write_texts(comments_file, environment_comments())
    comments = read_texts(comments_file)
    if not texts_file.is_file():
        write_texts(texts_file, texts_to_teach(documents, comments, recipe.taught_texts, recipe.seed))
    teacher = Teacher(recipe.teacher)
    if not (recipe.work / "start").is_dir():
        contents = [*(document.content for document in documents), *comments]
        write_start(recipe, teacher, contents, pairs, recipe.work / "start")
    texts = read_texts(texts_file)
    return pairs, texts, embed_to_disk(teacher, texts, recipe.work / "taught.npy")


def write_start(recipe: NanoRecipe, teacher: Teacher, contents: list[str], pairs: list[Pair], out: Path) -> None:
    """A bidirectional Llama that is, to begin with, a weighted bag of the teacher's word vectors.

    Besides the model folder it holds `projection.npy`, (teacher's D, D), which takes teacher embeddings to our size.
    """
    entries = choose_entries(
        contents, recipe.teacher / "vocab.txt", size=recipe.vocabulary, document_words=recipe.document_words
    )
    tokenizer = empty_tokenizer(entries)
    table, projection = token_table(teacher.embed_entries(entries), token_shares(tokenizer, pairs), recipe.hidden_size)
    torch.manual_seed(recipe.seed)
    model = bag_of_tokens(recipe, torch.from_numpy(table))
    with atomic_folder(out) as partial:
        model.save_pretrained(partial)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=BOS,
            eos_token=EOS,
            pad_token=PAD,
            unk_token=UNKNOWN,
            model_max_length=recipe.max_length,
        ).save_pretrained(partial)
        set_tokenizer_ends(partial)
        np.save(partial / "projection.npy", projection)


def token_shares(tokenizer: Tokenizer, pairs: list[Pair]) -> NDArray[np.float64]:
    """How much of the pairs' text each entry makes up, (V,), sums to 1."""
    counts = np.zeros(tokenizer.get_vocab_size())
    for encoding in tokenizer.encode_batch([pair.document for pair in pairs], add_special_tokens=False):
        np.add.at(counts, encoding.ids, 1)
    return counts / counts.sum()


def token_table(
    vectors: NDArray[np.float32], shares: NDArray[np.float64], size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows of the embedding table from the teacher's vectors, and the projection that made them.

    Centred, projected to the principal components, and weighted by a / (a + share) as in smooth inverse frequency.

    Args:
        vectors: of each entry, (V, teacher's D); zero rows stay zero.
        shares: of each entry in text, (V,).
        size: D.

    Returns:
        Table (V, D) with a root mean square of `TABLE_RMS`, projection (teacher's D, D) with orthonormal columns.
    """
    known = np.abs(vectors).sum(axis=1) > 0
    centred = vectors - vectors[known].mean(axis=0)
    _, _, components = np.linalg.svd(centred[known], full_matrices=False)
    projection = np.ascontiguousarray(components[:size].T)
    table = (centred @ projection) * (COMMON / (COMMON + shares))[:, None]
    table[~known] = 0
    table *= TABLE_RMS / np.sqrt((table[known] ** 2).mean())
    return table.astype(np.float32), projection.astype(np.float32)


def bag_of_tokens(recipe: NanoRecipe, table: torch.Tensor) -> LlamaModel:
    """A bidirectional Llama whose layers add almost nothing yet: their output projections are nearly zero.

    Args:
        recipe: for the shape.
        table: token embeddings, (V, D).
    """
    direction: dict[str, Any] = {"is_causal": False, "use_bidirectional_attention": True}
    config = LlamaConfig(
        vocab_size=len(table),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.max_length,
        rms_norm_eps=EPS,
        bos_token_id=SPECIAL.index(BOS),
        eos_token_id=SPECIAL.index(EOS),
        pad_token_id=SPECIAL.index(PAD),
        **direction,
        use_cache=False,
        tie_word_embeddings=False,
    )
    model = LlamaModel(config)
    with torch.no_grad():
        model.embed_tokens.weight.copy_(table)
        model.embed_tokens.weight[: len(SPECIAL)].normal_(std=NEARLY_ZERO)
        for layer in cast("list[Any]", model.layers):
            attention, mlp = layer.self_attn, layer.mlp
            for inward in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
                torch.nn.init.normal_(inward.weight, std=recipe.hidden_size**-0.5)
            for outward in (attention.o_proj, mlp.down_proj):
                torch.nn.init.normal_(outward.weight, std=NEARLY_ZERO)
    return model
