"""Synthesizers: each says what it is asked in the voice it is asked for, or refuses. Those missing are skipped."""

from collections.abc import Callable

import numpy as np
import pytest
from nearfield.nano.synthesizers import HELD_OUT, HELD_OUT_VARIANTS, speak_many, voices
from nearfield.nano.voices import espeak, festival, flite, kokoro, pico, piper
from nearfield.nano.voices.speech import Engine, Line, Speech, SynthesizerError, Voice, spoken_words

TEXT = "Hello, what is thirty seven plus four?"
ENGINES: dict[str, tuple[Callable[[], Engine], str]] = {
    "espeak": (espeak.engine, "en-us+f3"),
    "flite": (flite.engine, "kal"),
    "festival": (festival.engine, "kal"),
    "pico": (pico.engine, "en-US"),
    "piper": (piper.engine, "joe"),
    "kokoro": (kokoro.engine, "en-gb+jf_alpha/jm_kumo"),
}


def installed(name: str) -> Engine:
    try:
        return ENGINES[name][0]()
    except SynthesizerError as error:
        pytest.skip(str(error))


def seconds(speech: Speech) -> float:
    return len(speech.samples) / speech.sample_rate_hz


@pytest.mark.parametrize("name", ENGINES)
def test_a_line_is_spoken_and_a_faster_one_is_shorter(name: str) -> None:
    slow, fast = installed(name).speak_many(ENGINES[name][1], [Line(TEXT, rate=0.8), Line(TEXT, rate=1.25)])
    assert 1.2 < seconds(fast) < 0.8 * seconds(slow) < 5
    assert 0.1 < np.abs(fast.samples).max() <= 1


@pytest.mark.parametrize("name", ["espeak", "flite", "festival"])
def test_words_come_in_order_within_the_speech(name: str) -> None:
    (speech,) = installed(name).speak_many(ENGINES[name][1], [Line(TEXT)])
    assert speech.words is not None
    assert [word for word, _, _ in speech.words] == ["hello", "what", "is", "thirty", "seven", "plus", "four"]
    times = [time for _, start, end in speech.words for time in (start, end)]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] <= seconds(speech) + 0.01


@pytest.mark.parametrize("name", ["espeak", "flite", "festival", "pico"])
def test_the_same_line_sounds_the_same(name: str) -> None:
    first, _, again = installed(name).speak_many(ENGINES[name][1], [Line(TEXT), Line("Red."), Line(TEXT)])
    assert len(first.samples) == len(again.samples)
    if name in ("flite", "festival"):  # the others' noise goes on from line to line
        np.testing.assert_array_equal(first.samples, again.samples)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("espeak", "en-us+nobody"),
        ("espeak", "xx+f3"),
        ("flite", "nobody"),
        ("festival", "nobody"),
        ("pico", "de-DE"),
        ("piper", "nobody"),
        ("kokoro", "jf_alpha"),
    ],
)
def test_an_unknown_voice_is_an_error_not_another_voice(name: str, key: str) -> None:
    engine = installed(name)
    with pytest.raises(SynthesizerError, match=key.removeprefix("en-us+").removesuffix("+f3")):
        list(engine.speak_many(key, [Line(TEXT)]))


def test_espeak_variants_are_different_voices() -> None:
    engine = installed("espeak")
    sounds = [next(iter(engine.speak_many(f"{accent}+f3", [Line(TEXT)]))).samples for accent in espeak.ACCENTS]
    sounds += [next(iter(engine.speak_many(f"en-us+{variant}", [Line(TEXT)]))).samples for variant in ("m1", "klatt")]
    assert len({sound.tobytes() for sound in sounds}) == len(sounds)


def test_espeak_shares_the_time_of_words_it_runs_together() -> None:
    (speech,) = installed("espeak").speak_many("en-us+f3", [Line("What is in the picture?")])
    assert speech.words is not None
    assert [word for word, _, _ in speech.words] == ["what", "is", "in", "the", "picture"]
    assert all(end > start for _, start, end in speech.words)


def test_espeak_writes_phonemes_and_keeps_the_marks() -> None:
    engine = installed("espeak")
    assert isinstance(engine, espeak.Espeak)
    assert engine.phonemes("Hello, four?") == "həlˈoʊ, fˈoːɹ?"


def test_a_smaller_speaker_takes_as_long_and_has_higher_formants() -> None:
    installed("espeak")
    voice = Voice("espeak", "en-us+m1")
    small, large = speak_many(voice, [Line(TEXT, size=0.85), Line(TEXT, size=1.15)])
    assert seconds(small) == pytest.approx(seconds(large), rel=0.1)

    def centre_hz(speech: Speech) -> float:
        power = np.abs(np.fft.rfft(speech.samples)) ** 2
        return float((power * np.linspace(0, speech.sample_rate_hz / 2, len(power))).sum() / power.sum())

    assert centre_hz(small) > 1.1 * centre_hz(large)


def test_the_splits_share_no_voice() -> None:
    installed("espeak")
    train, heldout = ({voice.name for voice in voices(split)} for split in ("train", "heldout"))
    assert not train & heldout
    assert heldout >= HELD_OUT
    assert not any(name.endswith(f"+{variant}") for name in train for variant in HELD_OUT_VARIANTS)


def test_words_of_a_text_and_where_they_start() -> None:
    assert spoken_words("What's that, Nano?") == [("what's", 0), ("that", 7), ("nano", 13)]


def test_kokoro_knows_every_sign_it_is_given() -> None:
    kokoro_voice = installed("kokoro")
    (speech,) = kokoro_voice.speak_many("en-us+jf_alpha", [Line("Button, little, important.")])
    assert 0.8 < seconds(speech) < 5
