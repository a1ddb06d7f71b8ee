"""Conversations are kept: turn by turn, by two processes at once, and when a process dies in the middle of it."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from nearfield.apps.voice.store import SCHEMA, ConversationStore, Turn, data_folder
from nearfield.errors import StoreError

KEEPER = """
import sys
from pathlib import Path
import numpy as np
from nearfield.apps.voice.store import ConversationStore, Turn

path, name = Path(sys.argv[1]), sys.argv[2]
store = ConversationStore(path)
conversation = store.begin("nano", "Chelsie")
print(conversation, flush=True)
rng = np.random.default_rng(0)
for number in range(10_000 if len(sys.argv) < 4 else int(sys.argv[3])):
    sound = 0.1 * rng.standard_normal(40_000).astype(np.float32)
    store.add_turn(conversation, Turn(sound, None, None, f"{name} {number}", "", False, sound))
    print(number, flush=True)
"""


def turn(reply: str = "Four.", *, seed: int = 0) -> Turn:
    rng = np.random.default_rng(seed)
    return Turn(
        question_sound=0.1 * rng.standard_normal(16_000).astype(np.float32),
        question_text="What is two plus two?",
        image=b"\x89PNG and so on",
        reply_text=reply,
        heard_text=reply[:2],
        interrupted=True,
        reply_sound=0.1 * rng.standard_normal(24_000).astype(np.float32),
        timing={"first_token_ms": 12.5, "first_sound_ms": None},
    )


def test_turns_come_back_as_they_were(tmp_path: Path) -> None:
    store = ConversationStore(tmp_path / "new folder" / "kept.sqlite")
    conversation = store.begin("omni-3b", "Ethan")
    kept = [turn("Four."), turn("Fünf: 五 🙂", seed=1), Turn(None, "Hello?", None, "Hello.", "Hello.", False, None)]
    for one in kept:
        store.add_turn(conversation, one)
    found = ConversationStore(tmp_path / "new folder" / "kept.sqlite").turns(conversation)
    assert len(found) == len(kept)
    for one, other in zip(kept, found, strict=True):
        for name in ("question_text", "image", "reply_text", "heard_text", "interrupted", "timing", "ended"):
            assert getattr(one, name) == getattr(other, name)
        for sound, other_sound in ((one.question_sound, other.question_sound), (one.reply_sound, other.reply_sound)):
            if sound is None:
                assert other_sound is None
            else:
                assert other_sound is not None
                assert other_sound.dtype == np.float32
                np.testing.assert_allclose(other_sound, sound, rtol=0, atol=1.1 / 32768)
    assert store.set_aside is None


def test_sound_beyond_full_scale_is_cut_off_and_does_not_wrap(tmp_path: Path) -> None:
    store = ConversationStore(tmp_path / "kept.sqlite")
    conversation = store.begin("nano", None)
    store.add_turn(conversation, Turn(np.array([1.5, -1.5], np.float32), None, None, "", "", False, None))
    (kept,) = store.turns(conversation)
    assert kept.question_sound is not None
    np.testing.assert_allclose(kept.question_sound, [1, -1], atol=1e-4)


def test_conversations_are_listed_latest_first_and_can_be_deleted(tmp_path: Path) -> None:
    path = tmp_path / "kept.sqlite"
    store = ConversationStore(path)
    empty_bytes = path.stat().st_size
    first, second = store.begin("nano", "Chelsie"), store.begin("omni-7b", None)
    store.add_turn(first, turn("A secret."))
    listed = store.conversations()
    assert [(c.id, c.bundle, c.voice, c.turns) for c in listed] == [
        (second, "omni-7b", None, 0),
        (first, "nano", "Chelsie", 1),
    ]
    assert listed[0].begun >= listed[1].begun
    store.delete(first)
    assert [c.id for c in store.conversations()] == [second]
    assert b"A secret." not in path.read_bytes(), "what is deleted is overwritten"
    assert path.stat().st_size == empty_bytes, "and the file shrinks"
    store.delete(second)
    assert store.begin("nano", None) > second, "a number is never given twice"


def test_sounds_and_pictures_can_be_left_out(tmp_path: Path) -> None:
    store = ConversationStore(tmp_path / "kept.sqlite")
    conversation = store.begin("nano", None)
    store.add_turn(conversation, turn())
    (kept,) = store.turns(conversation, sounds=False)
    assert (kept.question_sound, kept.image, kept.reply_sound, kept.reply_text) == (None, None, None, "Four.")


@pytest.mark.parametrize("call", ["turns", "delete", "add_turn"])
def test_a_conversation_that_is_not_there_is_an_error(tmp_path: Path, call: str) -> None:
    store = ConversationStore(tmp_path / "kept.sqlite")
    with pytest.raises(StoreError, match="no conversation 7"):
        getattr(store, call)(7, *([turn()] if call == "add_turn" else []))


def test_a_process_killed_while_it_writes_loses_no_turn_it_had_finished(tmp_path: Path) -> None:
    path, rng = tmp_path / "kept.sqlite", random.Random(0)
    store = ConversationStore(path)
    finished: dict[int, list[str]] = {}
    for run in range(6):
        with subprocess.Popen([sys.executable, "-c", KEEPER, str(path), str(run)], stdout=subprocess.PIPE) as keeper:
            assert keeper.stdout is not None
            conversation = int(keeper.stdout.readline())
            keeper.stdout.readline()  # at least one turn is finished
            time.sleep(rng.uniform(0, 0.15))
            keeper.kill()
            said = keeper.stdout.read().decode()
        count = 1 + said.count("\n")
        finished[conversation] = [f"{run} {number}" for number in range(count)]
    assert ConversationStore(path).set_aside is None
    for conversation, replies in finished.items():
        kept = store.turns(conversation)
        assert [one.reply_text for one in kept[: len(replies)]] == replies
        assert len(kept) - len(replies) in (0, 1), "one may have been finished and not yet reported"
        assert all(one.question_sound is not None and len(one.question_sound) == 40_000 for one in kept)


def test_two_processes_keep_turns_at_once(tmp_path: Path) -> None:
    path = tmp_path / "kept.sqlite"
    with contextlib.ExitStack() as stack:  # neither finds the file there: both make it
        keepers = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", KEEPER, str(path), name, "20"], stdout=subprocess.PIPE)
            )
            for name in ("a", "b")
        ]
        said = [keeper.communicate()[0].decode().split() for keeper in keepers]
    assert [keeper.returncode for keeper in keepers] == [0, 0]
    store = ConversationStore(path)
    for name, (conversation, *_) in zip(("a", "b"), said, strict=True):
        replies = [one.reply_text for one in store.turns(int(conversation), sounds=False)]
        assert replies == [f"{name} {number}" for number in range(20)]


def test_who_writes_waits_for_another_who_does(tmp_path: Path) -> None:
    store = ConversationStore(tmp_path / "kept.sqlite")
    conversation = store.begin("nano", None)
    other = sqlite3.connect(tmp_path / "kept.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    done = threading.Timer(0.3, lambda: other.execute("COMMIT"))
    done.start()
    store.add_turn(conversation, turn())
    done.join()
    other.close()
    assert len(store.turns(conversation)) == 1


def test_a_file_of_a_newer_nearfield_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "kept.sqlite"
    ConversationStore(path).begin("nano", None)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=f"newer Nearfield.*schema {SCHEMA + 1}.*update"):
        ConversationStore(path)
    assert path.read_bytes() == before


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "kept.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE recipes (name TEXT)")
        database.commit()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        ConversationStore(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["text", "truncated", "overwritten", "pages"])
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "kept.sqlite"
    store = ConversationStore(path)
    conversation = store.begin("nano", None)
    for seed in range(20):
        store.add_turn(conversation, turn("word " * 500, seed=seed))
    content = path.read_bytes()
    damaged = {
        "text": b"Dear diary, today nothing happened.\n" * 100,
        "truncated": content[: len(content) // 2],
        "overwritten": bytes(512) + content[512:],
        "pages": content[:4096] + content[4096:40_960].translate(bytes(range(255, -1, -1))) + content[40_960:],
    }[damage]
    path.write_bytes(damaged)
    again = ConversationStore(path)
    assert again.set_aside is not None
    assert again.set_aside.read_bytes() == damaged
    assert again.conversations() == []
    again.add_turn(again.begin("nano", None), turn())
    assert ConversationStore(path).set_aside is None


def test_damage_that_is_met_later_names_the_file_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "kept.sqlite"
    store = ConversationStore(path)
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match=r"kept\.sqlite is damaged.*start Nearfield again"):
        store.conversations()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot be made.*NEARFIELD_DATA"):
        ConversationStore(tmp_path / "file" / "kept.sqlite")


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kept.sqlite").mkdir()
    with pytest.raises(StoreError, match=r"kept\.sqlite cannot be used.*unable to open"):
        ConversationStore(tmp_path / "kept.sqlite")


def test_a_turn_that_cannot_be_kept_leaves_nothing_behind(tmp_path: Path) -> None:
    store = ConversationStore(tmp_path / "kept.sqlite")
    conversation = store.begin("nano", None)
    with contextlib.closing(sqlite3.connect(tmp_path / "kept.sqlite")) as database:
        database.execute("DROP TABLE sounds")
    with pytest.raises(StoreError, match="no such table: sounds"):
        store.add_turn(conversation, turn())
    assert store.conversations()[0].turns == 0


def test_the_folder_is_the_systems_or_the_one_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEARFIELD_DATA", str(tmp_path / "named"))
    assert data_folder() == tmp_path / "named"
    ConversationStore()
    assert (tmp_path / "named" / "conversations.sqlite").is_file()
    monkeypatch.delenv("NEARFIELD_DATA")
    for platform, variable, expected in (
        ("win32", "LOCALAPPDATA", tmp_path / "Nearfield"),
        ("linux", "XDG_DATA_HOME", tmp_path / "nearfield"),
    ):
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setenv(variable, str(tmp_path))
        assert data_folder() == expected
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert data_folder() == Path.home() / ".local" / "share" / "nearfield"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert data_folder() == Path.home() / "Library" / "Application Support" / "Nearfield"
