"""Folders laid out like published retrievers of other families, with the true classes and small random weights.

Files and settings are those of facebook/dragon-plus-*-encoder, BAAI/bge-en-icl and BAAI/bge-multilingual-gemma2.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2Model,
    MistralConfig,
    MistralModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tests.conftest import BOS, EOS, TEXTS

UNKNOWN = "<unk>"
WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query."
LAST_TOKEN = {"word_embedding_dimension": 32, "pooling_mode_lasttoken": True, "include_prompt": True}
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.2,
    "max_position_embeddings": 4096,
}


def write_dragon(folder: Path) -> tuple[Path, Path]:
    """Query and context encoder side by side: BERT, a vocab.txt, and nothing of sentence-transformers."""
    words = sorted({word for text in TEXTS for word in text.lower().replace(".", " . ").replace(",", " , ").split()})
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *words,
        *"abcdefghij",
        *(f"##{sign}" for sign in "abdegins"),
    ]
    folders = folder / "dragon-plus-query-encoder", folder / "dragon-plus-context-encoder"
    for seed, path in enumerate(folders):
        config = BertConfig(vocab_size=len(pieces), **(SMALL | {"max_position_embeddings": 64}))
        _save(BertModel(config), path, seed)
        (path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
        _write(path / "tokenizer_config.json", {"do_lower_case": True})
    return folders


def write_bge_en_icl(folder: Path) -> Path:
    """Mistral with three tags; the pooling is named, the normalisation is not; no prompts."""
    tokenizer = sentence_piece(["<instruct>", "<query>", "<response>"])
    config = MistralConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **SMALL)
    _save(MistralModel(config), folder, seed=2)
    _save_tokenizer(tokenizer, folder)
    _write_modules(folder, ["Transformer", "Pooling"])
    return folder


def write_bge_gemma2(folder: Path) -> Path:
    """Gemma 2 with two tags, and one named prompt that is not the default."""
    tokenizer = sentence_piece(["<instruct>", "<query>"])
    config = Gemma2Config(vocab_size=len(tokenizer), num_key_value_heads=2, head_dim=8, **SMALL)
    _save(Gemma2Model(config), folder, seed=3)
    _save_tokenizer(tokenizer, folder)
    _write_modules(folder, ["Transformer", "Pooling", "Normalize"])
    prompts = {"web_search_query": f"<instruct>{WEB_SEARCH}\n<query>"}
    _write(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None})
    return folder


def sentence_piece(tags: list[str]) -> PreTrainedTokenizerFast:
    """BPE over words that start with `▁`, as SentencePiece writes them; BOS in front, and no EOS."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[UNKNOWN, BOS, EOS], show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, WEB_SEARCH, "\n", *map(chr, range(33, 127))], trainer)
    tokenizer.add_special_tokens([AddedToken(tag, normalized=False) for tag in tags])
    tokenizer.post_processor = TemplateProcessing(single=[BOS, "$A"], special_tokens=[(BOS, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN, pad_token=UNKNOWN
    )


def _save(model: PreTrainedModel, folder: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0, 0.1, generator=generator))
    model.save_pretrained(folder)


def _save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    _write(path, settings | {"add_bos_token": True, "add_eos_token": True, "padding_side": "left"})


def _write_modules(folder: Path, names: list[str]) -> None:
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": number, "name": str(number), "path": paths[number], "type": f"sentence_transformers.models.{name}"}
        for number, name in enumerate(names)
    ]
    _write(folder / "modules.json", modules)
    _write(folder / "1_Pooling" / "config.json", LAST_TOKEN)


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
