"""The encoder: tokenizer, profile and runtime as one object that turns texts into unit vectors."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from drama_models.arguments import checked_choice, checked_dim, checked_limit, checked_samples, checked_texts
from drama_models.batching import budget_batches, windows
from drama_models.errors import ModelFolderError, TextsCutWarning
from drama_models.folders import read_whole
from drama_models.integrity import check_settings, check_weights
from drama_models.layout import find_folders, find_layouts
from drama_models.model_folder import ONNX_GRAPH, fingerprint
from drama_models.pooling import finish
from drama_models.profile import Profile
from drama_models.prompts import InContextPrompter, choose_examples, choose_prompt, examples_prefix
from drama_models.runtimes.choice import Precision, RuntimeName, load_runtime, reads_graph_file
from drama_models.tokenisation import TextTokenizer, checked_text, load_tokenizer
from drama_models.warn import warn_caller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from drama_models.collection import Document
    from drama_models.layout import EncoderLayout
    from drama_models.prompts import InContextExample
    from drama_models.runtimes import Runtime

    Tokenisation = Callable[[list[str]], tuple[list[NDArray[np.int64]], int]]
    """Texts to their token ids, and the number of texts that were cut."""

WINDOW_TEXTS = 4096  # sorted by length together; also what a streaming call holds in memory


class Encoder:
    """Encodes queries and documents with one model folder. Build it with `Encoder.from_pretrained`."""

    def __init__(
        self,
        layout: EncoderLayout,
        profile: Profile,
        tokenizer: TextTokenizer,
        runtime: Runtime,
        dim: int | None = None,
        document_encoder: Encoder | None = None,
    ) -> None:
        self.layout, self.folder, self.profile, self.runtime = layout, layout.root, profile, runtime
        self.document_encoder = document_encoder or self
        self._tokenizer = tokenizer
        self.dim = checked_dim(dim, profile)
        self.again: Callable[[], Encoder] = partial(_cannot_load_again, self.folder)
        """Loads its like, in another process too."""

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        document_model: str | Path | None = None,
        runtime: RuntimeName = "auto",
        dim: int | None = None,
        max_length: int | None = None,
        precision: Precision = "auto",
        sample_texts: Sequence[str] | None = None,
        device: str | None = None,
        threads: int | None = None,
        compile: bool = False,  # noqa: A002
        batch_tokens: int | None = None,
        revision: str | None = None,
        verify: bool = True,
    ) -> Encoder:
        """Load an encoder from a folder or from the hub.

        Args:
            model: folder of a release, of a trained retriever, or laid out like a published model such as
                `facebook/drama-base` or `BAAI/bge-en-icl`; or a hub name.
            document_model: folder or hub name of the document encoder, where it is not in `model`. One of two folders
                called `…-query-encoder` and `…-context-encoder` finds the other by itself.
            runtime: "torch"; "onnx", straight from the safetensors of a Llama or a BERT, else from `onnx/model.onnx`;
                "onnx-file", from that file in any case; "openvino", from the safetensors of a Llama; or "auto": torch
                for a GPU, OpenVINO or torch for bf16, else ONNX where it can run the folder, else torch.
                `encoder.runtime.description` says what was chosen.
            dim: coordinates to keep, cut before normalising; by default the folder's `truncate_dim`, else all.
            max_length: tokens kept of each text, its ends included; the model's own limit by default.
            precision: "fp32", "bf16" (torch, OpenVINO), "fp16" (torch), or "int8" (ONNX from safetensors); "auto" is
                exact, so fp32.
            sample_texts: documents that int8 is calibrated and measured on; built-in ones in eleven scripts by default.
            device: for torch, such as "cuda"; a GPU if there is one by default.
            threads: of one call of ONNX Runtime or OpenVINO; by default the environment's DRAMA_THREADS, else every
                core.
            compile: let torch.compile fuse what is between matrix products; needs a C++ compiler, and seconds at first.
            batch_tokens: tokens computed at a time; by default what the runtime was fastest with (1,024 on a CPU). More
                take more memory, and on a GPU or many cores may be faster.
            revision: branch, tag or commit on the hub.
            verify: compare the files with the hashes in the folder's `provenance.json`, if it has one. The first time
                this reads all weights, about a second for each GiB; see `drama_models.integrity`.

        Raises:
            ModelFolderError: the folder is incomplete, damaged, cannot be found, or is replaced each time it is opened.
            AttentionDirectionError: its attention direction cannot be honoured.
            DimensionError: `dim` is no whole number, below 1 or above the hidden size.
            LengthError: `max_length` leaves no room for a text.
            MissingExtraError: the runtime's packages are not installed.
            DeviceError: no such runtime or precision, the runtime does not have this device or precision, or `threads`
                or `batch_tokens` is below 1.
            PrecisionError: int8 would lose too much on this model.
            TextError: a sample text is not text.
        """
        checked_choice("runtime", runtime, get_args(RuntimeName))
        checked_choice("precision", precision, get_args(Precision))
        sample_texts = checked_samples(sample_texts)
        computing: dict[str, Any] = {"runtime": runtime, "precision": precision, "sample_texts": sample_texts}
        computing |= {"device": device, "threads": threads, "compile": compile}
        computing |= {"batch_tokens": batch_tokens}
        folders = [folder for folder in find_folders(model, document_model, revision) if folder is not None]
        load = partial(cls._of_folders, folders, dim, max_length, computing, verify=verify)
        encoder = read_whole(folders, load, ModelFolderError)
        settings: dict[str, Any] = {"dim": dim, "max_length": max_length, "revision": revision, "verify": verify}
        settings |= {"document_model": document_model and _from_anywhere(document_model)}
        encoder.again = partial(cls.from_pretrained, _from_anywhere(model), **settings, **computing)
        return encoder

    @classmethod
    def _of_folders(
        cls,
        folders: Sequence[Path],
        dim: int | None,
        max_length: int | None,
        computing: dict[str, Any],
        *,
        verify: bool,
    ) -> Encoder:
        """The encoder in one folder, or that of queries and that of documents in two."""
        if verify:
            check_settings(*folders)
        query, document = find_layouts(*folders)
        runtime = computing["runtime"]
        for layout in {query, document} if verify else ():
            graph = ONNX_GRAPH if reads_graph_file(layout.backbone, runtime) else None
            check_weights(layout.root, layout.backbone, graph=graph)
        document_encoder = None if query is document else cls._load(document, dim, max_length, computing)
        encoder = cls._load(query, dim, max_length, computing, document_encoder)
        sizes = encoder.profile.hidden_size, encoder.document_encoder.profile.hidden_size
        if sizes[0] != sizes[1]:
            raise ModelFolderError(
                f"{query.backbone} makes vectors of {sizes[0]} numbers and {document.backbone} of {sizes[1]}; "
                "pass the two encoders of one model."
            )
        return encoder

    @classmethod
    def _load(
        cls,
        layout: EncoderLayout,
        dim: int | None,
        max_length: int | None,
        computing: dict[str, Any],
        document_encoder: Encoder | None = None,
    ) -> Encoder:
        folder, profile = layout.backbone, Profile.of(layout)
        checked_dim(dim, profile, quiet=True)  # before anything large is read
        tokenizer = TextTokenizer(folder, profile, checked_limit(max_length, profile))

        def sample_ids(texts: Sequence[str]) -> list[NDArray[np.int64]]:
            ids, _ = tokenizer.encode(texts, profile.document_prompt)
            tokenizer.check(ids)
            return ids

        runtime = load_runtime(folder, profile, sample_ids, **computing)
        return cls(layout, profile, tokenizer, runtime, dim, document_encoder)

    def encode_queries(
        self,
        queries: str | Iterable[str],
        *,
        task: str | None = None,
        examples: Iterable[InContextExample | Mapping[str, str]] | None = None,
        instruction: str | None = None,
        dim: int | None = None,
        show_progress: bool = False,
    ) -> NDArray[np.float32]:
        """Embed queries, each behind the profile's query prompt or that of a task.

        Args:
            queries: one text, a list, or any iterable.
            task: name of one of the profile's prompts, which may have examples stored with it. A sentence is taken as
                the instruction, where the model reads one.
            examples: solved examples of the task, put before every query: mappings with `query`, `response` and, where
                it is not the task's, `instruct`. Those of the profile by default; an empty list for none.
            instruction: the task in words, instead of the prompt's, for a model that reads one.
            dim: coordinates to keep, overriding the encoder's.
            show_progress: a progress bar on the terminal.

        Returns:
            (number of queries, dim), float32, in input order; rows of length 1 where the profile normalises. A single
            text gives one row.

        Raises:
            TextError: something that is not a string; the message names its position.
            PromptError: a task, instruction or examples that the model has no format for.
            DimensionError: `dim` is below 1 or above the hidden size.
        """
        tokenise = self._query_tokenisation(task, instruction, examples)
        return self._encode(queries, tokenise, self._size(dim), show_progress=show_progress)

    def encode_documents(
        self, documents: str | Iterable[str], *, dim: int | None = None, show_progress: bool = False
    ) -> NDArray[np.float32]:
        """Embed documents, each behind the profile's document prompt; arguments and result as of `encode_queries`."""
        encoder, size = self.document_encoder, self._size(dim)
        return encoder._encode(documents, encoder._document_tokenisation(), size, show_progress=show_progress)

    def stream_documents(self, documents: Iterable[str], *, dim: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Embed documents window by window, in constant memory however many there are.

        Yields:
            (up to 4096, dim), float32, in input order.
        """
        encoder, size = self.document_encoder, self._size(dim)
        return encoder._stream(documents, encoder._document_tokenisation(), size)

    def content_of(self, document: Document) -> str:
        """What is encoded of a document of a collection: title and text as the model was trained to read them."""
        return document.joined(self.document_encoder.profile.title_separator)

    @property
    def max_length(self) -> int:
        """Tokens kept of each text, its ends included."""
        return self._tokenizer.max_length

    def tokenise(self, text: str, *, query: bool = False, task: str | None = None) -> tuple[NDArray[np.int64], bool]:
        """Token ids of one text behind its prompt, for `pooled`, and whether it was cut; whoever serves needs both.

        Args:
            text: a query, or a document.
            query: which of the two. Ids of documents belong to `document_encoder`.
            task: as of `encode_queries`.

        Raises:
            PromptError: a task that the model has no prompt for.
            ModelFolderError: the tokenizer has tokens that the model lacks.
        """
        encoder = self if query else self.document_encoder
        tokenise = self._query_tokenisation(task, None, None) if query else encoder._document_tokenisation()
        ids, cut = tokenise([checked_text(text, 0)])
        encoder._tokenizer.check(ids)
        return ids[0], bool(cut)

    def pooled(self, ids: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Pooled vectors of texts by their token ids, computed in batches of a good size.

        Returns:
            (number of texts, hidden size), float32, in the order of `ids`; neither cut nor normalised.
        """
        pooled = np.empty((len(ids), self.profile.hidden_size), dtype=np.float32)
        lengths = [len(row) for row in ids]
        for batch in budget_batches(lengths, self.runtime.batch_tokens, packed=self.runtime.packed):
            pooled[batch] = self.runtime.embed([ids[position] for position in batch])
        return pooled

    def finished(self, pooled: NDArray[np.float32], dim: int | None = None) -> NDArray[np.float32]:
        """Embeddings from pooled vectors: cut to `dim`, then normalised where the model does; (n, dim), float32."""
        size = self.dim if dim is None else dim
        return np.asarray(finish(pooled, size, normalise=self.profile.normalise), dtype=np.float32)

    def fingerprint(self) -> str:
        """SHA-256 of what decides in which space vectors lie: configuration, tokenizer, weights, pooling, prompt.

        The prompt is that of documents: queries may be asked in other words. The same for every runtime of a folder.
        """
        both = (self, self.document_encoder)
        settings = [(one.profile.pooling, one.profile.normalise) for one in both]
        documents = self.document_encoder.profile
        told = [settings, documents.document_prompt, documents.title_separator]
        backbones = [fingerprint(one.layout.backbone) for one in both]
        return hashlib.sha256(json.dumps([backbones, *told]).encode()).hexdigest()

    def _size(self, dim: int | None) -> int:
        return self.dim if dim is None else checked_dim(dim, self.profile)

    def _document_tokenisation(self) -> Tokenisation:
        return partial(self._tokenizer.encode, prompt=self.profile.document_prompt)

    def _query_tokenisation(
        self,
        task: str | None,
        instruction: str | None,
        examples: Iterable[InContextExample | Mapping[str, str]] | None,
    ) -> Tokenisation:
        profile, tags = self.profile, self.profile.instruct
        if instruction is None and task and tags and task not in profile.prompts and len(task.split()) > 1:
            task, instruction = None, task
        prompt = choose_prompt(profile, task, instruction)
        chosen = choose_examples(profile, task, examples)
        if tags is None or tags.response is None:
            return partial(self._tokenizer.encode, prompt=prompt)
        prefix = examples_prefix(chosen, prompt, tags)
        return InContextPrompter(self._untruncated, tags, prompt, prefix, self._tokenizer.max_length).encode

    @cached_property
    def _untruncated(self) -> Tokenizer:
        return load_tokenizer(self.layout.backbone, set_ends=self.profile.set_ends)

    def _encode(
        self, texts: str | Iterable[str], tokenise: Tokenisation, size: int, *, show_progress: bool
    ) -> NDArray[np.float32]:
        if isinstance(texts, str) and not show_progress:
            (rows,) = self._stream([texts], tokenise, size)
            return rows  # a single text: no bar to set up, nothing to join
        given = checked_texts(texts)
        stream = self._stream(given, tokenise, size)
        if show_progress:
            stream = _with_progress(stream, len(given) if isinstance(given, list | tuple) else None)
        pieces = list(stream)
        return np.concatenate(pieces) if pieces else np.empty((0, size), dtype=np.float32)

    def _stream(self, texts: Iterable[str], tokenise: Tokenisation, dim: int) -> Iterator[NDArray[np.float32]]:
        checked = (checked_text(text, position) for position, text in enumerate(texts))
        cut = 0
        for window in windows(checked, WINDOW_TEXTS):
            ids, cut_here = tokenise(window)
            self._tokenizer.check(ids)
            cut += cut_here
            yield self.finished(self.pooled(ids), dim)
        if cut:
            warn_caller(TextsCutWarning(cut))


def _with_progress(pieces: Iterator[NDArray[np.float32]], total: int | None) -> Iterator[NDArray[np.float32]]:
    """The same pieces, and a bar on a terminal that counts their rows."""
    from tqdm import tqdm  # takes as long to load as ONNX Runtime

    with tqdm(total=total, desc="encode", unit=" texts", disable=None) as bar:
        for piece in pieces:
            yield piece
            bar.update(len(piece))


def _from_anywhere(model: str | Path) -> str:
    """A folder's path from the root, for a process that works elsewhere; a hub name stays what it is."""
    return str(Path(model).absolute()) if Path(model).exists() else str(model)


def _cannot_load_again(folder: Path) -> Encoder:
    raise ModelFolderError(f"The encoder of {folder} was not made with Encoder.from_pretrained; load it with that.")
