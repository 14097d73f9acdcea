"""The kinds of index, with their settings: what each trades between memory, speed and recall.

    kind     answers         memory for a vector of D numbers   use it for
    flat     exact           4 D bytes, memory-mapped           some 100,000 documents, or where none may be missed
    int8     nearly exact    D bytes                            the same in a quarter of the memory
    binary   nearly exact    D / 8 bytes, and D or 4 D on disk  millions of documents without a build
    hnsw     nearly exact    4 D + 8 `links` bytes              the fastest search, where memory and build time allow
    ivf_pq   approximate     `code_bytes` + 8, and D on disk    more documents than fit into memory otherwise

Measured figures are in docs/search.md. Nothing here touches a vector.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast, get_args

from drama_models.errors import IndexKindError

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST = (1 << 31) - 1  # what faiss counts to
StoredPrecision = Literal["float32", "uint8", "none"]


@dataclass(frozen=True, kw_only=True)
class Flat:
    """Every vector as it is: exact. A search reads all of them, from memory or from the memory-mapped file."""

    name: ClassVar[str] = "flat"
    tunable: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True, kw_only=True)
class Int8:
    """Every coordinate in one byte, between the lowest and the highest value of its column; all are searched."""

    name: ClassVar[str] = "int8"
    tunable: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True, kw_only=True)
class Binary:
    """One bit a coordinate: the nearest by differing bits are scored again with vectors that stay on disk.

    Works where coordinates lie about zero and there are many of them, as embeddings of 256 and more do.
    """

    name: ClassVar[str] = "binary"
    tunable: ClassVar[tuple[str, ...]] = ("candidates",)

    candidates: int = 200
    """Documents scored again for each query, at least k; more cost reading and gain recall."""
    rescored_with: StoredPrecision = "uint8"
    """How vectors are kept on disk for that; "none" keeps bits only and ranks by the signs."""

    def __post_init__(self) -> None:
        _check_least("candidates", self.candidates, 1)
        _check_precision(self.rescored_with)


@dataclass(frozen=True, kw_only=True)
class HNSW:
    """A graph of near neighbours over the whole vectors (Malkov and Yashunin, 2016, arXiv 1603.09320)."""

    name: ClassVar[str] = "hnsw"
    tunable: ClassVar[tuple[str, ...]] = ("search_width",)

    links: int = 32
    """Neighbours of each document, twice as many at the lowest level; 8 bytes each."""
    build_width: int = 100
    """Documents looked at while one is added; the build takes time in proportion, and makes a better graph."""
    search_width: int = 64
    """Documents held while searching, at least k; time in proportion, and recall."""

    def __post_init__(self) -> None:
        _check_least("links", self.links, 2)
        _check_least("build_width", self.build_width, 1)
        _check_least("search_width", self.search_width, 1)


@dataclass(frozen=True, kw_only=True)
class IVFPQ:
    """Vectors in lists around centroids, each as the nearest of 256 patterns for every few coordinates.

    Jégou et al., 2011, "Product quantization for nearest neighbor search". The best are scored again with vectors that
    stay on disk.
    """

    name: ClassVar[str] = "ivf_pq"
    tunable: ClassVar[tuple[str, ...]] = ("probes", "candidates")

    lists: int | None = None
    """Lists that documents are dealt to; by default 4 √n, and no more than one for 39 documents."""
    code_bytes: int | None = None
    """Bytes of a code, a divisor of the vectors' size; about a quarter of it by default. Recall rises with it."""
    probes: int = 32
    """Lists that a query looks into; time in proportion, and recall."""
    candidates: int = 200
    """Documents scored again for each query, at least k."""
    rescored_with: StoredPrecision = "uint8"
    """How vectors are kept on disk for that; "none" keeps codes only."""
    training_vectors: int = 65_536
    """Vectors, drawn evenly, that centroids and patterns are learned from."""
    seed: int = 0
    """Of that draw."""

    def __post_init__(self) -> None:
        for name in ("lists", "code_bytes", "probes", "candidates", "training_vectors"):
            if (value := getattr(self, name)) is not None:
                _check_least(name, value, 1)
        _check_precision(self.rescored_with)


Kind = Flat | Int8 | Binary | HNSW | IVFPQ
KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in (Flat, Int8, Binary, HNSW, IVFPQ)}


def chosen_kind(kind: str | Kind, settings: Mapping[str, Any] | None = None) -> Kind:
    """A kind from its name and settings.

    Args:
        kind: "flat", "int8", "binary", "hnsw" or "ivf_pq"; or a kind with its settings.
        settings: field to value; text is read as the number that the field asks for.

    Raises:
        IndexKindError: no such kind or setting, or a value that it does not take.
    """
    if not isinstance(kind, str):
        return kind if not settings else _changed(kind, settings)
    if kind not in KINDS:
        raise IndexKindError(f"There is no index kind {kind!r}; choose one of: {', '.join(KINDS)}.")
    return _changed(KINDS[kind](), settings or {})


def tuned(kind: Kind, settings: Mapping[str, Any]) -> Kind:
    """A kind with other settings of its search.

    Raises:
        IndexKindError: a setting that the kind does not have, or that a finished index cannot change.
    """
    fixed = [name for name in settings if name not in kind.tunable]
    if fixed:
        able = ", ".join(kind.tunable) or "nothing"
        raise IndexKindError(
            f"A finished {kind.name} index can change {able}, not {fixed[0]}; build it again for that."
        )
    return _changed(kind, settings)


def settings_of(kind: Kind) -> dict[str, Any]:
    """Settings as a manifest keeps them."""
    return asdict(kind)


def _changed(kind: Kind, settings: Mapping[str, Any]) -> Kind:
    known = {field.name: field.default for field in fields(kind)}
    for name in settings:
        if name not in known:
            able = ", ".join(known) or "none"
            raise IndexKindError(f"The index kind {kind.name!r} has no setting {name!r}; it has: {able}.")
    values: dict[str, Any] = {
        name: value if name == "rescored_with" else _whole(name, value) for name, value in settings.items()
    }
    return cast("Kind", replace(cast(Any, kind), **values))


def _whole(name: str, value: object) -> int | None:
    if value is None:
        return None
    try:
        number = int(value)  # type: ignore[call-overload]  # text from the command line, or a number
    except (TypeError, ValueError, OverflowError):
        raise IndexKindError(f"{name}={value!r} must be a whole number.") from None
    if isinstance(value, bool) or (not isinstance(value, str) and number != value):
        raise IndexKindError(f"{name}={value!r} must be a whole number.")
    return number


def _check_least(name: str, value: int, least: int) -> None:
    if not least <= value <= MOST:
        raise IndexKindError(f"{name}={value} must be at least {least}, and no more than {MOST:,}.")


def _check_precision(value: str) -> None:
    *others, last = get_args(StoredPrecision)
    if value not in (*others, last):
        raise IndexKindError(f"rescored_with={value!r} must be {', '.join(others)} or {last}.")
