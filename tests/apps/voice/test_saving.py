"""A saved conversation: what a person finds in the folder, that it can be heard, and that nothing half-made is left."""

from __future__ import annotations

import io
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
from nearfield.apps.voice.saving import PAUSE_SAMPLES, SOUND, TRANSCRIPT, save_conversation
from nearfield.apps.voice.store import QUESTION_RATE_HZ, REPLY_RATE_HZ, Turn
from nearfield.errors import NearfieldError

ENDED = datetime(2026, 11, 23, 6, 36, tzinfo=UTC)


def tone(hertz: float, seconds: float, rate_hz: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def picture(kind: str) -> bytes:
    content = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), "purple").save(content, kind)
    return content.getvalue()


TURNS = [
    Turn(
        tone(440, 2.0, QUESTION_RATE_HZ), "What is seven plus four?", None, "Eleven.", "Eleven.", False,
        tone(660, 1.0, REPLY_RATE_HZ), {"silence_wait_ms": 640.0, "first_sound_ms": 812.0}, ENDED,
    ),
    Turn(
        tone(440, 1.5, QUESTION_RATE_HZ), None, picture("PNG"), "I see a purple star.", "I see", True,
        tone(660, 0.5, REPLY_RATE_HZ), {"silence_wait_ms": None, "first_sound_ms": None}, ENDED,
    ),
    Turn(None, "Hello 你好", picture("JPEG"), "Hello.", "Hello.", False, None, {}, ENDED),
]  # fmt: skip


def test_the_text_says_who_said_what_and_when_in_the_sound(tmp_path: Path) -> None:
    files = save_conversation(tmp_path / "new" / "folder", TURNS, name="nano")
    assert [path.name for path in files] == [TRANSCRIPT, SOUND, "picture-2.png", "picture-3.jpg"]
    assert sorted(path.name for path in files[0].parent.iterdir()) == sorted(path.name for path in files)
    lines = files[0].read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"A conversation, until {ENDED.astimezone():%Y-%m-%d %H:%M}"
    assert lines[2:] == [
        "",
        " 0:00  You: What is seven plus four?",
        " 0:02  nano: Eleven.",
        "       [answered in 812 ms: 640 ms waiting for silence + 172 ms]",
        "",
        " 0:04  You: [1.5 s of speech]",
        "       [picture: picture-2.png]",
        " 0:06  nano: I see [interrupted]",
        "",
        " 0:07  You: Hello 你好",
        "       [picture: picture-3.jpg]",
        " 0:07  nano: Hello.",
    ]
    assert files[2].read_bytes() == TURNS[1].image


def test_the_sound_has_the_person_on_the_left_and_the_answers_on_the_right(tmp_path: Path) -> None:
    sound_file = save_conversation(tmp_path, TURNS)[1]
    assert soundfile.info(sound_file).subtype == "PCM_16"
    sound, rate_hz = soundfile.read(sound_file, dtype="float32")
    assert rate_hz == REPLY_RATE_HZ
    place = 0
    for side, hertz, seconds in ((0, 440, 2.0), (1, 660, 1.0), (0, 440, 1.5), (1, 660, 0.5)):
        samples = int(seconds * rate_hz)
        expected = tone(hertz, seconds, rate_hz)
        heard = sound[place : place + samples]
        np.testing.assert_allclose(heard[200:-200, side], expected[200:-200], atol=2e-3)
        assert not heard[:, 1 - side].any()
        place += samples + PAUSE_SAMPLES
        assert not sound[place - PAUSE_SAMPLES : place].any()
    assert len(sound) == place


def test_too_loud_sound_is_clipped_and_does_not_wrap_around(tmp_path: Path) -> None:
    loud = Turn(None, "?", None, "", "", False, 4 * tone(50, 0.2, REPLY_RATE_HZ), {}, ENDED)
    sound, _ = soundfile.read(save_conversation(tmp_path, [loud])[1], dtype="int16")
    assert (sound[:, 1].max(), sound[:, 1].min()) == (32767, -32767)
    assert np.abs(np.diff(sound[:, 1].astype(int))).max() < 10_000


def test_saving_again_replaces_what_was_saved(tmp_path: Path) -> None:
    save_conversation(tmp_path, TURNS[:1])
    files = save_conversation(tmp_path, TURNS)
    assert "Hello 你好" in files[0].read_text(encoding="utf-8")
    assert len(list(tmp_path.iterdir())) == 4


def test_a_conversation_without_turns_leaves_nothing(tmp_path: Path) -> None:
    assert save_conversation(tmp_path / "folder", []) == []
    assert not (tmp_path / "folder").exists()


def test_a_place_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(NearfieldError, match=r"cannot be saved in .*file .*choose another folder"):
        save_conversation(tmp_path / "file", TURNS)
    (tmp_path / "folder" / SOUND).mkdir(parents=True)
    with pytest.raises(NearfieldError, match="cannot be saved"):
        save_conversation(tmp_path / "folder", TURNS[:1])
    assert [path.name for path in (tmp_path / "folder").iterdir()] == [SOUND], "a half-made file was left"


@pytest.mark.skipif(not Path("/dev/full").exists() or os.name == "nt", reason="needs a folder without room")
def test_a_full_disk_leaves_no_half_made_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = Path.open

    def full(path: Path, mode: str = "r", **options: object) -> object:
        return real_open(Path("/dev/full"), "wb") if mode == "xb" else real_open(path, mode, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(NearfieldError, match="No space left"):
        save_conversation(tmp_path, TURNS[:1])
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
