"""Token2Wav at work: speech codes and a voice in, sound out.

Inputs: codes `int64 (n,)`, 50 a second, a voice and noise → a mel `float32 (80, 2n)`, natural log → waveform
`float32 (480 n,)`, −1 … 1, 24 kHz. The DiT carries noise to the mel in 36 evaluations over the whole reply (flow
matching, arXiv 2210.02747, with classifier-free guidance); BigVGAN turns the mel into sound piece by piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from . import manifest
from .bundle import LoadedVoice
from .ode import Float32, solve_rk4

Int64 = npt.NDArray[np.int64]

PIECE_FRAMES = 300
"""Mel frames the vocoder turns into sound at a time: 3 s, a quarter more work for the context on both sides."""


class Graph(Protocol):
    """A loaded graph: `session.Session`, or what a test puts in its place."""

    def run(self, inputs: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph on arrays, given and returned by name."""
        ...


class Token2Wav:
    """Codes to sound. `mel` and `waveform` are its two steps; `begin`, `push`, `finish` take a reply as it comes."""

    def __init__(
        self,
        dit: Graph,
        vocoder: Graph,
        settings: manifest.Token2Wav,
        modulation: Float32,
        *,
        dit_type: manifest.FloatType = "float32",
        vocoder_type: manifest.FloatType = "float32",
        piece_frames: int = PIECE_FRAMES,
    ) -> None:
        """`modulation (times, 6 · layers + 2, width)` is the bundle's table; the types are those of the two graphs."""
        self._dit, self._vocoder, self._settings, self._modulation = dit, vocoder, settings, modulation
        self._dit_type, self._vocoder_type = np.dtype(dit_type), np.dtype(vocoder_type)
        self._piece_frames = piece_frames
        self.reset()

    def reset(self) -> None:
        """Forget the reply."""
        self._codes: list[Int64] = []
        self._voice: LoadedVoice | None = None
        self._seed = 0

    def begin(self, voice: LoadedVoice, *, seed: int) -> None:
        """Start a reply in a voice; `seed` decides its noise."""
        self.reset()
        self._voice, self._seed = voice, seed

    def push(self, codes: Int64) -> None:
        """Add codes `(n,)` to the reply; raises `InputError` for codes or a length the DiT does not have."""
        self._check(codes)
        self._check_length(sum(map(len, self._codes)) + len(codes))
        self._codes.append(codes)

    def finish(self) -> Iterator[Float32]:
        """End the reply and yield its waveform in pieces, none if it has no codes; then another can begin."""
        if self._voice is None:
            raise ValueError("no reply has begun: begin() one")
        codes, voice, seed = np.concatenate([np.empty(0, np.int64), *self._codes]), self._voice, self._seed
        self.reset()
        if len(codes):
            yield from self.waveform_pieces(self.mel(codes, voice, seed=seed))

    def mel(self, codes: Int64, voice: LoadedVoice, *, seed: int = 0, noise: Float32 | None = None) -> Float32:
        """Return the mel `(80, 2n)` of codes `(n,)`, from the given `noise (1, 2n, 80)` or from that of `seed`.

        Raises `InputError` for no codes, a code the DiT has no embedding for, or more frames than it has positions.
        """
        self._check(codes)
        self._check_length(len(codes))
        if not len(codes):
            raise InputError("there are no codes to make sound of; expected at least one")
        settings, f = self._settings, self._dit_type
        shape = (1, len(codes) * settings.frames_per_code, settings.mel_bins)
        if noise is None:
            noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
        elif noise.shape != shape:
            raise InputError(f"noise has shape {noise.shape}; expected {shape} for {len(codes)} codes")
        inputs = {
            "codes": np.asarray(codes, np.int64)[None],
            "speaker": voice.cond.astype(f),
            "encoding": voice.encoding.astype(f),
            "guidance": np.array(settings.ode.guidance, f),
        }

        def velocity(index: int, state: Float32) -> Float32:
            at_time = {"mel": state.astype(f), "modulation": self._modulation[index].astype(f)}
            return self._dit.run(inputs | at_time)["velocity"].astype(np.float32)

        state = solve_rk4(velocity, settings.ode.times, noise)  # (1, 2n, 80)
        return np.ascontiguousarray(state[0].T)

    def waveform(self, mel: Float32) -> Float32:
        """Return the waveform `(240 F,)` of a mel `(80, F)`."""
        return np.concatenate([np.empty(0, np.float32), *self.waveform_pieces(mel)])

    def waveform_pieces(self, mel: Float32) -> Iterator[Float32]:
        """Yield the waveform of a mel `(80, F)` in order, in pieces of at most `piece_frames`.

        The vocoder sees a piece with as many frames on each side as can reach it: together they are the whole's
        waveform, in memory that does not grow with it.
        """
        context, samples = self._settings.vocoder_context_frames, self._settings.samples_per_frame
        frames = mel.shape[1]
        for start in range(0, frames, self._piece_frames):
            end = min(start + self._piece_frames, frames)
            first, last = max(0, start - context), min(frames, end + context)
            piece = np.ascontiguousarray(mel[None, :, first:last], self._vocoder_type)
            sound = self._vocoder.run({"mel": piece})["waveform"][0]
            yield sound[(start - first) * samples : (end - first) * samples].astype(np.float32)

    def _check(self, codes: Int64) -> None:
        """Refuse a code without an embedding: the graph would read another row, or fail."""
        outside = np.flatnonzero((codes < 0) | (codes >= self._settings.code_count))
        if len(outside):
            place = int(outside[0])
            raise InputError(
                f"code {int(codes[place])} at place {place} cannot be spoken; expected 0 … "
                f"{self._settings.code_count - 1}: keep the Talker's other tokens out of Token2Wav"
            )

    def _check_length(self, codes: int) -> None:
        frames = codes * self._settings.frames_per_code
        if frames > self._settings.max_frames:
            raise InputError(
                f"a reply of {codes} codes has {frames} mel frames; the DiT has positions for "
                f"{self._settings.max_frames}: speak it in parts"
            )
