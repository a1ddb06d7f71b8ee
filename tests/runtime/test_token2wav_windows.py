"""Sound while the codes still come: on nano, near the whole reply's; whatever the windows, without seams.

Where the model does not matter a stand-in for the DiT makes a mel of the noise alone, which no window changes.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nearfield.apps.cli.common import DEMO_BUNDLE
from nearfield.nano.recogniser import Recogniser, word_errors, words
from nearfield.runtime import manifest
from nearfield.runtime.bundle import LoadedVoice
from nearfield.runtime.messages import Message, Text
from nearfield.runtime.ode import Solver
from nearfield.runtime.omni import Omni
from nearfield.runtime.session import SessionSettings, open_session
from nearfield.runtime.token2wav import Graph, Token2Wav
from nearfield.runtime.windows import WHOLE, WindowPlan
from tolerances import (
    SHORT_SOLVER,
    VOCODER_PIECES,
    WINDOWS_MEAN,
    WINDOWS_WORST_FRAME,
    relative_error,
)

Float32 = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]

TEXT = "Seventy three plus nine is eighty two."
SHORT = Solver("rk4", 3)
ONE_BLOCK_FIRST = WindowPlan(first_blocks=1)
HALF_BLOCKS = {"next_blocks": 2, "longest_blocks": 16, "back_blocks": 4}  # the same windows in half as long blocks


class Recorder(Token2Wav):
    """Takes the codes of a reply and makes no sound of them."""

    def __init__(self) -> None:
        self.codes = np.empty(0, np.int64)

    def begin(self, *_: Any, **__: Any) -> None:
        self.codes = self.codes[:0]

    def missing_codes(self, windows: int = 1) -> int:
        return 1_000_000  # all of them: nothing is made

    def push(self, codes: npt.NDArray[np.int64]) -> Iterator[Float32]:
        self.codes = np.concatenate([self.codes, codes])
        return iter(())

    def finish(self) -> Iterator[Float32]:
        return iter(())


class MelAsSound:
    """In the vocoder's place: the first samples of a frame are its mel."""

    def run(self, inputs: Arrays) -> Arrays:
        return {"waveform": np.pad(inputs["mel"][0].T, ((0, 0), (0, 160))).reshape(1, -1)}


class NoiseAsMel:
    """In the DiT's place: one step of Euler's leads to −5.5 + 2 · noise. Counts its evaluations."""

    evaluations = 0

    def run(self, inputs: Arrays) -> Arrays:
        self.evaluations += 1
        return {"velocity": inputs["mel"] - np.float32(5.5)}


@dataclass
class Nano:
    """Nano's Token2Wav in parts, and the codes of one reply in each voice."""

    settings: manifest.Token2Wav
    modulation: Float32
    dit: Graph
    vocoder: Graph
    voices: dict[str, LoadedVoice]
    codes: dict[str, npt.NDArray[np.int64]]

    def open(self, **options: Any) -> Token2Wav:
        """Token2Wav, of other parts or settings than nano's where they are given."""
        parts = [options.pop(name, getattr(self, name)) for name in ("dit", "vocoder", "settings", "modulation")]
        return Token2Wav(*parts, **options)

    def stand_in(self, **options: Any) -> Token2Wav:
        """Token2Wav with the stand-in for the DiT."""
        return self.open(**{"dit": NoiseAsMel(), "solver": Solver("euler", 1)} | options)

    def mel(self, plan: WindowPlan, seed: int = 1, solver: Solver | None = SHORT, *, block_frames: int = 24) -> Float32:
        """The mel `(F, 80)` of the beginning of Ethan's reply, its codes coming one by one."""
        changed = msgspec.structs.replace(self.settings, block_frames=block_frames)
        token2wav = self.open(vocoder=MelAsSound(), settings=changed, solver=solver)
        sound = stream(token2wav, self.codes["Ethan"][:80], self.voices["Ethan"], [1] * 80, plan, seed)
        return sound.reshape(-1, 240)[:, :80]


def stream(
    token2wav: Token2Wav,
    codes: npt.NDArray[np.int64],
    voice: LoadedVoice,
    sizes: Sequence[int] | npt.NDArray[np.int64],
    plan: WindowPlan,
    seed: int = 0,
) -> Float32:
    """The sound of codes that come in parts of these sizes."""
    token2wav.begin(voice, seed=seed, plan=plan)
    ends = np.cumsum([0, *sizes])
    pieces = [piece for start, end in pairwise(ends) for piece in token2wav.push(codes[start:end])]
    return np.concatenate([np.empty(0, np.float32), *pieces, *token2wav.finish()])


@pytest.fixture(scope="module")
def nano() -> Nano:
    omni = Omni.load(DEMO_BUNDLE, threads=1)
    recorder = Recorder()
    silent = Omni(omni.bundle, replace(omni.parts, token2wav=recorder))
    codes = {}
    for voice in omni.voices:
        list(silent.respond([Message("user", [Text("Tell me seventy three plus nine.")])], voice=voice, seed=0))
        codes[voice] = recorder.codes
    dit, vocoder = (
        open_session(omni.bundle.graph_path(name), SessionSettings(threads=1)) for name in ("dit", "vocoder")
    )
    voices = {name: omni.bundle.voice(name) for name in omni.voices}
    return Nano(omni.bundle.manifest.token2wav, omni.bundle.dit_modulation(), dit, vocoder, voices, codes)


@pytest.fixture(scope="module")
def whole(nano: Nano) -> Float32:
    """The mel of the whole reply."""
    return nano.mel(WHOLE)


@pytest.fixture(scope="module")
def apart(nano: Nano, whole: Float32) -> float:
    """The mean distance of a frame between the whole replies of two seeds."""
    return float(np.abs(nano.mel(WHOLE, seed=2) - whole).mean())


@pytest.mark.parametrize("first_blocks", [1, 2])
def test_the_mel_in_windows_is_near_the_whole_replys(
    nano: Nano, whole: Float32, apart: float, first_blocks: int
) -> None:
    frames = np.abs(nano.mel(WindowPlan(first_blocks)) - whole).mean(1) / apart
    assert 0 < frames.mean() <= WINDOWS_MEAN
    assert frames.max() <= WINDOWS_WORST_FRAME


@pytest.mark.parametrize(
    ("plan", "block_frames"),
    [
        (WindowPlan(2, **HALF_BLOCKS, ahead_blocks=1), 12),
        (replace(ONE_BLOCK_FIRST, ahead_blocks=0), 24),
        (replace(ONE_BLOCK_FIRST, back_blocks=0), 24),
        (WindowPlan(3, **HALF_BLOCKS, ahead_blocks=2), 12),
    ],
    ids=["half a block ahead", "nothing ahead", "nothing back", "starts between blocks"],
)
def test_wrong_windows_are_not_near_it(
    nano: Nano, whole: Float32, apart: float, plan: WindowPlan, block_frames: int
) -> None:
    frames = np.abs(nano.mel(plan, block_frames=block_frames) - whole).mean(1) / apart
    assert frames.max() > WINDOWS_WORST_FRAME


def test_nor_are_windows_with_fresh_noise(nano: Nano, whole: Float32, apart: float) -> None:
    codes, token2wav = nano.codes["Ethan"][:80], nano.open(solver=SHORT)
    first, rest = (token2wav.mel(part, nano.voices["Ethan"], seed=1).T for part in (codes[:48], codes[12:]))
    frames = np.abs(np.concatenate([first[:72], rest[48:]]) - whole).mean(1) / apart
    assert frames[:72].mean() <= WINDOWS_MEAN  # its noise is the whole reply's
    assert frames[72:].mean() > 0.5


def test_three_steps_of_rk4_are_near_the_references_nine_and_as_many_evaluations_of_euler_are_not(
    nano: Nano, whole: Float32, apart: float
) -> None:
    reference = nano.mel(WHOLE, solver=None)
    euler = nano.mel(WHOLE, solver=Solver("euler", SHORT.evaluations))
    assert np.abs(whole - reference).mean() / apart <= SHORT_SOLVER
    assert np.abs(euler - reference).mean() / apart > 2 * SHORT_SOLVER


@pytest.mark.parametrize("voice", ["Chelsie", "Ethan"])
def test_speech_in_windows_is_understood_as_the_whole_is(nano: Nano, voice: str) -> None:
    codes, recogniser = nano.codes[voice], Recogniser()
    heard = []
    for plan in (WHOLE, WindowPlan.streaming(nano.settings)):
        sound = stream(nano.open(solver=SHORT), codes, nano.voices[voice], [5] * (len(codes) // 5 + 1), plan)
        assert len(sound) == 480 * len(codes)
        heard.append(recogniser.hear(sound, 24_000))
    assert word_errors(*heard) <= 1
    assert word_errors(words(TEXT), heard[0]) <= 3  # what the Talker drew is not at stake here


@given(
    st.builds(WindowPlan, st.integers(1, 3), longest_blocks=st.integers(1, 4), ahead_blocks=st.integers(1, 2)),
    st.lists(st.integers(0, 30), max_size=10),
    st.integers(1, 120),
)
def test_how_codes_come_does_not_change_a_sample(
    nano: Nano, plan: WindowPlan, sizes: list[int], piece_frames: int
) -> None:
    token2wav, voice = nano.stand_in(vocoder=MelAsSound(), piece_frames=piece_frames), nano.voices["Ethan"]
    codes = np.arange(sum(sizes)) % 1024
    split, together = (stream(token2wav, codes, voice, parts, plan) for parts in (sizes, [sum(sizes)]))
    np.testing.assert_array_equal(split, together)
    assert len(split) == 480 * len(codes)


def test_nor_does_it_with_the_real_graphs(nano: Nano) -> None:
    token2wav, codes, voice = nano.open(solver=Solver("euler", 2)), nano.codes["Ethan"][:50], nano.voices["Ethan"]
    together = stream(token2wav, codes, voice, [50], ONE_BLOCK_FIRST)
    for sizes in ([24, 1, 25], [1] * 50):
        np.testing.assert_array_equal(stream(token2wav, codes, voice, sizes, ONE_BLOCK_FIRST), together)


@settings(max_examples=12)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 70), st.integers(1, 70))
def test_the_vocoder_has_no_seams(nano: Nano, first: int, longest: int, piece_frames: int, codes: int) -> None:
    noise = np.random.default_rng(7).standard_normal((2 * codes, 80), np.float32)
    whole = nano.vocoder.run({"mel": (2 * noise - np.float32(5.5)).T[None]})["waveform"][0]
    plan = WindowPlan(first, longest_blocks=longest)
    token2wav = nano.stand_in(piece_frames=piece_frames)
    sound = stream(token2wav, np.zeros(codes, np.int64), nano.voices["Ethan"], [codes], plan, seed=7)
    assert relative_error(sound, whole) <= VOCODER_PIECES


@pytest.mark.parametrize(("context", "codes", "frames"), [(18, 24, 6), (34, 36, 14)])
def test_the_first_sound_comes_with_the_first_window(nano: Nano, context: int, codes: int, frames: int) -> None:
    changed = msgspec.structs.replace(nano.settings, vocoder_context_frames=context)
    token2wav = nano.stand_in(vocoder=MelAsSound(), settings=changed)
    token2wav.begin(nano.voices["Ethan"], seed=0, plan=WindowPlan.streaming(changed))
    assert list(token2wav.push(np.zeros(codes - 1, np.int64))) == []
    assert [len(piece) for piece in token2wav.push(np.zeros(1, np.int64))] == [240 * frames]
    assert sum(map(len, token2wav.finish())) == 480 * codes - 240 * frames


def test_what_one_iterator_leaves_the_next_one_makes(nano: Nano) -> None:
    token2wav, voice, codes = nano.stand_in(vocoder=MelAsSound()), nano.voices["Ethan"], np.zeros(90, np.int64)
    expected = stream(token2wav, codes, voice, [90], ONE_BLOCK_FIRST)
    token2wav.begin(voice, seed=0, plan=ONE_BLOCK_FIRST)
    token2wav.push(codes[:50])
    started = token2wav.push(codes[50:])
    first = next(started)
    rest = np.concatenate(list(token2wav.finish()))
    assert list(started) == []
    np.testing.assert_array_equal(np.concatenate([first, rest]), expected)


def test_what_is_left_of_a_reply_cannot_touch_the_next(nano: Nano) -> None:
    token2wav, voice, codes = nano.stand_in(vocoder=MelAsSound()), nano.voices["Ethan"], np.zeros(60, np.int64)
    expected = stream(token2wav, codes, voice, [60], ONE_BLOCK_FIRST, seed=2)
    token2wav.begin(voice, seed=1, plan=ONE_BLOCK_FIRST)
    stale = token2wav.push(codes)
    token2wav.begin(voice, seed=2, plan=ONE_BLOCK_FIRST)
    pieces = [*token2wav.push(codes)]
    assert sum(map(len, stale)) > 0
    np.testing.assert_array_equal(np.concatenate([*pieces, *token2wav.finish()]), expected)


def test_a_reply_in_windows_may_be_longer_than_the_dit_has_positions(nano: Nano) -> None:
    changed = msgspec.structs.replace(nano.settings, max_frames=24 * ONE_BLOCK_FIRST.most_blocks)
    token2wav = nano.stand_in(vocoder=MelAsSound(), settings=changed)
    sound = stream(token2wav, np.zeros(1000, np.int64), nano.voices["Ethan"], [7] * 142 + [6], ONE_BLOCK_FIRST)
    assert len(sound) == 480 * 1000


def test_memory_does_not_grow_with_the_reply(nano: Nano) -> None:
    def peak_bytes(codes: int) -> int:
        token2wav = nano.stand_in(vocoder=MelAsSound())
        token2wav.begin(nano.voices["Ethan"], seed=0, plan=ONE_BLOCK_FIRST)
        tracemalloc.start()
        for _ in range(codes // 8):
            for _piece in token2wav.push(np.zeros(8, np.int64)):
                pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak_bytes(8000) < 1.1 * peak_bytes(1000)


def test_what_a_check_raises_ends_the_work_before_the_next_evaluation(nano: Nano) -> None:
    dit = NoiseAsMel()

    def check() -> None:
        if dit.evaluations == 5:
            raise InterruptedError

    token2wav = nano.open(dit=dit, solver=SHORT)
    token2wav.begin(nano.voices["Ethan"], seed=0, plan=ONE_BLOCK_FIRST, check=check)
    with pytest.raises(InterruptedError):
        list(token2wav.push(np.zeros(24, np.int64)))
    assert dit.evaluations == 5


def test_codes_before_a_reply_are_refused(nano: Nano) -> None:
    with pytest.raises(ValueError, match="no reply has begun"):
        nano.stand_in().push(np.zeros(1, np.int64))
