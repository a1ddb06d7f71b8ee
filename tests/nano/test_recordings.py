"""Corpora of speech: what is kept is clean, whole, and reads back as it was written."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from nearfield.nano.recordings import (
    MARGIN_S,
    PARTS,
    SAMPLE_RATE_HZ,
    SPEECH_LEVEL_DB,
    Entry,
    Recordings,
    Spoken,
    clean,
    write_part,
)
from nearfield.nano.synthesizers import HELD_OUT, HELD_OUT_VARIANTS
from nearfield.nano.voices.speech import Speech, SynthesizerError, Voice
from nearfield.nano.world import Exchange


def speech(seconds: float = 1.0, rate_hz: float = 22050, pause_s: float = 0.3, gain: float = 0.5) -> Speech:
    """A tone between two pauses, with one word."""
    sound = gain * np.sin(2 * np.pi * 300 * np.arange(round(seconds * rate_hz)) / rate_hz)
    pause = np.zeros(round(pause_s * rate_hz))
    samples = np.concatenate([pause, sound, pause]).astype(np.float32)
    return Speech(samples, rate_hz, [("hello", pause_s, pause_s + seconds)])


def test_cleaning_trims_levels_and_moves_the_words() -> None:
    samples, words = clean(speech())
    assert samples.dtype == np.int16
    assert len(samples) / SAMPLE_RATE_HZ == pytest.approx(1 + 2 * MARGIN_S, abs=0.03)
    middle = samples[len(samples) // 4 : -len(samples) // 4].astype(np.float64) / 32768
    assert 20 * np.log10(np.sqrt(np.mean(middle**2))) == pytest.approx(SPEECH_LEVEL_DB, abs=0.5)
    assert words is not None
    ((word, start_s, end_s),) = words
    assert word == "hello"
    assert (start_s, end_s) == pytest.approx((MARGIN_S, 1 + MARGIN_S), abs=0.03)


def test_speech_that_starts_at_once_gets_its_margin() -> None:
    samples, _ = clean(speech(pause_s=0.0, rate_hz=SAMPLE_RATE_HZ))
    assert len(samples) / SAMPLE_RATE_HZ == pytest.approx(1 + 2 * MARGIN_S, abs=0.011)
    assert not samples[: round(0.9 * MARGIN_S * SAMPLE_RATE_HZ)].any()


def test_a_hum_before_the_first_word_is_cut_off() -> None:
    hum = speech(pause_s=0.3, rate_hz=SAMPLE_RATE_HZ)
    hum.samples[: round(0.25 * SAMPLE_RATE_HZ)] += 0.02
    samples, _ = clean(hum)
    assert len(samples) / SAMPLE_RATE_HZ == pytest.approx(1 + 2 * MARGIN_S, abs=0.03)


def test_one_loud_click_does_not_overflow() -> None:
    clicking = speech(gain=0.01)
    clicking.samples[10000] = 1.0
    samples, _ = clean(clicking)
    assert 0.97 * 32767 < np.abs(samples.astype(int)).max() <= 32767


@pytest.mark.parametrize("samples", [np.zeros(8000, np.float32), np.zeros(0, np.float32)])
def test_silence_is_refused(samples: np.ndarray) -> None:
    with pytest.raises(SynthesizerError, match="silent"):
        clean(Speech(samples, SAMPLE_RATE_HZ, None))


def some(count: int, engine: str) -> Iterator[Spoken]:
    for number in range(count):
        yield (
            Voice("flite", engine),
            Exchange("talk", f"Hello number {number}.", "Hello."),
            speech(seconds=1 + number / 10),
        )


def test_a_corpus_is_its_parts_one_after_another(tmp_path: Path) -> None:
    write_part(tmp_path / "train", "first", some(3, "a"))
    write_part(tmp_path / "train", "second", some(2, "b"))
    corpus = Recordings.load("train", tmp_path)
    assert [recording.voice for recording in corpus] == ["flite/a"] * 3 + ["flite/b"] * 2
    for recording, length in zip(corpus, corpus.lengths, strict=True):
        number = int(recording.prompt.removeprefix("Hello number ").rstrip("."))
        expected, words = clean(speech(seconds=1 + number / 10))
        np.testing.assert_array_equal(recording.samples, expected)
        assert recording.words == words
        assert len(expected) == length
    np.testing.assert_array_equal(corpus[-1].samples, corpus[4].samples)
    with pytest.raises(IndexError):
        corpus[5]


def test_rare_voices_are_drawn_more_than_their_number_and_espeak_a_third() -> None:
    voices = ["espeak/a"] * 6 + ["espeak/b"] * 2 + ["flite/often"] * 16 + ["piper/rare"] * 4
    entries = [Entry(voice, "talk", "Hello.", "Hello.", 0, 10, None) for voice in voices]
    shares = Recordings([(entries, np.zeros(10, np.int16))]).shares()
    drawn = {voice: sum(share for share, of in zip(shares, voices, strict=True) if of == voice) for voice in voices}
    assert drawn == pytest.approx({"espeak/a": 6 / 24, "espeak/b": 2 / 24, "flite/often": 4 / 9, "piper/rare": 2 / 9})
    alone = Recordings([(entries[:8], np.zeros(10, np.int16))]).shares()
    np.testing.assert_allclose(alone, np.full(8, 1 / 8))


def test_a_part_that_fails_leaves_no_part(tmp_path: Path) -> None:
    def failing() -> Iterator[Spoken]:
        yield from some(2, "a")
        yield Voice("flite", "a"), Exchange("talk", "Far too many letters for so short a sound.", ""), speech(0.1)

    with pytest.raises(SynthesizerError, match="cut off"):
        write_part(tmp_path / "train", "first", failing())
    assert {path.suffix for path in (tmp_path / "train").iterdir()} == {".partial"}
    with pytest.raises(FileNotFoundError, match="nano recordings"):
        Recordings.load("train", tmp_path)


def test_no_held_out_voice_is_in_a_training_part() -> None:
    for part in PARTS:
        named = {name for name, _ in part.voices if not name.endswith("*")}
        assert (named <= HELD_OUT) if part.corpus == "heldout-voices" else not named & HELD_OUT
    assert len(HELD_OUT_VARIANTS) == len(set(HELD_OUT_VARIANTS))


def test_half_of_the_training_speech_is_of_natural_voices() -> None:
    counts = {part.name: part.count for part in PARTS if part.corpus == "train"}
    assert counts["espeak"] <= sum(counts.values()) / 2
    assert sum(counts.values()) >= 20_000
