"""Conversations on disk: each turn as it happens, in one SQLite file under the user's data folder.

A turn is there when `add_turn` returns, whatever happens to the process or the machine afterwards. SQLite's rollback
journal is used and not its write-ahead log: turns are seconds apart, so nothing is gained by the log, and everything
kept is then in the one file that a backup copies. Every call opens the file anew: any thread may call, and several
processes may, each waiting for the other. What is deleted is overwritten.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from ...errors import StoreError
from .sound_device import MICROPHONE_RATE_HZ, SPEAKER_RATE_HZ

Float32 = npt.NDArray[np.float32]

QUESTION_RATE_HZ, REPLY_RATE_HZ = MICROPHONE_RATE_HZ, SPEAKER_RATE_HZ
SCHEMA = 1
"""In the file as `user_version`. A change to the tables adds one, and a step from the one before."""

_APPLICATION = 0x4E46434F  # "NFCO", so that no other program's file is taken for ours
_BUSY_S = 10.0
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_TABLES = (
    "CREATE TABLE conversations (id INTEGER PRIMARY KEY AUTOINCREMENT, begun TEXT NOT NULL, bundle TEXT NOT NULL, "
    "voice TEXT)",
    "CREATE TABLE turns (id INTEGER PRIMARY KEY, conversation INTEGER NOT NULL REFERENCES conversations "
    "ON DELETE CASCADE, ended TEXT NOT NULL, question_text TEXT, image BLOB, reply_text TEXT NOT NULL, "
    "heard_text TEXT NOT NULL, interrupted INTEGER NOT NULL, timing TEXT NOT NULL)",
    "CREATE INDEX turns_of_conversation ON turns (conversation)",
    # Large, and of their own: the rest can be listed and checked without reading them.
    "CREATE TABLE sounds (turn INTEGER NOT NULL REFERENCES turns ON DELETE CASCADE, speaker TEXT NOT NULL, "
    "flac BLOB NOT NULL, PRIMARY KEY (turn, speaker))",
)


@dataclass(frozen=True, eq=False)
class Turn:
    """A question and its answer. Sound is kept as 16-bit FLAC."""

    question_sound: Float32 | None
    """`(n,)`, 16 kHz; None when it was typed."""
    question_text: str | None
    """What was typed, or what the model said it heard."""
    image: bytes | None
    """A picture file, as it was attached."""
    reply_text: str
    """All that was written."""
    heard_text: str
    """What of it was heard: all, unless somebody interrupted."""
    interrupted: bool
    reply_sound: Float32 | None
    """`(n,)`, 24 kHz."""
    timing: dict[str, float | None] = field(default_factory=dict)
    """How long what took, by name and unit."""
    ended: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class Conversation:
    """What a list of conversations shows."""

    id: int
    begun: datetime
    bundle: str
    voice: str | None
    turns: int
    """How many there are."""


def data_folder() -> Path:
    """Where programs keep a user's data on this system, or what NEARFIELD_DATA says."""
    if chosen := os.environ.get("NEARFIELD_DATA"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "Nearfield"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "Nearfield"
    shared = Path(os.environ.get("XDG_DATA_HOME", ""))  # by its specification a relative path is to be ignored
    return (shared if shared.is_absolute() else Path.home() / ".local" / "share") / "nearfield"


class ConversationStore:
    """The file. Every method raises `StoreError` when it cannot be read or written."""

    def __init__(self, path: Path | None = None) -> None:
        """Open or make the file, by default `conversations.sqlite` in `data_folder()`.

        A damaged one is set aside, its new place is in `set_aside`, and a new one begun. Raises `StoreError` for one of
        a newer Nearfield or of another program.
        """
        self._path = data_folder() / "conversations.sqlite" if path is None else path
        self.set_aside: Path | None = None
        """Where the damaged file is that was found."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"the folder {self._path.parent} cannot be made ({error.strerror}); {_ELSEWHERE}"
            ) from error
        try:
            self._prepare()
        except _DamagedError:
            self.set_aside = self._move_aside()
            self._prepare()

    def begin(self, bundle: str, voice: str | None) -> int:
        """A conversation begins; returns its number."""
        with self._writing() as database:
            added = database.execute(
                "INSERT INTO conversations (begun, bundle, voice) VALUES (?, ?, ?)",
                (datetime.now(UTC).isoformat(), bundle, voice),
            )
            return int(added.lastrowid or 0)

    def add_turn(self, conversation: int, turn: Turn) -> None:
        """Keep a turn: when this returns it is on the disk, when it raises there is nothing of it."""
        sounds = [
            (speaker, _flac(samples, rate_hz))
            for speaker, samples, rate_hz in (
                ("question", turn.question_sound, QUESTION_RATE_HZ),
                ("reply", turn.reply_sound, REPLY_RATE_HZ),
            )
            if samples is not None and len(samples)
        ]
        with self._writing() as database:
            self._check_known(database, conversation)
            added = database.execute(
                "INSERT INTO turns (conversation, ended, question_text, image, reply_text, heard_text, interrupted, "
                "timing) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    conversation, turn.ended.isoformat(), turn.question_text, turn.image, turn.reply_text,
                    turn.heard_text, turn.interrupted, json.dumps(turn.timing),
                ),
            )  # fmt: skip
            database.executemany(
                "INSERT INTO sounds (turn, speaker, flac) VALUES (?, ?, ?)",
                [(added.lastrowid, speaker, flac) for speaker, flac in sounds],
            )

    def conversations(self) -> list[Conversation]:
        """All conversations, the latest first."""
        with self._open() as database:
            rows = database.execute(
                "SELECT id, begun, bundle, voice, (SELECT count(*) FROM turns WHERE conversation = conversations.id) "
                "FROM conversations ORDER BY id DESC"
            ).fetchall()
        return [Conversation(key, datetime.fromisoformat(begun), *rest) for key, begun, *rest in rows]

    def turns(self, conversation: int, *, sounds: bool = True) -> list[Turn]:
        """The turns of a conversation, in order; without `sounds` and pictures it takes no time."""
        with self._open() as database:
            self._check_known(database, conversation)
            rows = database.execute(
                f"SELECT question.flac, question_text, {'image' if sounds else 'NULL'}, reply_text, heard_text, "
                "interrupted, reply.flac, timing, ended FROM turns "
                "LEFT JOIN sounds AS question ON question.turn = turns.id AND question.speaker = 'question' AND ?1 "
                "LEFT JOIN sounds AS reply ON reply.turn = turns.id AND reply.speaker = 'reply' AND ?1 "
                "WHERE conversation = ?2 ORDER BY turns.id",
                (sounds, conversation),
            ).fetchall()
        return [
            Turn(
                self._samples(question), question_text, image, reply_text, heard_text, bool(interrupted),
                self._samples(reply), json.loads(timing), datetime.fromisoformat(ended),
            )
            for question, question_text, image, reply_text, heard_text, interrupted, reply, timing, ended in rows
        ]  # fmt: skip

    def delete(self, conversation: int) -> None:
        """Delete a conversation with its turns and sounds."""
        with self._writing() as database:
            self._check_known(database, conversation)
            database.execute("DELETE FROM conversations WHERE id = ?", (conversation,))

    def _prepare(self) -> None:
        """Make the tables where there are none, and see that those that are there can be used."""
        with self._open() as database:
            if self._is_empty(database):
                database.execute("PRAGMA auto_vacuum = FULL")  # so that the file shrinks; must come before any table
            database.execute("BEGIN IMMEDIATE")
            (application,), (schema,) = (database.execute(f"PRAGMA {name}").fetchone() for name in _MARKS)
            if self._is_empty(database) and not application:
                for table in _TABLES:
                    database.execute(table)
                for name, value in zip(_MARKS, (_APPLICATION, SCHEMA), strict=True):
                    database.execute(f"PRAGMA {name} = {value}")
            elif application != _APPLICATION:
                raise StoreError(f"{self._path} is a database of another program; {_ELSEWHERE}")
            elif schema > SCHEMA:
                raise StoreError(
                    f"{self._path} was written by a newer Nearfield (schema {schema}, this one knows {SCHEMA}); update "
                    f"Nearfield, or {_ELSEWHERE}"
                )
            for table in ("conversations", "turns"):
                (found,) = database.execute(f"PRAGMA quick_check('{table}')").fetchone()
                if found != "ok":
                    raise _DamagedError(found)
            database.execute("COMMIT")

    @staticmethod
    def _is_empty(database: sqlite3.Connection) -> bool:
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return bool(tables == 0)

    def _move_aside(self) -> Path:
        """Give a damaged file, and the journal that belongs to it, another name."""
        name = f"{self._path.stem}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}{self._path.suffix}"
        aside = self._path.with_name(name)
        journal = self._path.with_name(f"{self._path.name}-journal")
        try:
            self._path.rename(aside)
            if journal.exists():
                journal.rename(aside.with_name(f"{aside.name}-journal"))
        except OSError as error:
            raise StoreError(
                f"{self._path} is damaged and cannot be set aside ({error.strerror}); {_ELSEWHERE}"
            ) from error
        return aside

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)) as database:
                database.execute("PRAGMA foreign_keys = ON")
                database.execute("PRAGMA secure_delete = ON")
                database.execute("PRAGMA synchronous = FULL")
                yield database
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE:
                raise _DamagedError(
                    f"{self._path} is damaged ({error}); start Nearfield again: that sets it aside and begins another"
                ) from error
            raise StoreError(
                f"{self._path} cannot be used ({error}); check its folder and the room on the disk, or {_ELSEWHERE}"
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """All that is done in here is done together or, when anything raises, not at all."""
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            yield database
            database.execute("COMMIT")  # closing without it takes everything back

    def _check_known(self, database: sqlite3.Connection, conversation: int) -> None:
        if not database.execute("SELECT 1 FROM conversations WHERE id = ?", (conversation,)).fetchone():
            raise StoreError(f"there is no conversation {conversation} in {self._path}; it may have been deleted")

    def _samples(self, flac: bytes | None) -> Float32 | None:
        if flac is None:
            return None
        try:
            samples: Float32 = soundfile.read(io.BytesIO(flac), dtype="float32")[0]
        except soundfile.LibsndfileError as error:
            raise StoreError(
                f"{self._path} holds a sound that cannot be read ({error}); the file is damaged"
            ) from error
        return samples


class _DamagedError(StoreError):
    """The file is not what SQLite wrote."""


_MARKS = ("application_id", "user_version")
_ELSEWHERE = "name another folder in NEARFIELD_DATA"


def _flac(samples: Float32, rate_hz: int) -> bytes:
    file = io.BytesIO()
    whole = np.clip(np.rint(samples * 32767), -32768, 32767).astype(np.int16)
    soundfile.write(file, whole, rate_hz, format="FLAC", subtype="PCM_16")
    return file.getvalue()
