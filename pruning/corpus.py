"""Text for language modelling: domains of documents, tokenised once into memory-mapped files.

A text corpus is a folder with one sub-folder a domain, each holding `.jsonl` (field `text`), `.txt` or `.parquet`
files, the first two also as `.gz`. Files called `held_out*` are kept for evaluation; a domain without one gives its
last percent of documents. Every document becomes BOS + tokens + EOS; documents are laid end to end and cut to the
sequence length where they are read, as in LLM-Shearing. Text is streamed: memory does not grow with the corpus.
"""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from drama_models.errors import CorpusError, ModelFolderError
from drama_models.folders import atomic_folder, sha256_of_file
from drama_models.model_folder import read_json
from pruning.documents import SUFFIXES, read_documents

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

MANIFEST, SPLITS = "manifest.json", ("train", "held_out")
HELD_OUT_SHARE = 100  # one document in this many, where no file is named held_out*
DOCUMENTS_PER_BATCH = 512


@dataclass(frozen=True)
class Split:
    """Size of one tokenised file."""

    tokens: int
    documents: int
    text_bytes: int
    """UTF-8 bytes of the text, for bits per byte; BOS and EOS count as tokens but have no bytes."""


@dataclass(frozen=True)
class Corpus:
    """A tokenised corpus on disk: for each domain `train.bin` and `held_out.bin`, flat unsigned integers."""

    folder: Path
    dtype: str
    vocab_size: int
    """Every token is below it."""
    tokenizer_sha256: str
    bos_token_id: int
    """First token of every document."""
    domains: dict[str, dict[str, Split]]

    @classmethod
    def open(cls, folder: str | Path) -> Corpus:
        """Open what `tokenise` made.

        Raises:
            CorpusError: there is no tokenised corpus in this folder, or it is damaged.
        """
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise CorpusError(f"{folder} is not a tokenised corpus; run `python -m pruning tokenise` to make one.")
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            domains = {
                name: {split: Split(*(int(splits[split][field.name]) for field in fields(Split))) for split in SPLITS}
                for name, splits in manifest["domains"].items()
            }
            dtype, bos = manifest["dtype"], int(manifest["bos_token_id"])
            vocab_size = int(manifest.get("vocab_size", np.iinfo(dtype).max + 1))  # older manifests do not have it
            corpus = cls(Path(folder), dtype, vocab_size, manifest["tokenizer_sha256"], bos, domains)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise CorpusError(f"{path} is damaged; run `python -m pruning tokenise` again.") from None
        corpus._check_sizes()
        return corpus

    def _check_sizes(self) -> None:
        for domain, splits in self.domains.items():
            for name, split in splits.items():
                path, announced = self._tokens_file(domain, name), split.tokens * np.dtype(self.dtype).itemsize
                if not path.is_file():
                    raise CorpusError(f"{path} is missing; run `python -m pruning tokenise` again.")
                if path.stat().st_size != announced:
                    raise CorpusError(
                        f"{path} has {path.stat().st_size:,} bytes where {MANIFEST} announces {announced:,}; "
                        "run `python -m pruning tokenise` again."
                    )

    def _tokens_file(self, domain: str, split: str) -> Path:
        return self.folder / domain / f"{split}.bin"

    def sequences(self, domain: str, split: str, length: int) -> NDArray[np.unsignedinteger]:
        """All whole sequences of a split, memory-mapped, shape (number of sequences, length).

        Raises:
            CorpusError: the split is shorter than one sequence.
        """
        tokens = self.domains[domain][split].tokens
        if tokens < length:
            raise CorpusError(
                f"Domain {domain!r} has {tokens} {split} tokens, less than one sequence of {length}; "
                "add text or set a shorter sequence_length."
            )
        flat = np.memmap(self._tokens_file(domain, split), dtype=self.dtype, mode="r")
        return flat[: tokens // length * length].reshape(-1, length)

    def check_tokens(self, row: NDArray[np.unsignedinteger]) -> None:
        """Refuse a sequence with a token that the model has no embedding for.

        Args:
            row: of `sequences`, (length,).

        Raises:
            CorpusError: there is one; the file changed since it was written.
        """
        if row.max() >= self.vocab_size:
            raise CorpusError(
                f"{self.folder} is damaged: there is a token {row.max()} where vocab_size is {self.vocab_size}; "
                "run `python -m pruning tokenise` again."
            )

    def check_tokenizer(self, model: str | Path) -> None:
        """Refuse a model whose tokenizer is not the one that made this corpus.

        Raises:
            CorpusError: it is another one; token ids would mean other text.
            ModelFolderError: the folder has none.
        """
        if sha256_of_file(_file_of(model, "tokenizer.json")) != self.tokenizer_sha256:
            raise CorpusError(
                f"{self.folder} was tokenised with another tokenizer than that of {model}; "
                f"run `python -m pruning tokenise` again with this model."
            )


def tokenise(text: str | Path, model: str | Path, out: str | Path) -> Corpus:
    """Tokenise a folder of text domains with a model's tokenizer.

    Args:
        text: folder with one sub-folder a domain.
        model: folder with `tokenizer.json` and `config.json` (vocabulary size, BOS and EOS).
        out: folder to make.

    Raises:
        CorpusError: no domain, an empty domain, a file or line that cannot be read, or a tokenizer larger than the
            model's vocabulary.
        ModelFolderError: configuration or tokenizer are missing or damaged, or there is no BOS or EOS.
    """
    path = _file_of(model, "config.json")
    config = read_json(path)
    if "vocab_size" not in config:
        raise ModelFolderError(f"{path} has no vocab_size; pass the folder of a language model.")
    vocab_size, ends = config["vocab_size"], _ends_of(path, config)
    tokenizer = _load_tokenizer(_file_of(model, "tokenizer.json"))
    entries = max(tokenizer.get_vocab().values(), default=-1) + 1
    if entries > vocab_size:
        raise CorpusError(
            f"The tokenizer of {model} has {entries} entries, its model only {vocab_size}; use the tokenizer that "
            "belongs to the model."
        )
    names = sorted(path.name for path in Path(text).iterdir() if path.is_dir()) if Path(text).is_dir() else []
    if not names:
        raise CorpusError(f"{text} has no domains; pass a folder with one sub-folder of text files for each domain.")
    dtype = "uint16" if vocab_size <= np.iinfo(np.uint16).max else "uint32"
    domains = {}
    with atomic_folder(out) as partial:
        for name in names:
            (partial / name).mkdir()
            domains[name] = _tokenise_domain(Path(text) / name, tokenizer, ends, dtype, partial / name)
        manifest = {
            "dtype": dtype,
            "vocab_size": vocab_size,
            "tokenizer_sha256": sha256_of_file(_file_of(model, "tokenizer.json")),
            "bos_token_id": ends[0],
            "domains": {
                name: {key: asdict(split) for key, split in splits.items()} for name, splits in domains.items()
            },
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return Corpus.open(out)


def _ends_of(path: Path, config: Mapping[str, Any]) -> tuple[int, int]:
    """BOS and EOS of a configuration; the first of several EOS, which in Llama 3 is that of a text."""
    ends = []
    for name in ("bos_token_id", "eos_token_id"):
        number = config.get(name)
        number = number[0] if isinstance(number, list) and number else number
        if not isinstance(number, int) or not 0 <= number < config["vocab_size"]:
            raise ModelFolderError(
                f"{path}: {name} is {number!r} and must be a token below vocab_size={config['vocab_size']}: "
                "documents start with BOS and end with EOS; set it."
            )
        ends.append(number)
    return ends[0], ends[1]


def _load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a file, which neither cuts nor pads, whatever was saved with it."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the Rust library raises bare Exception, and its panics are no Exception at all
        raise ModelFolderError(f"{path} is not a tokenizer file ({error}); fetch it again.") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # what looks like a special token in a text is text
    return tokenizer


def _file_of(model: str | Path, name: str) -> Path:
    path = Path(model) / name
    if not path.is_file():
        raise ModelFolderError(f"{model} has no {name}; pass a model folder with its tokenizer.")
    return path


def _tokenise_domain(
    folder: Path, tokenizer: Tokenizer, ends: tuple[int, int], dtype: str, out: Path
) -> dict[str, Split]:
    files = sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES))
    held_out_files = [path for path in files if path.name.startswith("held_out")]
    train_files = [path for path in files if path not in held_out_files]
    if not train_files:
        raise CorpusError(f"Domain folder {folder} has no text; it needs {', '.join(SUFFIXES)} files.")
    train = _write_tokens(train_files, tokenizer, ends, dtype, out / "train")
    if held_out_files:
        held_out = _write_tokens(held_out_files, tokenizer, ends, dtype, out / "held_out")
    else:
        train, held_out = _move_last_documents(out, dtype)
    (out / "train.ends").unlink()
    (out / "held_out.ends").unlink(missing_ok=True)
    if not train.documents:
        has = "no training text" if held_out_files or not held_out.documents else "one document, which is held out"
        raise CorpusError(f"Domain folder {folder} has {has}; add documents to its files.")
    return {"train": train, "held_out": held_out}


def _write_tokens(files: list[Path], tokenizer: Tokenizer, ends: tuple[int, int], dtype: str, out: Path) -> Split:
    """Write `OUT.bin`, the tokens, and `OUT.ends`: after each document, how many tokens and bytes of text there are."""
    bos, eos = ends
    tokens = text_bytes = count = 0
    documents = (document for path in files for document in read_documents(path) if document.strip())
    with (
        out.with_suffix(".bin").open("wb") as token_file,
        out.with_suffix(".ends").open("wb") as end_file,
        tqdm(desc=f"tokenise {out.parent.name}/{out.name}", unit=" documents", disable=None) as progress,
    ):
        while batch := list(itertools.islice(documents, DOCUMENTS_PER_BATCH)):
            encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            for document, encoding in zip(batch, encodings, strict=True):
                ids = np.array([bos, *encoding.ids, eos], dtype=dtype)
                tokens, text_bytes, count = tokens + len(ids), text_bytes + len(document.encode()), count + 1
                token_file.write(ids.tobytes())
                end_file.write(np.array([tokens, text_bytes], dtype=np.uint64).tobytes())
            progress.update(len(batch))
    return Split(tokens, count, text_bytes)


def _move_last_documents(out: Path, dtype: str) -> tuple[Split, Split]:
    """Move the last percent of a domain's documents from `train.bin` to `held_out.bin`."""
    path = out / "train.ends"
    if not path.stat().st_size:
        return Split(0, 0, 0), Split(0, 0, 0)
    ends = np.memmap(path, dtype=np.uint64, mode="r").reshape(-1, 2)
    cut = len(ends) - max(1, len(ends) // HELD_OUT_SHARE)
    (tokens, text_bytes), (all_tokens, all_bytes) = (ends[cut - 1] if cut else (0, 0)), ends[-1]
    train, whole = Split(int(tokens), cut, int(text_bytes)), Split(int(all_tokens), len(ends), int(all_bytes))
    with (out / "train.bin").open("r+b") as file, (out / "held_out.bin").open("wb") as held_out:
        file.seek(train.tokens * np.dtype(dtype).itemsize)
        shutil.copyfileobj(file, held_out)
        file.truncate(train.tokens * np.dtype(dtype).itemsize)
    moved = (getattr(whole, name) - getattr(train, name) for name in ("tokens", "documents", "text_bytes"))
    return train, Split(*moved)
