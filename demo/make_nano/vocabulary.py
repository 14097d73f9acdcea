"""The tokenizer: whole lower-case words where a bag of tokens needs them, WordPiece for the rest.

A small encoder that begins as a bag of tokens lives on whole words, and on one entry for each: `RandomForest`,
`random_forest` and `random forest` become the same tokens. Entries are the frequent words of the documentation and, for
what people say about it, the most frequent entries of the teacher's vocabulary, which is sorted by frequency.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

BOS, EOS, PAD, UNKNOWN = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>", "<|unknown|>"
SPECIAL = (BOS, EOS, PAD, UNKNOWN)
INSIDE = "##"  # begins an entry that continues a word
HUMP = r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"  # where CamelCase goes on: random|Forest, HTTP|Server
WORD = re.compile(r"[a-z][a-z0-9]*")
TEACHER_ENTRY = re.compile(r"(##)?([a-z]+|[0-9]{1,2})")
MIN_COUNT = 6  # of a word of the documentation
LONGEST_WORD = 64  # characters; longer ones are unknown


def empty_tokenizer(entries: Sequence[str]) -> Tokenizer:
    """A WordPiece tokenizer over these entries, in this order; its ends are set by `training.start`."""
    numbers = {entry: number for number, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token=UNKNOWN, max_input_chars_per_word=LONGEST_WORD))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(HUMP), " "), normalizers.BertNormalizer()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def choose_entries(texts: Iterable[str], teacher_vocabulary: Path, *, size: int, document_words: int) -> list[str]:
    """Special tokens, single characters, words of the texts by frequency, then the teacher's entries up to `size`.

    Args:
        texts: what the retriever is for.
        teacher_vocabulary: `vocab.txt` of a BERT.
        size: number of entries.
        document_words: words of the texts, at most.
    """
    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    inside = [INSIDE + character for character in characters if character.isalnum()]
    splitter = empty_tokenizer(SPECIAL)
    counts: Counter[str] = Counter()
    for text in texts:
        cleaned = splitter.normalizer.normalize_str(text)
        counts.update(word for word, _ in splitter.pre_tokenizer.pre_tokenize_str(cleaned))
    frequent = [word for word, count in counts.most_common() if count >= MIN_COUNT and WORD.fullmatch(word)]
    taught = [line for line in read_vocabulary(teacher_vocabulary) if TEACHER_ENTRY.fullmatch(line)]
    entries = dict.fromkeys([*SPECIAL, *characters, *inside, *frequent[:document_words], *taught])
    return list(entries)[:size]


def read_vocabulary(path: Path) -> list[str]:
    """Entries of a `vocab.txt`, in order."""
    return path.read_text(encoding="utf-8").split("\n")  # some entries are themselves line ends to splitlines
