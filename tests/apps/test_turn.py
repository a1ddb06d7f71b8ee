"""What `ask` and `demo` hand to the model and what they make of its reply, with a stand-in for the model."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from input_settings import VISION
from nearfield.apps.cli import playback, turn
from nearfield.apps.cli.common import DEMO_BUNDLE, DEMO_QUESTIONS
from nearfield.apps.cli.main import main
from nearfield.apps.cli.turn import Reply, conversation, latency, record, take, write_json
from nearfield.runtime.bundle import Bundle
from nearfield.runtime.events import AudioChunk, Event, TextDelta, Timing, TurnEnd
from nearfield.runtime.images import image_grid
from nearfield.runtime.messages import SYSTEM_PROMPT, Audio, Image, Message, Text
from nearfield.runtime.omni import Omni

TIMING = Timing(
    prompt_tokens=31,
    reply_tokens=2,
    codes=100,
    audio_seconds=2.0,
    time_to_first_token_ms=10.0,
    time_to_first_audio_ms=400.0,
    text_ms=90.0,
    speech_codes_ms=210.0,
    speech_waveform_ms=205.0,
    total_ms=500.0,
)
END = TurnEnd("Good day.", "max_tokens", "end", TIMING)


@dataclass
class Recorder:
    """An Omni that notes what it is asked and says `END`."""

    loaded: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)
    asked: list[tuple[Sequence[Message], dict[str, Any]]] = field(default_factory=list)
    silent: bool = False

    def load(self, path: Path, **options: Any) -> Recorder:
        self.loaded.append((path, options))
        return self

    def respond(self, messages: Sequence[Message], **options: Any) -> Iterator[Event]:
        self.asked.append((list(messages), options))
        yield TextDelta("Good ", 1)
        yield TextDelta("day.", 2)
        if not self.silent:
            yield AudioChunk(np.full(480, 0.5, np.float32), 24_000)
        yield END


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recorder:
    """Takes the place of the model; the current directory is an empty one."""
    recorder = Recorder()
    monkeypatch.setattr(Omni, "load", recorder.load)
    monkeypatch.chdir(tmp_path)
    return recorder


def texts(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(message.role, part.text) for message in messages for part in message.content if isinstance(part, Text)]


def test_ask_passes_every_option_on(recorder: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    question = ["--text", "hello", "--system", "You are brief.", "--voice", "Ethan", "--seed", "7"]
    limits = ["--max-tokens", "9", "--max-seconds", "3", "--context", "700", "--device", "cuda", "--json", "r.json"]
    assert main(["ask", str(DEMO_BUNDLE), *question, *limits]) == 0
    assert recorder.loaded == [(DEMO_BUNDLE, {"device": "cuda", "context": 700})]
    [(messages, options)] = recorder.asked
    assert texts(messages) == [("system", "You are brief."), ("user", "hello")]
    assert options == {"voice": "Ethan", "speak": True, "seed": 7, "max_tokens": 9, "max_codes": 150}
    transcript = json.loads(Path("r.json").read_text(encoding="utf-8"))["transcript"]
    assert capsys.readouterr().out == f"{transcript}\n" == "Good day.\n"


def test_ask_without_options_has_the_defaults_its_help_names(recorder: Recorder) -> None:
    assert main(["ask", str(DEMO_BUNDLE), "--text", "hello", "--no-speech"]) == 0
    assert recorder.loaded == [(DEMO_BUNDLE, {"device": "cpu", "context": 8192})]
    [(messages, options)] = recorder.asked
    assert texts(messages) == [("system", SYSTEM_PROMPT), ("user", "hello")]
    assert options == {"voice": None, "speak": False, "seed": 0, "max_tokens": 512, "max_codes": 4000}


def test_the_demo_asks_every_question_after_all_that_was_said(recorder: Recorder) -> None:
    assert main(["demo", "--no-play", "--device", "cuda", "--voice", "Ethan"]) == 0
    assert recorder.loaded == [(DEMO_BUNDLE, {"device": "cuda"})]
    conversations = [messages for messages, _ in recorder.asked]
    said = ("assistant", "Good day.")
    assert [texts(messages) for messages in conversations] == [
        [("system", SYSTEM_PROMPT), *[said] * n] for n in range(3)
    ]
    last = conversations[2]
    assert [message.role for message in last] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [[type(part) for part in last[n].content] for n in (1, 3, 5)] == [[Audio], [Audio], [Audio, Image]]
    limits = {"voice": "Ethan", "seed": 0, "max_tokens": 48, "max_codes": 400}
    assert [options for _, options in recorder.asked] == [limits] * 3
    replies = sorted(Path("demo-replies").iterdir())
    assert [file.name for file in replies] == ["reply-1.wav", "reply-2.wav", "reply-3.wav"]


@pytest.mark.usefixtures("recorder")
def test_the_demo_plays_questions_and_replies_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[Path] = []

    def heard(path: Path) -> None:
        assert path.exists()
        played.append(path)

    monkeypatch.setattr(playback, "play", heard)
    assert main(["demo", "--out", "r"]) == 0
    replies = [Path("r", f"reply-{number}.wav") for number in (1, 2, 3)]
    questions = [question.recording for question in DEMO_QUESTIONS]
    assert played == [file for pair in zip(questions, replies, strict=True) for file in pair]


@pytest.mark.usefixtures("recorder")
def test_the_demo_says_once_why_nothing_is_heard_and_fits_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(playback, "play", lambda _: "no speaker was found")
    assert main(["demo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    turns = lines[lines.index("You (recorded): What is seven plus four?") :]
    assert turns == [
        "You (recorded): What is seven plus four?",
        "  silent: no speaker was found",
        "Nano: Good day.",
        "  first text 10 ms, first sound 400 ms, total 500 ms, speech 2.0 s, RTF 0.25",
        "",
        "You (recorded): Say that again.",
        "Nano: Good day.",
        "  first text 10 ms, first sound 400 ms, total 500 ms, speech 2.0 s, RTF 0.25",
        "",
        "You (recorded): What do you see?   [with a picture: purple_star.png]",
        "Nano: Good day.",
        "  first text 10 ms, first sound 400 ms, total 500 ms, speech 2.0 s, RTF 0.25",
        "",
        "RTF: time of the turn over length of its speech. Replies: demo-replies",
    ]
    assert max(map(len, lines)) <= 80


def test_the_demo_can_be_without_sound_to_write(recorder: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    recorder.silent = True
    assert main(["demo", "--no-play"]) == 0
    assert capsys.readouterr().out.count("no speech") == 3
    assert list(Path("demo-replies").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "file"], "file cannot be made a folder"),
        (["--out", "nowhere/replies"], "the folder nowhere is not there"),
        (["--json", "demo-replies/reply-2.wav"], "are the same file"),
    ],
)
def test_the_demo_refuses_before_any_work_what_it_cannot_write(
    options: list[str], message: str, recorder: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_bytes(b"kept")
    assert main(["demo", "--no-play", *options]) == 1
    assert message in capsys.readouterr().err
    assert recorder.loaded == []
    assert Path("file").read_bytes() == b"kept"


def test_waiting_times_are_left_out_where_there_are_none() -> None:
    timing = replace(TIMING, time_to_first_token_ms=None, time_to_first_audio_ms=None, audio_seconds=0.0)
    assert latency(Reply(replace(END, timing=timing), np.zeros(0, np.float32), 0)) == "total 500 ms"


def test_a_question_is_heard_then_seen_then_read(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    PIL.Image.new("RGB", (60, 40), "teal").save(picture)
    system, user = conversation(audio=DEMO_QUESTIONS[0].recording, image=picture, text="hello", image_pixels=9000)
    assert (system.role, user.role) == ("system", "user")
    assert system.content == [Text(SYSTEM_PROMPT)]
    sound, image, text = user.content
    assert isinstance(sound, Audio)
    assert isinstance(image, Image)
    assert image.max_pixels == 9000
    assert text == Text("hello")


def test_a_photograph_takes_at_most_1280_positions_unless_told_otherwise(recorder: Recorder) -> None:
    PIL.Image.new("RGB", (4000, 3000), "teal").save("photo.png")
    assert main(["ask", str(DEMO_BUNDLE), "--image", "photo.png", "--no-speech"]) == 0
    [([_, user], _)] = recorder.asked
    [photograph] = user.content
    assert isinstance(photograph, Image)
    height, width, _ = photograph.pixels.shape
    assert (height, width) == (3000, 4000)
    grid = image_grid(height, width, VISION, photograph.max_pixels)
    assert 1200 < grid.embeddings(VISION) <= 1280


def test_a_reply_cannot_steer_the_terminal() -> None:
    out = io.StringIO()
    take([TextDelta("a\x1b[2J\x07\x7f\x9b\r", 1), TextDelta("\tb\nä", 2), END], out)
    assert out.getvalue() == "a�[2J����\tb\nä\n"


def test_a_reply_is_its_chunks_in_order() -> None:
    chunks = [AudioChunk(np.full(2, value, np.float32), 24_000) for value in (0.25, 0.5)]
    reply = take([*chunks, END], io.StringIO())
    np.testing.assert_array_equal(reply.samples, np.array([0.25, 0.25, 0.5, 0.5], np.float32))
    assert (reply.end, reply.sample_rate_hz, reply.text_error) == (END, 24_000, None)


def test_the_record_holds_the_whole_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "peak_rss_bytes", lambda: 123_460_000)
    write_json(tmp_path / "r.json", record(Reply(END, np.zeros(48_000, np.float32), 24_000)))
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == {
        "transcript": "Good day.",
        "stop_reason": "max_tokens",
        "speech_stop_reason": "end",
        "sample_rate_hz": 24_000,
        "prompt_tokens": 31,
        "reply_tokens": 2,
        "codes": 100,
        "audio_seconds": 2.0,
        "time_to_first_token_ms": 10.0,
        "time_to_first_audio_ms": 400.0,
        "text_ms": 90.0,
        "speech_codes_ms": 210.0,
        "speech_waveform_ms": 205.0,
        "total_ms": 500.0,
        "real_time_factor": 0.25,
        "peak_rss_mb": 123.5,
    }


def test_an_export_is_int4_and_float16_unless_told_otherwise(checkpoint_3b: Path, tmp_path: Path) -> None:
    assert main(["export", str(checkpoint_3b), "-o", str(tmp_path / "bundle")]) == 0
    thinker = Bundle.open(tmp_path / "bundle").manifest.components["thinker"]
    assert (thinker.dtype, thinker.dialect) == ("float16", "ort")
    assert thinker.quantization is not None
    assert (thinker.quantization.bits, thinker.quantization.accuracy_level) == (4, 4)
