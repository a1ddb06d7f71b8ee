"""Nano, the model in the package: a genuine checkpoint, the bundle made from it, and right answers from both.

`make nano-eval` measures how often, on hundreds of held-out items; here a few stand for each skill.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from nearfield.apps.cli.common import DEMO_BUNDLE, DEMO_QUESTIONS
from nearfield.nano.assemble import write_bundle
from nearfield.nano.pictures import clip, draw
from nearfield.nano.recogniser import Recogniser, word_errors, words
from nearfield.nano.reference import Reference
from nearfield.nano.training import CHECKPOINT
from nearfield.runtime.audio import read_audio
from nearfield.runtime.events import AudioChunk, TurnEnd
from nearfield.runtime.images import read_image
from nearfield.runtime.messages import SYSTEM_PROMPT, Audio, Image, Message, Part, Text, Video
from nearfield.runtime.omni import Omni

# The reference's processor hands torch tensors to NumPy the way NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CHECKPOINT_LIMIT_BYTES, BUNDLE_LIMIT_BYTES = 40_000_000, 12_000_000
SYSTEM = Message("system", [Text(SYSTEM_PROMPT)])
TRANSCRIBE = Message("system", [Text("Write down what you hear.")])


def user(*parts: Part) -> Message:
    return Message("user", parts)


def assistant(reply: str) -> Message:
    return Message("assistant", [Text(reply)])


def recorded(number: int) -> Audio:
    return Audio(read_audio(DEMO_QUESTIONS[number].recording))


def picture() -> Image:
    drawn = draw(np.random.default_rng(8), "heldout")
    assert (drawn.colour, drawn.shape) == ("orange", "triangle")
    return Image(drawn.pixels)


def moving() -> Video:
    drawn = clip(np.random.default_rng(3), "heldout")
    assert drawn.direction == "left"
    return Video(drawn.frames, drawn.fps)


def purple_star() -> Image:
    (path,) = [question.picture for question in DEMO_QUESTIONS if question.picture is not None]
    return Image(read_image(path))


SUM = "Seven plus four is eleven."
CONVERSATIONS: dict[str, tuple[list[Message], str]] = {
    "a sum": ([SYSTEM, user(Text("What is seven plus four?"))], SUM),
    "a sum in figures": ([SYSTEM, user(Text("23 - 7"))], "Twenty three minus seven is sixteen."),
    "digits": ([SYSTEM, user(Text("Please repeat four two nine."))], "You said four two nine."),
    "its name": ([SYSTEM, user(Text("What is your name?"))], "My name is Nano."),
    "outside its world": ([SYSTEM, user(Text("My cat sleeps in the kitchen."))], "Sorry, I did not understand."),
    "a spoken sum": ([SYSTEM, user(recorded(0))], SUM),
    "say that again": ([SYSTEM, user(recorded(0)), assistant(SUM), user(recorded(1))], SUM),
    "a transcript": ([TRANSCRIBE, user(recorded(0))], "What is seven plus four?"),
    "a picture, asked for aloud": ([SYSTEM, user(recorded(2), purple_star())], "A purple star."),
    "a picture": ([SYSTEM, user(picture(), Text("What is this?"))], "An orange triangle."),
    "a video": ([SYSTEM, user(moving(), Text("Which way does it move?"))], "It moves left."),
}


@pytest.fixture(scope="module")
def omni() -> Omni:
    return Omni.load(DEMO_BUNDLE, threads=1)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(CHECKPOINT)


def answer(omni: Omni, messages: Sequence[Message]) -> str:
    *_, end = omni.respond(messages, speak=False, max_tokens=32)
    assert isinstance(end, TurnEnd)
    return end.text


@pytest.mark.parametrize("skill", CONVERSATIONS)
def test_the_bundle_and_the_reference_give_the_right_answer(omni: Omni, reference: Reference, skill: str) -> None:
    messages, reply = CONVERSATIONS[skill]
    assert answer(omni, messages) == reply
    assert reference.answer(messages, max_tokens=32) == reply


@pytest.mark.parametrize("voice", ["Chelsie", "Ethan"])
def test_what_it_says_is_heard_by_an_independent_recogniser(omni: Omni, voice: str) -> None:
    events = list(omni.respond([SYSTEM, user(recorded(0))], voice=voice, seed=0))
    samples = np.concatenate([event.samples for event in events if isinstance(event, AudioChunk)])
    heard = Recogniser().hear(samples, 24_000)
    assert word_errors(words(SUM), heard) <= 1
    assert 1.0 < len(samples) / 24_000 < 4.0


def test_the_two_voices_differ_in_pitch(omni: Omni) -> None:
    pitches = {}
    for voice in ("Chelsie", "Ethan"):
        events = list(omni.respond([SYSTEM, user(recorded(0))], voice=voice, seed=0))
        samples = np.concatenate([event.samples for event in events if isinstance(event, AudioChunk)])
        spectrum = np.abs(np.fft.rfft(samples)) ** 2
        lags = np.fft.irfft(spectrum)[24_000 // 300 : 24_000 // 70]  # periods of 70 to 300 Hz
        pitches[voice] = 24_000 / (24_000 // 300 + int(lags.argmax()))
    assert pitches["Chelsie"] > 1.2 * pitches["Ethan"]


def test_the_bundle_in_the_package_is_made_of_this_checkpoint(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle")
    weights = sorted(file.name for file in DEMO_BUNDLE.iterdir() if file.suffix in (".data", ".npy", ".safetensors"))
    assert len(weights) >= 8
    for name in [*weights, "tokenizer.json", "chat_template.jinja"]:
        made, shipped = (np.fromfile(folder / name, np.uint8) for folder in (tmp_path / "bundle", DEMO_BUNDLE))
        assert len(made) == len(shipped), name
        # GPTQ hands each rounding's error on: a sum that ends in another last bit changes a sixth of the codes
        share = 0.3 if name in ("thinker.data", "talker.data") else 0
        assert np.mean(made != shipped) <= share, name


def test_the_checkpoint_is_small_enough_for_a_repository_and_the_bundle_for_a_wheel() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= CHECKPOINT_LIMIT_BYTES
    packed = sum(len(zlib.compress(file.read_bytes())) for file in DEMO_BUNDLE.iterdir())  # as a wheel packs them
    assert packed <= BUNDLE_LIMIT_BYTES
