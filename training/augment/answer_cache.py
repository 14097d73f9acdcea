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
        EndpointError: the file is something else.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=60)
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, answer TEXT)")
        except sqlite3.DatabaseError:
            self._database.close()
            raise EndpointError(f"{path} is no cache of answers; remove it, or name another file.") from None

    def get(self, key: str) -> Answer | None:
        """The answer to a request, None where there is none yet."""
        row = self._database.execute("SELECT answer FROM answers WHERE request = ?", (key,)).fetchone()
        return Answer(**json.loads(row[0])) if row else None

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer; it is on disk when this returns."""
        self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(asdict(answer))))

    def close(self) -> None:
        """Close the file."""
        self._database.close()
