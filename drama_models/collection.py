"""Collections are BEIR folders: `corpus.jsonl` (`_id`, `title`, `text`), `queries.jsonl`, `qrels/SPLIT.tsv`.

Each file may be plain or `.gz`. Everything is checked while it is read; an error names the file and the line. Lone
surrogates in ids and texts are read as U+FFFD.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from drama_models.errors import CollectionError
from drama_models.folders import atomic_folder
from drama_models.seen import SeenStrings
from drama_models.surrogates import storable_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

QRELS_HEADER = ("query-id", "corpus-id", "score")


@dataclass(frozen=True)
class Document:
    """One document of a collection."""

    id: str
    title: str
    text: str

    @property
    def content(self) -> str:
        """Title and text joined by a space: what most models encode and what BM25 reads."""
        return self.joined(" ")

    def joined(self, separator: str) -> str:
        """Title and text with what a model was trained to read between them; see `Profile.title_separator`."""
        return f"{self.title}{separator if self.title else ' '}{self.text}".strip()


class Collection:
    """A BEIR folder, read lazily.

    Args:
        folder: the collection's folder.
        elsewhere: the documents are somewhere else: only queries and judgements are read, which may name any.

    Raises:
        CollectionError: the folder has no corpus file.
    """

    def __init__(self, folder: str | Path, *, elsewhere: bool = False) -> None:
        self.folder, self._elsewhere = Path(folder), elsewhere
        if not elsewhere:
            _ = self.corpus_file

    @property
    def corpus_file(self) -> Path:
        """Its `corpus.jsonl`, plain or `.gz`.

        Raises:
            CollectionError: it has none.
        """
        return self._file("corpus.jsonl")

    @property
    def queries_file(self) -> Path:
        """Its `queries.jsonl`, plain or `.gz`.

        Raises:
            CollectionError: it has none.
        """
        return self._file("queries.jsonl")

    def documents(self) -> Iterator[Document]:
        """The documents in file order, one at a time; only hashes of their ids are held in memory.

        Raises:
            CollectionError: broken line, missing field, or a document id that was there before.
        """
        for line, record in self._records(self.corpus_file):
            title, text = record.get("title") or "", record.get("text")
            if not isinstance(title, str) or not isinstance(text, str):
                raise CollectionError(f"{self.corpus_file}, line {line}: `title` and `text` must be strings.")
            yield Document(record["_id"], title, text)

    def records(self) -> Iterator[dict[str, Any]]:
        """The lines of the corpus as they are, with keys of their own; errors as of `documents`, but for the texts."""
        return (record for _, record in self._records(self.corpus_file))

    def count(self) -> int:
        """Number of lines of the corpus: the number of documents, once `documents` has found no fault."""
        with _open(self.corpus_file) as file:
            return sum(1 for _ in file)

    def queries(self) -> dict[str, str]:
        """Query text by id, in file order.

        Raises:
            CollectionError: no queries file, broken line, missing field or duplicate id.
        """
        path = self.queries_file
        queries = {}
        for line, record in self._records(path):
            if not isinstance(record.get("text"), str):
                raise CollectionError(f"{path}, line {line}: `text` must be a string.")
            queries[record["_id"]] = record["text"]
        return queries

    def qrels(self, split: str) -> dict[str, dict[str, int]]:
        """Judgements of a split: query id to document id to grade, the ids checked against queries and corpus.

        Where the documents are elsewhere, their ids are taken as they are.

        Raises:
            CollectionError: no such split (the message lists those there are), a malformed line, or an unknown id.
        """
        path = self._file(f"qrels/{split}.tsv", f"it has the splits: {', '.join(self.splits()) or 'none'}")
        known_queries = self.queries()
        known_documents = None if self._elsewhere else {record["_id"] for record in self.records()}
        qrels: dict[str, dict[str, int]] = {}
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                fields = line.decode("utf-8", "replace").rstrip("\r\n").split("\t")
                if tuple(fields) == QRELS_HEADER or not line.strip():
                    continue
                query, document, grade = _judgement(fields, path, number)
                if query not in known_queries:
                    raise CollectionError(
                        f"{path}, line {number}: query {query!r} must be in queries.jsonl; it is not."
                    )
                if known_documents is not None and document not in known_documents:
                    raise CollectionError(
                        f"{path}, line {number}: document {document!r} must be in corpus.jsonl; it is not."
                    )
                qrels.setdefault(query, {})[document] = grade
        return qrels

    def splits(self) -> list[str]:
        """Names of the splits that have judgements."""
        return sorted({path.name.partition(".")[0] for path in self.folder.glob("qrels/*.tsv*")})

    @staticmethod
    def write(
        folder: str | Path,
        documents: Iterable[Mapping[str, Any]],
        queries: Mapping[str, str] | None = None,
        qrels: Mapping[str, Mapping[str, Mapping[str, int]]] | None = None,
    ) -> Collection:
        """Write a collection folder, complete or not at all.

        Args:
            folder: where to.
            documents: mappings with `_id`, `title`, `text`; further keys such as `metadata` are kept.
            queries: text by id.
            qrels: split to query id to document id to grade.
        """
        with atomic_folder(folder) as partial:
            _write_lines(partial / "corpus.jsonl", documents)
            _write_lines(
                partial / "queries.jsonl", ({"_id": key, "text": text} for key, text in (queries or {}).items())
            )
            (partial / "qrels").mkdir()
            for split, judgements in (qrels or {}).items():
                rows = [(query, *pair) for query, graded in judgements.items() for pair in graded.items()]
                lines = ["\t".join(map(str, row)) + "\n" for row in (QRELS_HEADER, *rows)]
                (partial / "qrels" / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
        return Collection(folder)

    def _file(self, name: str, otherwise: str = "choose a folder with corpus.jsonl, queries.jsonl and qrels/") -> Path:
        for path in (self.folder / name, self.folder / f"{name}.gz"):
            if path.is_file():
                return path
        raise CollectionError(f"There is no {name} (or .gz) in {self.folder}; {otherwise}.")

    @staticmethod
    def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """Line number and object of every line, ids checked to be strings that occur once."""
        seen = SeenStrings()
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    record = storable_json(json.loads(line))
                except (ValueError, RecursionError) as error:
                    raise CollectionError(
                        f"{path}, line {number}: not valid JSON ({error}); each line must be one object in UTF-8."
                    ) from None
                key = record.get("_id") if isinstance(record, dict) else None
                if not isinstance(key, str):
                    raise CollectionError(f"{path}, line {number}: expected an object with a string `_id`.")
                if seen.add(key) and (first := _first_line(path, key)) < number:
                    raise CollectionError(
                        f"{path}, line {number}: id {key!r} was used in line {first}; ids must be unique."
                    )
                yield number, record


def _first_line(path: Path, key: str) -> int:
    """Number of the first line with this id, in a file that has one."""
    with _open(path) as file:
        return next(
            number
            for number, line in enumerate(file, start=1)
            if line.strip() and storable_json(json.loads(line))["_id"] == key
        )


def _judgement(fields: list[str], path: Path, number: int) -> tuple[str, str, int]:
    try:
        query, document, grade = fields
        return query, document, int(grade)
    except ValueError:
        raise CollectionError(
            f"{path}, line {number}: expected query id, document id and a whole-number grade, separated by tabs."
        ) from None


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path) if path.suffix == ".gz" else path.open("rb"))


def _write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
