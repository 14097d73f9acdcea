"""The tokenizer: the teacher's WordPiece with only those of its entries that documentation and English need.

A dropped entry is spelled with kept pieces, and every single character is kept, so no text is lost. Names are cut into
their words first: `RandomForest` is read as `random forest`, which the teacher's own tokenizer takes for one long word.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, normalizers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

HUMP = r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"  # where CamelCase goes on: random|Forest, HTTP|Server
INSIDE = "##"  # begins an entry that continues a word
FIRST_WORD = "the"  # a BERT's vocabulary lists unused entries, then characters, then words by their frequency
ZIPF_SHIFT = 10  # share of the r-th most frequent word in English, about 1 / (r + shift), up to a factor
ENGLISH = 0.5  # share of English at large in the text that entries are chosen for; the rest is documentation


def open_teacher_tokenizer(folder: Path) -> Tokenizer:
    """The teacher's tokenizer, with names cut into their words; no padding, no truncation."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(HUMP), " "), tokenizer.normalizer])
    return tokenizer


def choose_entries(tokenizer: Tokenizer, texts: Iterable[str], size: int) -> list[str]:
    """Entries to keep, in the teacher's order.

    Special tokens and single ASCII characters, then what is most frequent in a mixture of these texts and of English,
    whose frequencies are guessed from the order of the vocabulary.

    Args:
        tokenizer: the teacher's.
        texts: what the retriever is for.
        size: number of entries.
    """
    order = _in_order(tokenizer)
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update(tokenizer.encode(text, add_special_tokens=False).ids)
    total, start = max(sum(counts.values()), 1), order.index(FIRST_WORD) if FIRST_WORD in order else 0
    english = {entry: 1 / (rank + ZIPF_SHIFT) for rank, entry in enumerate(order[start:]) if entry.isascii()}
    english_total = sum(english.values())

    def share(number: int) -> float:
        guess = english.get(order[number], 0) / english_total
        return (1 - ENGLISH) * counts[number] / total + ENGLISH * guess

    ranked = sorted(range(len(order)), key=share, reverse=True)
    always = [entry for entry in order if entry in special or _is_character(entry)]
    kept = set(list(dict.fromkeys([*always, *(order[number] for number in ranked)]))[:size])
    return [entry for entry in order if entry in kept]


def trimmed_tokenizer(tokenizer: Tokenizer, entries: Sequence[str]) -> Tokenizer:
    """The same tokenizer over fewer entries, numbered anew in the order given."""
    stored = json.loads(tokenizer.to_str())
    number_of = {entry: number for number, entry in enumerate(entries)}
    stored["model"]["vocab"] = number_of
    for token in stored["added_tokens"]:
        token["id"] = number_of[token["content"]]
    for token, settings in stored["post_processor"]["special_tokens"].items():
        settings["ids"] = [number_of[token]]
    return Tokenizer.from_str(json.dumps(stored))


def rows_of(tokenizer: Tokenizer, entries: Sequence[str]) -> list[int]:
    """The teacher's number of each entry."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[entry] for entry in entries]


def _in_order(tokenizer: Tokenizer) -> list[str]:
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _is_character(entry: str) -> bool:
    return entry.isascii() and len(entry.removeprefix(INSIDE)) == 1
