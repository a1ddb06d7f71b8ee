"""The whole chain beside the whole reference in float32: the same tokens, the same codes, the same waveform."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from nearfield.apps.cli.common import DEMO_QUESTIONS
from nearfield.export.export import ExportOptions, export_bundle
from nearfield.runtime.audio import read_audio
from nearfield.runtime.bundle import LoadedVoice
from nearfield.runtime.events import AudioChunk, TextDelta, TurnEnd
from nearfield.runtime.manifest import Dialect
from nearfield.runtime.messages import SYSTEM_PROMPT, Audio, Image, Message, Text, Video
from nearfield.runtime.omni import Omni
from nearfield.runtime.sampling import GREEDY, TALKER_DEFAULT
from nearfield.runtime.token2wav import Token2Wav
from nearfield.runtime.windows import WHOLE, WindowPlan
from tolerances import WHOLE_REPLY_RELATIVE, relative_error
from transformers import Qwen2_5OmniForConditionalGeneration, Qwen2_5OmniProcessor
from whole_reply import reference_noise, reference_reply

# The reference's processor hands torch tensors to NumPy the way NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MAX_TOKENS, MAX_CODES = 64, 128
NOISE_SEED = 11

rng = np.random.default_rng(2)
TEXT = Text("What is this? Please describe it, then tell me a story.")
SOUND = Audio((0.1 * rng.standard_normal(int(3.37 * 16_000))).astype(np.float32))
SHORT_SOUND = Audio((0.2 * rng.standard_normal(16_000)).astype(np.float32))
TINY_SOUND = Audio((0.2 * rng.standard_normal(3_200)).astype(np.float32))
PICTURE = Image(rng.integers(0, 256, (84, 170, 3), np.uint8))
OTHER_PICTURE = Image(255 - PICTURE.pixels)
OTHER_SHORT_SOUND = Audio(SHORT_SOUND.samples[::-1].copy())
FRAMES = rng.integers(0, 256, (10, 84, 112, 3), np.uint8)  # 5 seconds at 2 a second

CONVERSATIONS: dict[str, list[Message]] = {
    "text": [Message("user", [TEXT])],
    "audio": [Message("user", [SOUND])],
    "image": [Message("user", [PICTURE, TEXT])],
    # What nano was trained for: its replies are sentences, and its speech ends by itself.
    "spoken": [
        Message("system", [Text(SYSTEM_PROMPT)]),
        Message("user", [Audio(read_audio(DEMO_QUESTIONS[0].recording))]),
        Message("assistant", [Text("Seven plus four is eleven.")]),
        Message("user", [Audio(read_audio(DEMO_QUESTIONS[1].recording))]),
    ],
    # Of equal size, so that one could take the place of the other.
    "two-pictures-and-two-clips": [
        Message("user", [PICTURE, SHORT_SOUND, OTHER_PICTURE, OTHER_SHORT_SOUND, TEXT]),
    ],
    "video-with-sound": [Message("user", [TEXT, Video(FRAMES[:8], 2.0, SOUND)])],
    # The sound ends before the picture's columns do: the last id of the prompt is not the largest.
    "wide-video-with-short-sound": [Message("user", [TEXT, Video(FRAMES[:2], 2.0, TINY_SOUND)])],
    "mixed": [
        Message("system", [Text("You are brief.")]),
        Message("user", [SOUND, PICTURE, Text("Both?")]),
        Message("assistant", [Text("Yes, a noise and a picture.")]),
        Message("user", [Video(FRAMES[:4], 2.0), SHORT_SOUND, TEXT]),
    ],
}


class ReferenceNoise(Token2Wav):
    """Token2Wav with the reference's noise, remembering the codes."""

    def __init__(self, inner: Token2Wav) -> None:
        self.__dict__.update(inner.__dict__)
        self.codes: list[int] = []
        self.voice: LoadedVoice | None = None

    def begin(
        self, voice: LoadedVoice, *, seed: int, plan: WindowPlan = WHOLE, check: Callable[[], None] = print
    ) -> None:
        del seed, plan, check
        self.codes, self.voice = [], voice

    def missing_codes(self, windows: int = 1) -> int:
        return 1_000_000  # all of them: it is made at the end

    def push(self, codes: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.float32]]:
        self.codes += codes.tolist()
        return iter(())

    def finish(self) -> Iterator[npt.NDArray[np.float32]]:
        assert self.voice is not None
        noise = reference_noise(NOISE_SEED, len(self.codes))
        yield self.waveform(self.mel(np.array(self.codes), self.voice, noise=noise))


@dataclass(frozen=True)
class Case:
    """A checkpoint in the reference and as a float32 bundle."""

    model: Qwen2_5OmniForConditionalGeneration
    processor: Qwen2_5OmniProcessor
    omni: Omni
    token2wav: ReferenceNoise


def open_case(request: pytest.FixtureRequest, directory: Path, size: str, dialect: Dialect) -> Case:
    options = ExportOptions(bits=32, dialect=dialect)
    export_bundle(request.getfixturevalue(f"checkpoint_{size}"), directory / "bundle", options)
    omni = Omni.load(directory / "bundle", context=2048, threads=1)
    token2wav = ReferenceNoise(omni.parts.token2wav)
    return Case(
        request.getfixturevalue(f"reference_{size}"),
        request.getfixturevalue(f"processor_{size}"),
        Omni(omni.bundle, replace(omni.parts, token2wav=token2wav)),
        token2wav,
    )


@pytest.fixture(scope="module", params=["3b", "7b", "nano"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return open_case(request, tmp_path_factory.mktemp(request.param), request.param, "ort")


def check(case: Case, messages: Sequence[Message], voice: str) -> None:
    expected = reference_reply(
        case.model,
        case.processor,
        messages,
        voice=voice,
        max_tokens=MAX_TOKENS,
        max_codes=MAX_CODES,
        noise_seed=NOISE_SEED,
    )
    events = list(
        case.omni.respond(
            messages,
            voice=voice,
            talker_sampling=replace(GREEDY, repetition_penalty=TALKER_DEFAULT.repetition_penalty),
            max_tokens=MAX_TOKENS,
            max_codes=MAX_CODES,
        )
    )
    end = events[-1]
    assert isinstance(end, TurnEnd)
    token_ids = [event.token_id for event in events if isinstance(event, TextDelta) and event.token_id is not None]
    ends_itself = case.omni.parts.thinker.is_end(expected.token_ids[-1])
    assert token_ids == (expected.token_ids[:-1] if ends_itself else expected.token_ids)
    assert case.token2wav.codes == expected.codes
    waveform = np.concatenate([event.samples for event in events if isinstance(event, AudioChunk)])
    assert relative_error(waveform, expected.waveform) <= WHOLE_REPLY_RELATIVE
    assert end.text == case.processor.decode(token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_a_greedy_reply_is_the_references_token_for_token_and_sample_for_sample(case: Case, conversation: str) -> None:
    check(case, CONVERSATIONS[conversation], "Ethan")


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_so_it_is_in_dialect_standard_and_in_the_other_voice(
    request: pytest.FixtureRequest, tmp_path: Path, size: str
) -> None:
    check(open_case(request, tmp_path, size, "standard"), CONVERSATIONS["mixed"], "Chelsie")
