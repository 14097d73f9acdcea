"""From texts to token ids, the same for every runtime: checked, cleaned, prompted, cut, with their ends in place."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer, normalizers
from tokenizers.processors import TemplateProcessing

from drama_models.errors import LengthError, ModelFolderError, TextError
from drama_models.model_folder import read_json, sentence_settings, tokenizer_arguments, tokenizer_file
from drama_models.surrogates import storable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from tokenizers import Encoding

    from drama_models.profile import Profile


LONGEST = 1 << 30  # tokens
CONFIG = "tokenizer_config.json"
LIKELY_CHARACTERS = 6  # of a token: a start of so many for each kept token nearly always holds them all


class TextTokenizer:
    """A folder's tokenizer, set up for its profile. Safe to call from many threads.

    Args:
        folder: model folder with `tokenizer.json`.
        profile: says whether BOS and EOS are set here.
        max_length: tokens kept of each text, its ends included.

    Raises:
        ModelFolderError: the tokenizer file is missing or damaged, or has no BOS or EOS where they are needed.
        LengthError: no whole number of tokens, or one that leaves no room between the ends.
    """

    def __init__(self, folder: Path, profile: Profile, max_length: int) -> None:
        self._tokenizer = load_tokenizer(folder, set_ends=profile.set_ends)
        max_length = checked_length(max_length, self._tokenizer.num_special_tokens_to_add(is_pair=False))
        self._cuts_starts = cuts_starts(folder)
        self._tokenizer.enable_truncation(max_length, direction="left" if self._cuts_starts else "right")
        self.max_length = max_length
        vocabulary = self._tokenizer.get_vocab()
        config = folder / "config.json"
        rows = read_json(config).get("vocab_size") if config.is_file() else None
        self._folder = folder
        self._rows = rows if isinstance(rows, int) and max(vocabulary.values(), default=0) >= rows else None
        longest_token = max([1, *map(len, vocabulary)])
        self._max_characters = 2 * max_length * longest_token  # nearly always enough to fill them
        added = self._tokenizer.get_added_tokens_decoder().values()
        self._longest_added = max((len(token.content) for token in added), default=0)
        by_words = self._tokenizer.pre_tokenizer is not None
        self._likely_characters = LIKELY_CHARACTERS * max_length if by_words else self._max_characters

    def encode(self, texts: Sequence[str], prompt: str = "") -> tuple[list[NDArray[np.int64]], int]:
        """Token ids of each text behind the prompt.

        Args:
            texts: any Unicode; see `checked_text` for what becomes of lone surrogates.
            prompt: put before every text.

        Returns:
            One array of ids for each text, int64, (T,), and the number of texts that were cut.
        """
        if self._cuts_starts:
            whole = self._tokenizer.encode_batch_fast([prompt + text for text in texts])
            encodings = dict(enumerate(whole))
        else:
            encodings = self._encode_as_far_as_kept(texts, prompt)
        cut = sum(bool(encoding.overflowing) for encoding in encodings.values())
        rows = (encodings[position].ids for position in range(len(texts)))
        return [np.array(row, dtype=np.int64) for row in rows], cut

    def _encode_as_far_as_kept(self, texts: Sequence[str], prompt: str) -> dict[int, Encoding]:
        """Encodings by position, of no more of each text than it takes to fill the kept tokens."""
        prepared = [prompt + text[: self._max_characters] for text in texts]
        encodings = self._encode_starts(prepared)
        remaining = [position for position in range(len(prepared)) if position not in encodings]
        found = self._tokenizer.encode_batch_fast([prepared[position] for position in remaining])
        encodings |= zip(remaining, found, strict=True)
        self._read_on(texts, prompt, encodings)
        return encodings

    def check(self, ids: Sequence[NDArray[np.int64]]) -> None:
        """Refuse tokens that the model's embedding has no row for; runtimes would fail each in its own way.

        Raises:
            ModelFolderError: the tokenizer is of a model with more tokens, and one of those is in a text.
        """
        if self._rows is None:
            return
        largest = max((int(row.max()) for row in ids if len(row)), default=0)
        if largest >= self._rows:
            raise ModelFolderError(
                f"{self._folder}: its tokenizer gives {self._tokenizer.id_to_token(largest)!r} the number {largest}, "
                f"and its embedding has {self._rows} rows; use weights and tokenizer of one model."
            )

    def _encode_starts(self, texts: Sequence[str]) -> dict[int, Encoding]:
        """Encodings of the long texts whose first characters already settle the kept tokens, by position.

        Words are tokenised one by one, so what stands before a whole word that is itself followed by another does not
        depend on the rest of the text, unless an added token of several words was cut in two. Reading only the start is
        several times faster on long documents.
        """
        long = [position for position, text in enumerate(texts) if len(text) > self._likely_characters]
        whole = self._likely_characters - self._longest_added  # characters that are in no token that was cut
        starts = self._tokenizer.encode_batch([texts[position][: self._likely_characters] for position in long])
        return {position: start for position, start in zip(long, starts, strict=True) if _is_settled(start, whole)}

    def _read_on(self, texts: Sequence[str], prompt: str, encodings: dict[int, Encoding]) -> None:
        """Replace encodings of starts that have room for more, though the text goes on.

        What a normaliser drops, such as blanks, is in no token, and a word of any length may be one unknown token.
        """
        read = self._max_characters
        while unfilled := [
            row for row, text in enumerate(texts) if len(text) > read and not encodings[row].overflowing
        ]:
            read *= 8
            found = self._tokenizer.encode_batch_fast([prompt + texts[row][:read] for row in unfilled])
            encodings |= zip(unfilled, found, strict=True)


def cuts_starts(folder: Path) -> bool:
    """Whether a folder's tokenizer keeps the end of a text that is too long, `truncation_side: left`."""
    settings = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    return (settings | tokenizer_arguments(folder)).get("truncation_side") == "left"


def load_tokenizer(folder: Path, *, set_ends: bool) -> Tokenizer:
    """A folder's tokenizer, without padding and truncation; in lower case where sentence-transformers' settings say so.

    Args:
        folder: with `tokenizer.json`, or the `vocab.txt` of an older BERT.
        set_ends: put BOS and EOS around every text; only EOS where tokenizer_config.json says `add_bos_token: false`.

    Raises:
        ModelFolderError: the file is missing or damaged, or has no BOS or EOS where they are needed.
    """
    path = tokenizer_file(folder)
    settings = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    try:
        tokenizer = _word_pieces(path, settings) if path.suffix == ".txt" else Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the Rust library raises bare Exception, and its panics are no Exception at all
        raise ModelFolderError(f"{path} is not a tokenizer file ({error}); fetch it again.") from None
    if sentence_settings(folder)[1].get("do_lower_case"):
        _lower_texts(tokenizer)
    if set_ends:
        put_ends(tokenizer, folder)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def put_ends(tokenizer: Tokenizer, folder: Path, *, needs_bos: bool = True) -> str:
    """Let a tokenizer put BOS and EOS around every text; only EOS where its folder says `add_bos_token: false`.

    Args:
        tokenizer: changed in place.
        folder: whose tokenizer_config.json, or config.json by number, names the ends.
        needs_bos: refuse a folder that names no BOS; else there is only EOS then.

    Returns:
        The EOS.

    Raises:
        ModelFolderError: there is no BOS or EOS where they are needed, or the tokenizer does not know one.
    """
    settings = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    eos = end_token(folder, tokenizer, settings, "eos_token")
    wanted = settings.get("add_bos_token") is not False
    has_bos = wanted and (needs_bos or _named_end(folder, tokenizer, settings, "bos_token") is not None)
    bos = end_token(folder, tokenizer, settings, "bos_token") if has_bos else None
    template = ["$A", eos] if bos is None else [bos, "$A", eos]
    numbers = {token: tokenizer.token_to_id(token) for token in (bos, eos) if token is not None}
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=list(numbers.items()))
    return eos


def _lower_texts(tokenizer: Tokenizer) -> None:
    """Take texts in lower case before all else, unless a step does that, exactly as sentence-transformers does."""
    own = tokenizer.normalizer
    steps = [own] if own is not None else []
    if isinstance(own, normalizers.Sequence):
        steps = list(own)  # type: ignore[call-overload]  # its stubs do not say that it can be walked
    if not any(isinstance(step, normalizers.Lowercase) for step in steps):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])


def _word_pieces(path: Path, settings: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a BERT folder that has only its vocabulary, with the defaults of transformers' own."""
    from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer
    from tokenizers.models import WordPiece

    wrapped = BertWordPieceTokenizer(
        WordPiece.read_file(str(path)),
        lowercase=settings.get("do_lower_case", True),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
    )
    return Tokenizer.from_str(wrapped.to_str())


def end_token(folder: Path, tokenizer: Tokenizer, settings: dict[str, Any], key: str) -> str:
    """BOS or EOS as tokenizer_config.json names it, else by the id in config.json, as transformers does.

    Raises:
        ModelFolderError: neither names one that the tokenizer knows.
    """
    token = _named_end(folder, tokenizer, settings, key)
    if not isinstance(token, str) or tokenizer.token_to_id(token) is None:
        raise ModelFolderError(
            f"{folder / CONFIG} names no {key} that tokenizer.json knows ({token!r}); fetch the folder again."
        )
    return token


def _named_end(folder: Path, tokenizer: Tokenizer, settings: dict[str, Any], key: str) -> Any:
    named = settings.get(key)
    if named is not None:
        return named.get("content") if isinstance(named, dict) else named
    number = read_json(folder / "config.json").get(f"{key}_id")
    number = number[0] if isinstance(number, list) else number
    return tokenizer.id_to_token(number) if isinstance(number, int) else None


def _is_settled(start: Encoding, whole: int) -> bool:
    """Whether a whole word lies between the kept tokens, within `whole` characters, and the last word that was read."""
    if not start.overflowing or max(end for _, end in start.offsets) > whole:
        return False
    return _last_word(start.overflowing[-1]) > _last_word(start) + 1


def _last_word(encoding: Encoding) -> int:
    return max((word for word in encoding.word_ids if word is not None), default=-1)


def checked_length(max_length: int, ends: int) -> int:
    """Tokens to keep of each text.

    Args:
        max_length: as it was asked for.
        ends: tokens that are put around every text; with no more than these the tokenizer would cut nothing.

    Raises:
        LengthError: no whole number, or one that leaves no room for a token of the text.
    """
    length = whole_number(max_length)
    if length is None or not ends < length <= LONGEST:
        raise LengthError(
            f"max_length={max_length!r} must be a whole number above {ends}, the tokens that are put around every "
            f"text, and at most {LONGEST}; leave it out for the model's own limit."
        )
    return length


def whole_number(value: object) -> int | None:
    """A whole number of any kind but a truth value as an int, else None."""
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def checked_text(value: object, position: int) -> str:
    """The value if it is text; surrogate pairs are joined, lone surrogates become U+FFFD.

    Raises:
        TextError: it is not a string; the message names the position, counted from 0.
    """
    if not isinstance(value, str):
        raise TextError(f"Text number {position} is {type(value).__name__}, not str; pass strings only.")
    return storable(value)
