"""What the layers of the encoders and of the DiT are given for the calibration samples.

Inputs: samples, or codes that the Talker drew for them; a checkpoint → outputs: `Given`s, with hidden states before the
first layer. What comes before the layers runs as the graph that is deployed, fed by the runtime's own code.

The DiT is calibrated on codes that the Talker spoke, on states that its solver went through with them: random codes are
a noise no reply sounds like, and each time has its own mixture of noise and mel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..export.audio_encoder import AudioEncoder as AudioModule
from ..export.audio_encoder import AudioEncoderConfig
from ..export.bind import Reader
from ..export.checkpoint import Checkpoint
from ..export.dit import DiT, dit_graph
from ..export.dit_config import DIT_PREFIX, DiTConfig
from ..export.dit_modulation import modulation_table
from ..export.export import Configs, token2wav_settings
from ..export.graph import INT64, ComponentGraph, Op, Port, Value, build
from ..export.speaker_encoder import encode_speaker
from ..export.vision_encoder import VisionEncoder as VisionModule
from ..export.vision_encoder import VisionEncoderConfig
from ..export.voices import read_voices
from ..runtime.bundle import LoadedVoice
from ..runtime.encoders import AudioEncoder, VisionEncoder
from ..runtime.session import Session
from ..runtime.token2wav import Token2Wav
from .front import Front
from .inputs import Progress, Steps, media_of, open_component
from .layers import STYLE, Given
from .samples import Sample

Array = npt.NDArray[Any]
Inputs = Mapping[str, Array]
T = TypeVar("T")

REPLIES = 16
"""Replies that the DiT is calibrated on: a solution costs 36 evaluations."""
EVERY = 9
"""Of those evaluations every ninth is kept, with each reply another one first."""


class _Recording:
    """A session that keeps something of each run."""

    def __init__(self, session: Session, take: Callable[[Inputs, Inputs], None]) -> None:
        self._session, self._take = session, take

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        outputs = self._session.run(inputs)
        self._take(inputs, outputs)
        return outputs


def audio_given(
    checkpoint: Checkpoint, samples: Sequence[Sample], folder: Path, threads: int | None, progress: Progress
) -> Iterator[Given]:
    """Yield every sound of the samples after the convolutions; raises `InputError` when there is none."""
    sounds, _ = media_of(samples)
    if not sounds:
        raise InputError("no calibration sample has a sound to calibrate the audio encoder on: add some, or leave it")
    config, given = Configs.from_hf(checkpoint.config).audio, list[Given]()

    def take(inputs: Inputs, outputs: Inputs) -> None:
        places = 2 * np.arange(config.block_frames // 2)  # the frame a position begins at
        given.append(
            Given(outputs["hidden"], {"frames": inputs["frames"]}, (places < inputs["frames"][:, None]).ravel())
        )

    session = open_component(checkpoint, _audio_front(config), folder, threads)
    hearing = AudioEncoder(_Recording(session, take), Front.read(checkpoint.path, checkpoint.config).audio, "float32")
    yield from _each(sounds, hearing.hear, given, "hearing", progress)


def vision_given(
    checkpoint: Checkpoint, samples: Sequence[Sample], folder: Path, threads: int | None, progress: Progress
) -> Iterator[Given]:
    """Yield every picture and video of the samples as embedded patches; raises `InputError` when there is none."""
    _, shown = media_of(samples)
    if not shown:
        raise InputError(
            "no calibration sample has a picture to calibrate the vision encoder on: add some, or leave it"
        )
    config, given = Configs.from_hf(checkpoint.config).vision, list[Given]()

    def take(inputs: Inputs, outputs: Inputs) -> None:
        layout = {name: inputs[name] for name in ("positions", "window_slots", "patch_slots")}
        given.append(Given(outputs["hidden"], layout))

    session = open_component(checkpoint, _vision_front(config), folder, threads)
    sight = VisionEncoder(_Recording(session, take), Front.read(checkpoint.path, checkpoint.config).vision, "float32")
    yield from _each(shown, sight.see, given, "seeing", progress)


def _each(
    media: Sequence[tuple[int, int, T]],
    encode: Callable[[T], object],
    given: list[Given],
    doing: str,
    progress: Progress,
) -> Iterator[Given]:
    """Encode one after the other; yields what its graph was given for each, which comes to stand in `given`."""
    for done, (_, _, part) in enumerate(media):
        progress(doing, done, len(media))
        encode(part)
        yield from given
        given.clear()


def dit_given(
    checkpoint: Checkpoint, spoken: Sequence[Steps], folder: Path, threads: int | None, progress: Progress
) -> Iterator[Given]:
    """Yield states and conditions of some replies, at some of the solver's times.

    Raises `InputError` when the Talker has said nothing.
    """
    config = Configs.from_hf(checkpoint.config).dit
    replies = [(number, it.codes) for number, it in enumerate(spoken) if len(it.codes)]
    if not replies:
        raise InputError(
            "the Talker spoke none of the calibration samples' replies: give longer ones, or leave the DiT"
        )
    chosen = np.unique(np.linspace(0, len(replies) - 1, min(REPLIES, len(replies))).round().astype(int))
    evaluations: list[Inputs] = []
    seen = 0

    def take(inputs: Inputs, _: Inputs) -> None:
        nonlocal seen
        if seen % EVERY == 0:
            evaluations.append(inputs)
        seen += 1

    session = open_component(checkpoint, dit_graph(config, STYLE), folder, threads)
    token2wav = _token2wav(checkpoint, _Recording(session, take))
    voices = _voices(checkpoint, config)
    for done, index in enumerate(chosen):
        progress("voicing", done, len(chosen))
        number, codes = replies[index]
        seen = -done
        token2wav.mel(codes, voices[number % len(voices)], seed=number)
    del session, token2wav  # the weights, before others are read
    front = open_component(checkpoint, _dit_front(config), folder, threads)
    names = [port.name for port in _dit_ports(config)]
    for inputs in evaluations:
        hidden = front.run({name: inputs[name] for name in names})["hidden"]
        frames = inputs["mel"].shape[1]
        others = {"frames": np.array([frames]), "modulation": inputs["modulation"]}
        yield Given(hidden, others, np.tile(np.arange(hidden.shape[1]) < frames, 2))


def _token2wav(checkpoint: Checkpoint, dit: _Recording) -> Token2Wav:
    configs = Configs.from_hf(checkpoint.config)
    settings = token2wav_settings(configs)
    modulation = modulation_table(configs.dit, Reader(checkpoint), settings.ode.times)
    return Token2Wav(dit, dit, settings, modulation)  # a mel needs no vocoder


def _voices(checkpoint: Checkpoint, config: DiTConfig) -> list[LoadedVoice]:
    """All voices, in the order in which the Talker takes them by turns."""
    reader, voices = Reader(checkpoint), []
    for _, voice in sorted(read_voices(checkpoint.path / "spk_dict.pt").items()):
        mels = voice.ref_mel, np.zeros_like(voice.ref_mel)
        encoding = np.concatenate([encode_speaker(config, reader, mel) for mel in mels])
        voices.append(LoadedVoice(voice.cond, encoding, voice.bos_token_id))
    return voices


# What comes before the layers. An encoder without layers still gives embeddings of the right shape; nobody reads them.


def _audio_front(config: AudioEncoderConfig) -> ComponentGraph:
    root = AudioModule(replace(config, layers=0), STYLE)

    def forward(op: Op, mel: Value, frames: Value) -> list[Value]:
        length = op.Unsqueeze(frames, [1])
        hidden = root.convolve(op, mel, length)
        return [root.embed(op, hidden, length), hidden]

    inputs = [
        Port("mel", STYLE.dtype, ("blocks", config.mel_bins, config.block_frames)),
        Port("frames", INT64, ("blocks",)),
    ]
    outputs = [
        Port("embeddings", STYLE.dtype, ("blocks", config.block_frames // 4, config.output_width)),
        Port("hidden", STYLE.dtype, ("blocks", config.block_frames // 2, config.width)),
    ]
    model = build(root, STYLE, "audio_encoder", inputs, outputs, forward)
    return ComponentGraph("audio_encoder", model, root, "thinker.audio_tower.")


def _vision_front(config: VisionEncoderConfig) -> ComponentGraph:
    root = VisionModule(replace(config, layers=0), STYLE)

    def forward(op: Op, pixels: Value, *_: Value) -> list[Value]:
        hidden = root.patch_embed(op, pixels)
        return [root.merger(op, hidden), hidden]

    inputs = [
        Port("pixels", STYLE.dtype, ("temporal_patches", "patches", config.patch_values)),
        Port("positions", INT64, ("patches", 2)),
        Port("window_slots", INT64, ("windows", config.window_patches)),
        Port("patch_slots", INT64, ("patches",)),
    ]
    outputs = [
        Port("embeddings", STYLE.dtype, ("temporal_patches", "merged_patches", config.output_width)),
        Port("hidden", STYLE.dtype, ("temporal_patches", "patches", config.width)),
    ]
    model = build(root, STYLE, "vision_encoder", inputs, outputs, forward)
    return ComponentGraph("vision_encoder", model, root, "thinker.visual.")


def _dit_front(config: DiTConfig) -> ComponentGraph:
    root = DiT(replace(config, layers=0), STYLE)

    def forward(op: Op, mel: Value, codes: Value, speaker: Value, encoding: Value) -> list[Value]:
        return [root.embed(op, mel, codes, speaker, encoding)[0]]

    outputs = [Port("hidden", STYLE.dtype, (2, "padded_frames", config.hidden_size))]
    model = build(root, STYLE, "dit", _dit_ports(config), outputs, forward)
    return ComponentGraph("dit", model, root, DIT_PREFIX)


def _dit_ports(config: DiTConfig) -> list[Port]:
    return [
        Port("mel", STYLE.dtype, (1, "frames", config.mel_dim)),
        Port("codes", INT64, (1, "codes")),
        Port("speaker", STYLE.dtype, (1, config.enc_emb_dim)),
        Port("encoding", STYLE.dtype, (2, config.enc_dim)),
    ]
