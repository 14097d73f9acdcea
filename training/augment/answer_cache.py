"""Answers of a large model, kept on disk under the hash of their request: what was paid for is not asked for again."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict, dataclass
from pathlib import Path

from drama_models.errors import EndpointError


@dataclass(frozen=True)
class Answer:
    """What the model said."""

    text: str
    finish_reason: str
    prompt_tokens: int
    answer_tokens: int


class AnswerCache:
    """Answers by the hash of their request, in one SQLite file that survives a kill at any moment.

    Raises:
        EndpointError: the file is something else, or cannot be read or written; so do its methods.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=60)
        except sqlite3.Error as error:
            raise EndpointError(f"{path} cannot hold answers ({error}); name a file that can be written.") from None
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, answer TEXT)")
        except sqlite3.OperationalError as error:  # no room, or not to be written
            self._database.close()
            raise self._error(error) from None
        except sqlite3.DatabaseError:
            self._database.close()
            raise EndpointError(f"{path} is no cache of answers; remove it, or name another file.") from None

    def get(self, key: str) -> Answer | None:
        """The answer to a request, None where there is none yet."""
        try:
            row = self._database.execute("SELECT answer FROM answers WHERE request = ?", (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            raise self._error(error) from None
        return Answer(**json.loads(row[0])) if row else None

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer; it is on disk when this returns."""
        try:
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(asdict(answer))))
        except sqlite3.DatabaseError as error:
            raise self._error(error) from None

    def _error(self, error: sqlite3.DatabaseError) -> EndpointError:
        return EndpointError(
            f"The answers in {self.path} cannot be read or written ({error}); make room or correct its rights, and "
            "give the same command again. What it holds is kept."
        )

    def close(self) -> None:
        """Close the file."""
        self._database.close()
