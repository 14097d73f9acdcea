"""What callers ask an encoder for, checked before anything is loaded or computed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from drama_models.errors import DeviceError, DimensionError, LengthError, PrecisionError, TextError
from drama_models.tokenisation import checked_text, whole_number
from drama_models.warn import warn_caller

if TYPE_CHECKING:
    from collections.abc import Sequence

    from drama_models.profile import Profile


def checked_dim(dim: int | None, profile: Profile, *, quiet: bool = False) -> int:
    """A usable embedding size; None stands for the model's own default.

    Args:
        dim: coordinates to keep.
        profile: of the model.
        quiet: do not warn of a size that was not trained.

    Raises:
        DimensionError: no whole number, below 1 or above the hidden size. A size that was not trained only warns.
    """
    if dim is None:
        return min(profile.default_dim or profile.hidden_size, profile.hidden_size)
    trained = ", ".join(map(str, profile.dims)) or f"{profile.hidden_size} (the folder names no smaller ones)"
    size = whole_number(dim)
    if size is None or not 1 <= size <= profile.hidden_size:
        raise DimensionError(
            f"dim={dim!r} must be a whole number between 1 and {profile.hidden_size}; trained sizes: {trained}."
        )
    if not quiet and profile.dims and size not in profile.dims:
        warn_caller(f"dim={dim} was not trained; quality may drop. Trained sizes: {trained}.")
    return size


def checked_hits(k: int) -> int:
    """A usable number of hits.

    Raises:
        ValueError: no whole number, or below 1.
    """
    hits = whole_number(k)
    if hits is None or hits < 1:
        raise ValueError(f"k={k!r} must be a whole number of at least 1.")
    return hits


def checked_limit(max_length: int | None, profile: Profile) -> int:
    """Tokens to keep of each text; None stands for the model's own limit. `TextTokenizer` refuses too few.

    Raises:
        LengthError: more than the model has position embeddings for.
    """
    if max_length is None:
        return profile.max_length
    length = whole_number(max_length)
    if profile.most_tokens is not None and length is not None and length > profile.most_tokens:
        raise LengthError(
            f"max_length={max_length} is beyond the {profile.most_tokens} positions that this model has embeddings "
            "for; leave it out, or split texts into passages."
        )
    return max_length


def checked_samples(texts: Sequence[str] | None) -> list[str] | None:
    """Documents to calibrate on; None stands for the built-in ones.

    Raises:
        PrecisionError: an empty list, on which nothing can be measured.
        TextError: something that is not text.
    """
    if texts is None:
        return None
    samples = [checked_text(text, position) for position, text in enumerate(checked_texts(texts))]
    if not samples:
        raise PrecisionError("sample_texts is empty, so nothing could be measured; pass documents, or leave it out.")
    return samples


def checked_texts(texts: object) -> Iterable[Any]:
    """What is to be encoded, as an iterable; its members are checked when they are read.

    Raises:
        TextError: neither text nor an iterable of texts.
    """
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, bytes | bytearray) or not isinstance(texts, Iterable):
        raise TextError(f"Expected a text or an iterable of texts, found {type(texts).__name__}; pass strings only.")
    return texts


def checked_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse what is not one of the choices.

    Raises:
        DeviceError: naming them.
    """
    if value not in choices:
        raise DeviceError(f"{name}={value!r} must be one of {', '.join(choices)}.")
