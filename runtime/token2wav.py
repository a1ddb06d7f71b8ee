"""Token2Wav at work: speech codes and a voice in, sound out.

Inputs: codes `int64 (n,)`, 50 a second, a voice and noise → a mel `float32 (80, 2n)`, natural log → waveform
`float32 (480 n,)`, −1 … 1, 24 kHz. The DiT carries noise to the mel in a few dozen evaluations (flow matching, arXiv
2210.02747, with classifier-free guidance), over the whole reply as the reference, or in windows as the codes come
(windows.py); BigVGAN turns the mel into sound piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from . import manifest
from .bundle import LoadedVoice
from .ode import Solver
from .pipeline import carry_on
from .windows import WHOLE, Float32, Int64, WindowPlan, Windows

PIECE_FRAMES = 300
"""Mel frames the vocoder turns into sound at a time: 3 s, a quarter more work for the context on both sides."""


class Graph(Protocol):
    """A loaded graph: `session.Session`, or what a test puts in its place."""

    def run(self, inputs: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph on arrays, given and returned by name."""
        ...


@dataclass
class _Mel:
    """A mel on its way to the vocoder: as much of it as that still needs."""

    frames: Float32
    """`(80, kept)`"""
    start: int = 0
    """The first frame that is kept."""
    spoken: int = 0
    """Frames whose sound is out."""

    @property
    def end(self) -> int:
        """The frame after the last."""
        return self.start + len(self.frames[0])

    def append(self, frames: Float32) -> None:
        """Add `(80, F)` at the end."""
        self.frames = np.concatenate([self.frames, frames], axis=1)

    def drop_before(self, frame: int) -> None:
        """Forget what lies before a frame."""
        if frame > self.start:
            self.frames, self.start = self.frames[:, frame - self.start :], frame


@dataclass
class _Reply:
    """A reply on its way."""

    voice: LoadedVoice
    windows: Windows
    mel: _Mel
    check: Callable[[], None]


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
        solver: Solver | None = None,
    ) -> None:
        """`modulation (times, 6 · layers + 2, width)` is the bundle's table; the types are those of the two graphs.

        `solver` is the bundle's own, the reference's, unless told otherwise. Raises `InputError` for one that the
        bundle's times do not allow.
        """
        self._dit, self._vocoder, self._settings, self._modulation = dit, vocoder, settings, modulation
        self._dit_type, self._vocoder_type = np.dtype(dit_type), np.dtype(vocoder_type)
        self._piece_frames = piece_frames
        times = settings.ode.times
        self._solver = solver or Solver(settings.ode.solver, (len(times) - 1) // 3)
        self._solver.check(times)
        self.reset()

    def reset(self) -> None:
        """Forget the reply."""
        self._reply: _Reply | None = None

    def begin(
        self,
        voice: LoadedVoice,
        *,
        seed: int,
        plan: WindowPlan = WHOLE,
        check: Callable[[], None] = carry_on,
    ) -> None:
        """Start a reply in a voice; `seed` decides its noise, `plan` the windows in which its mel is made.

        Only `WHOLE` is the reference's mel exactly; it gives no sound before the end. A reply in windows may be of any
        length, as the DiT sees no more of it than a window, and takes memory for little more. `check` is called before
        every run of the DiT or the vocoder; what it raises ends the work there.
        """
        windows = Windows(plan, self._settings, seed)
        self._reply = _Reply(voice, windows, _Mel(np.empty((self._settings.mel_bins, 0), np.float32)), check)

    def push(self, codes: Int64) -> Iterator[Float32]:
        """Add codes `(n,)` to the reply; the iterator makes the sound that they allow, and yields it in pieces.

        The codes are taken at once, the work is done as the pieces are: what one iterator leaves, the next one makes.
        However the codes are split, the samples are the same. Raises `InputError` for codes or a length the DiT does
        not have, and `ValueError` where no reply has begun.
        """
        reply = self._begun()
        self._check(codes)
        self._check_length(reply.windows.most_codes(more=len(codes)))
        reply.windows.push(codes)
        return self._pieces(reply)

    def missing_codes(self, windows: int = 1) -> int:
        """How many more codes it takes until so many windows can be made."""
        return self._begun().windows.missing(windows)

    def finish(self) -> Iterator[Float32]:
        """End the reply; the iterator yields the rest of its sound, none if it has no codes. Another can begin."""
        reply = self._begun()
        reply.windows.finish()
        self.reset()
        return self._pieces(reply)

    def mel(
        self,
        codes: Int64,
        voice: LoadedVoice,
        *,
        seed: int = 0,
        noise: Float32 | None = None,
        check: Callable[[], None] = carry_on,
    ) -> Float32:
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
            check()
            at_time = {"mel": state.astype(f), "modulation": self._modulation[index].astype(f)}
            return self._dit.run(inputs | at_time)["velocity"].astype(np.float32)

        state = self._solver.solve(velocity, settings.ode.times, noise)  # (1, 2n, 80)
        return np.ascontiguousarray(state[0].T)

    def waveform(self, mel: Float32) -> Float32:
        """Return the waveform `(240 F,)` of a mel `(80, F)`."""
        return np.concatenate([np.empty(0, np.float32), *self.waveform_pieces(mel)])

    def waveform_pieces(self, mel: Float32) -> Iterator[Float32]:
        """Yield the waveform of a mel `(80, F)` in order, in pieces of at most `piece_frames`.

        The vocoder sees a piece with as many frames on each side as can reach it: together they are the whole's
        waveform, in memory that does not grow with it.
        """
        whole = _Mel(mel)
        while (piece := self._next_piece(whole, complete=True)) is not None:
            yield piece

    def _pieces(self, reply: _Reply) -> Iterator[Float32]:
        """Make what can be made of a reply: the sound its mel allows, then the next window, and so on.

        All that is known lies in the reply, so it does not matter which of several iterators does a piece of work, and
        one that outlives its reply cannot touch the next.
        """
        while True:
            reply.check()
            if (piece := self._next_piece(reply.mel, complete=reply.windows.done)) is not None:
                yield piece
            elif (window := reply.windows.next()) is not None:
                mel = self.mel(window.codes, reply.voice, noise=window.noise, check=reply.check)
                reply.mel.append(mel[:, window.frames])
            else:
                return

    def _next_piece(self, mel: _Mel, *, complete: bool) -> Float32 | None:
        """The sound of the next frames, at most `piece_frames`, whose context is there; None where there are none.

        The vocoder takes the ends of what it is given for the ends of speech, and sees as many frames each way as are
        its context: unless the mel is `complete`, sound stays so far behind it.
        """
        context, samples = self._settings.vocoder_context_frames, self._settings.samples_per_frame
        start = mel.spoken
        end = min(start + self._piece_frames, mel.end if complete else mel.end - context)
        if end <= start:
            return None
        first, last = max(0, start - context), min(mel.end, end + context)
        given = np.ascontiguousarray(mel.frames[None, :, first - mel.start : last - mel.start], self._vocoder_type)
        sound = self._vocoder.run({"mel": given})["waveform"][0]
        mel.spoken = end
        mel.drop_before(end - context)
        piece: Float32 = sound[(start - first) * samples : (end - first) * samples].astype(np.float32)
        return piece

    def _begun(self) -> _Reply:
        if self._reply is None:
            raise ValueError("no reply has begun: begin() one")
        return self._reply

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
