"""Sample store: every finished answer, once, in SQLite, keyed by (model, prompt, prefix, settings, seed).

What is in it is never computed again: a resumed run, another vote or another verifier over the same samples costs the
model nothing. An answer is on disk before the strategy that asked for it goes on, so kill -9 loses only unfinished work.
Beside each stands which jobs asked for it, so that what is known of a question can be sent where it is answered (cluster).
"""

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

from ponder.core.asks import Answer, Ask
from ponder.core.errors import StoreError
from ponder.run.codec import answer_from_json, answer_json, ask_json, digest, dumps

SCHEMA = """
CREATE TABLE IF NOT EXISTS samples (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, ask TEXT NOT NULL, answer TEXT NOT NULL, seconds REAL NOT NULL
) WITHOUT ROWID
"""
ASKED = "CREATE TABLE IF NOT EXISTS asked (job TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (job, key)) WITHOUT ROWID"

Stored = tuple[str, str, str, str, float]  # key, model, ask, answer, seconds: a row of the table


def stored(model_id: str, ask: Ask, answer: Answer) -> Stored:
    """The row that keeps `answer`."""
    return key_of(model_id, ask), model_id, dumps(ask_json(ask)), dumps(answer_json(answer)), answer.cost.seconds


def restored(ask: Ask, answer: str, seconds: float, where: str) -> Answer:
    """The answer that a row keeps, with the seconds that it took when it was computed."""
    try:
        found = answer_from_json(ask, json.loads(answer))
    except json.JSONDecodeError as error:
        raise StoreError(f"sample store {where}: a row is not JSON ({error}); move the file away and run again") from error
    return replace(found, cost=replace(found.cost, seconds=seconds))


def key_of(model_id: str, ask: Ask) -> str:
    return digest([model_id, ask_json(ask)])


class SampleStore:
    """Opened on a file, or on ":memory:". Raises StoreError when the file is not a store or cannot be written."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        try:
            self.db = sqlite3.connect(self.path)
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=NORMAL")  # survives kill -9; a power cut may lose the last commits
            self.db.execute(SCHEMA)
            self.db.execute(ASKED)
        except sqlite3.Error as error:
            raise StoreError(f"sample store {self.path}: {error}; move it away or name another output folder") from error

    def get(self, model_id: str, ask: Ask) -> Answer | None:
        """The stored answer, with the seconds that it took when it was computed; None when there is none."""
        row = self._execute("SELECT answer, seconds FROM samples WHERE key = ?", (key_of(model_id, ask),)).fetchone()
        return None if row is None else restored(ask, row[0], row[1], self.path)

    def put(self, model_id: str, ask: Ask, answer: Answer, *, job: str = "") -> None:
        """Keeps `answer`, which that job asked for; durable after `commit`. A second put of the same key changes nothing."""
        self.put_row(stored(model_id, ask, answer), job)

    def put_row(self, row: Stored, job: str) -> None:
        """As `put`, of a row that another program made."""
        self._execute("INSERT OR IGNORE INTO samples VALUES (?, ?, ?, ?, ?)", row)
        if job:
            self._execute("INSERT OR IGNORE INTO asked VALUES (?, ?)", (job, row[0]))

    def rows_of(self, job: str) -> list[Stored]:
        """What that job asked for so far."""
        query = "SELECT samples.* FROM asked JOIN samples USING (key) WHERE job = ?"
        return [tuple(row) for row in self._execute(query, (job,)).fetchall()]

    def commit(self) -> None:
        try:
            self.db.commit()
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def close(self) -> None:
        self.db.close()

    def __len__(self) -> int:
        return int(self._execute("SELECT count(*) FROM samples", ()).fetchone()[0])

    def _execute(self, sql: str, values: tuple[object, ...]) -> sqlite3.Cursor:
        try:
            return self.db.execute(sql, values)
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _failed(self, error: sqlite3.Error) -> StoreError:
        return StoreError(
            f"sample store {self.path}: {error}; free disk space or mend permissions, then run again with --resume: finished samples are kept"
        )
