"""Nano's speech in windows and by shorter solvers, beside the whole-reply solution of the reference's solver.

    python docs/measurements/token2wav_windows.py > docs/measurements/token2wav_windows.txt

1. When the first sound of a plan comes, and how fast the Talker must be for the sound not to stop: arithmetic.
2. Windows: distance of the mel to that of the whole reply, and the DiT's work. Right plans, and wrong ones, which show
   that the distance can tell.
3. Solvers: the same distance to the reference's solver, each over the whole reply.
4. Words that pocketsphinx recognises in the same replies' sound.

A frame's distance is the mean |difference| over its 80 bins; all are divided by the mean distance between the whole
replies of two seeds. Replies: the codes of nano's Talker for the first held-out questions of its speech task, in both
voices. Needs the extra `[train]`. Nothing here is timed.
"""

import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime
from nearfield.apps.cli.common import DEMO_BUNDLE
from nearfield.nano.evaluate import MAX_CODES, MAX_TOKENS
from nearfield.nano.questions import load, messages
from nearfield.nano.recogniser import Recogniser, word_errors, words
from nearfield.runtime.bundle import Bundle
from nearfield.runtime.events import TurnEnd
from nearfield.runtime.manifest import Token2Wav as Settings
from nearfield.runtime.ode import Solver
from nearfield.runtime.omni import Omni
from nearfield.runtime.session import SessionSettings, open_session
from nearfield.runtime.token2wav import Graph, Token2Wav
from nearfield.runtime.windows import WHOLE, WindowPlan

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]

FOR_MELS, JOINED, FOR_WORDS = 10, 5, 20
"""Questions whose replies, in each voice, are compared as mels; are joined to one long reply; are listened to."""
PUBLISHED_CONTEXT_FRAMES = 34


@dataclass(frozen=True)
class Reply:
    """What nano says, once."""

    voice: str
    text: str
    codes: Int64


class Recorder(Token2Wav):
    """Takes a reply's codes and makes no sound of them."""

    def __init__(self) -> None:
        self.codes = np.empty(0, np.int64)

    def begin(self, *_: object, **__: object) -> None:
        """A reply begins."""
        self.codes = self.codes[:0]

    def missing_codes(self, windows: int = 1) -> int:
        """All of them: nothing is made."""
        return windows * 1_000_000

    def push(self, codes: Int64) -> Iterator[Float32]:
        """Keep the codes."""
        self.codes = np.concatenate([self.codes, codes])
        return iter(())

    def finish(self) -> Iterator[Float32]:
        """No sound."""
        return iter(())


class WatchedDiT:
    """The DiT, counting the frames it is given; or holding frames to the states of an earlier run."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.frames = graph, 0
        self.held: list[Float32] = []
        """States `(1, frames, 80)` of the first frames at each evaluation to come."""
        self.seen: list[Float32] | None = None
        """The state at each evaluation, if they are to be kept."""

    def run(self, inputs: Arrays) -> Arrays:
        """Run the graph."""
        self.frames += inputs["mel"].shape[1]
        if self.held:
            held = self.held.pop(0)
            inputs = inputs | {"mel": np.concatenate([held, inputs["mel"][:, held.shape[1] :]], axis=1)}
        if self.seen is not None:
            self.seen.append(inputs["mel"])
        return self.graph.run(inputs)


class MelAsSound:
    """In the vocoder's place: a frame's first samples are its mel, so that a mel can be had from a stream."""

    def __init__(self, settings: Settings) -> None:
        self.samples = settings.samples_per_frame

    def run(self, inputs: Arrays) -> Arrays:
        """`mel (1, 80, F)` → `waveform (1, 240 F)`."""
        frames = inputs["mel"][0].T
        return {"waveform": np.pad(frames, ((0, 0), (0, self.samples - frames.shape[1]))).reshape(1, -1)}


class Bench:
    """Nano's Token2Wav, taken apart."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.settings = bundle, bundle.manifest.token2wav
        self.dit = WatchedDiT(open_session(bundle.graph_path("dit"), SessionSettings(threads=1)))
        self.vocoder = open_session(bundle.graph_path("vocoder"), SessionSettings(threads=1))
        self.voices = {name: bundle.voice(name) for name in bundle.manifest.voices}
        self.whole, self.blocks_of_half = self.mel_maker(), self.mel_maker(block_frames=self.settings.block_frames // 2)

    def mel_maker(self, solver: Solver | None = None, **changed: int) -> Token2Wav:
        """Token2Wav that gives its mel as sound; `changed` settings make wrong windows possible."""
        settings = msgspec.structs.replace(self.settings, **changed)
        return Token2Wav(self.dit, MelAsSound(settings), settings, self.bundle.dit_modulation(), solver=solver)

    def speaker(self, solver: Solver | None) -> Token2Wav:
        """Token2Wav that gives sound."""
        return Token2Wav(self.dit, self.vocoder, self.settings, self.bundle.dit_modulation(), solver=solver)

    def streamed(self, maker: Token2Wav, reply: Reply, seed: int, plan: WindowPlan) -> Float32:
        """The mel `(F, 80)`, or the sound, of a reply whose codes come one by one."""
        maker.begin(self.voices[reply.voice], seed=seed, plan=plan)
        pieces = [piece for code in reply.codes for piece in maker.push(np.array([code]))]
        samples = np.concatenate([*pieces, *maker.finish()])
        if isinstance(maker._vocoder, MelAsSound):
            return samples.reshape(-1, self.settings.samples_per_frame)[:, : self.settings.mel_bins]
        return samples

    def by_hand(self, reply: Reply, seed: int, plan: WindowPlan, *, hold: bool = False, fresh: bool = False) -> Float32:
        """The mel `(F, 80)` of a reply in windows cut here, in whole blocks.

        `hold`: what lies before a window is held to the states it had when it was part of one. `fresh`: new noise for
        each window.
        """
        size, length = self.settings.block_frames // 2, len(reply.codes)
        noise = np.random.default_rng(seed).standard_normal((1, 2 * length, 80), np.float32)
        mels, index, start, begun = list[Float32](), 0, 0, 0
        while start < length:
            end = start + plan.length_blocks(index) * size
            last = end + plan.ahead_blocks * size
            if last > length:
                end = last = length
            first = max(0, start - plan.back_blocks * size)
            if hold:
                self.dit.held = [state[:, 2 * (first - begun) : 2 * (start - begun)] for state in self.dit.seen or ()]
                self.dit.seen, begun = [], first
            given = noise[:, 2 * first : 2 * last]
            if fresh:
                given = np.random.default_rng([seed, index]).standard_normal(given.shape, np.float32)
            mel = self.whole.mel(reply.codes[first:last], self.voices[reply.voice], noise=given).T
            mels.append(mel[2 * (start - first) : 2 * (end - first)])
            index, start = index + 1, end
        self.dit.seen = None
        return np.concatenate(mels)


def collect(omni: Omni) -> dict[str, list[Reply]]:
    """The replies to all questions of the speech task, of each voice; drawn as in `make nano-eval`."""
    recorder = Recorder()
    silent = Omni(omni.bundle, replace(omni.parts, token2wav=recorder))
    replies: dict[str, list[Reply]] = {voice: [] for voice in omni.voices}
    for voice, found in replies.items():
        for seed, item in enumerate(item for item in load() if item.task == "speech"):
            for event in silent.respond(
                messages(item), voice=voice, seed=seed, max_tokens=MAX_TOKENS, max_codes=MAX_CODES
            ):
                if isinstance(event, TurnEnd):
                    found.append(Reply(voice, event.text, recorder.codes))
    return replies


def latency(settings: Settings) -> None:
    """Codes that the first sound needs, its length, and what the Talker must do for the next not to come late."""
    print("\n1. First sound\n")
    print(
        f"{'vocoder sees, frames':<22} {'first windows, blocks':<22} {'codes needed':>12} {'first sound, ms':>16}",
        end="",
    )
    print(f" {'Talker, × real time':>20}")
    for name, context in (("nano", settings.vocoder_context_frames), ("published", PUBLISHED_CONTEXT_FRAMES)):
        least = context // settings.block_frames + 1
        for first in (least, least + 1):
            plan = WindowPlan(first)
            lengths = [plan.length_blocks(index) for index in range(12)]
            ends = np.cumsum(lengths)
            heard_s = (ends * settings.block_frames - context) / 100
            waited_s = (ends[1:] - ends[0]) * settings.block_frames / 100
            codes = (first + plan.ahead_blocks) * settings.block_frames // settings.frames_per_code
            print(
                f"{f'{context} ({name})':<22} {', '.join(map(str, lengths[:5])):<22} {codes:>12} "
                f"{1000 * heard_s[0]:>16.0f} {np.max(waited_s / heard_s[:-1]):>20.1f}"
            )


def distances(mels: Sequence[Float32], wholes: Sequence[Float32]) -> npt.NDArray[np.float32]:
    """Of every frame."""
    return np.concatenate([np.abs(mel - whole).mean(1) for mel, whole in zip(mels, wholes, strict=True)])


def windows(bench: Bench, replies: Sequence[Reply], wholes: Sequence[Float32], apart: float) -> None:
    """A line a plan."""
    shipped = WindowPlan.streaming(bench.settings)
    half = {"next_blocks": 2, "longest_blocks": 16}  # of wrong windows, in blocks of half the size
    off = WindowPlan(first_blocks=3, back_blocks=4, ahead_blocks=2, **half)
    Maker = Callable[[Reply, int], Float32]

    def streamed(plan: WindowPlan) -> Maker:
        return lambda reply, seed: bench.streamed(bench.whole, reply, seed, plan)

    def halved(plan: WindowPlan) -> Maker:
        return lambda reply, seed: bench.streamed(bench.blocks_of_half, reply, seed, plan)

    def by_hand(plan: WindowPlan, *, hold: bool = False, fresh: bool = False) -> Maker:
        return lambda reply, seed: bench.by_hand(reply, seed, plan, hold=hold, fresh=fresh)

    lines: dict[str, Maker] = {
        "shipped: 1, 1, 2, 4, 8 … blocks, 2 back, 1 ahead": streamed(shipped),
        "published: 2, 1, 2, 4, 8 …": streamed(replace(shipped, first_blocks=2)),
        "all of 1 block": streamed(replace(shipped, longest_blocks=1)),
        "all of 4 blocks": streamed(replace(shipped, first_blocks=4, next_blocks=4, longest_blocks=4)),
        "2 ahead": streamed(replace(shipped, ahead_blocks=2)),
        "2 back, held to their states": by_hand(shipped, hold=True),
        "1 back, held to their states": by_hand(replace(shipped, back_blocks=1), hold=True),
        "1 back": streamed(replace(shipped, back_blocks=1)),
        "wrong: half a block ahead": halved(WindowPlan(first_blocks=2, back_blocks=4, ahead_blocks=1, **half)),
        "wrong: nothing ahead": streamed(replace(shipped, ahead_blocks=0)),
        "wrong: nothing back": streamed(replace(shipped, back_blocks=0)),
        "wrong: starts off the grid by half a block": halved(off),
        "wrong: fresh noise for each window": by_hand(shipped, fresh=True),
    }
    print("\n2. Windows\n")
    print(f"{'plan':<50} {'mean':>7} {'worst frame':>12} {'DiT frames a frame':>19}")
    for name, maker in lines.items():
        bench.dit.frames = 0
        found = distances([maker(reply, seed) for seed, reply in enumerate(replies)], wholes) / apart
        evaluations = Solver("rk4", (len(bench.settings.ode.times) - 1) // 3).evaluations
        work = bench.dit.frames / evaluations / len(found)
        print(f"{name:<50} {found.mean():>7.4f} {found.max():>12.4f} {work:>19.2f}", flush=True)


def joined(bench: Bench, spoken: dict[str, list[Reply]], apart: float) -> None:
    """The line of the shipped plan on replies so long that its windows reach their full length."""
    plan = WindowPlan.streaming(bench.settings)
    replies = [
        Reply(voice, "", np.concatenate([reply.codes for reply in found[:JOINED]])) for voice, found in spoken.items()
    ]
    cut, wholes = (
        [bench.streamed(bench.whole, reply, seed, used) for seed, reply in enumerate(replies)] for used in (plan, WHOLE)
    )
    found = distances(cut, wholes) / apart
    name = f"shipped, {JOINED} replies joined: {max(len(reply.codes) for reply in replies)} codes"
    print(f"{name:<50} {found.mean():>7.4f} {found.max():>12.4f}", flush=True)


SOLVERS = (
    Solver("rk4", 9), Solver("rk4", 5), Solver("rk4", 3), Solver("rk4", 2),
    Solver("euler", 27), Solver("euler", 9), Solver("euler", 5),
)  # fmt: skip


def solvers(bench: Bench, replies: Sequence[Reply], wholes: Sequence[Float32], apart: float) -> None:
    """A line a solver; the windows' own part beside the solver's."""
    shipped = WindowPlan.streaming(bench.settings)
    print("\n3. Solvers\n")
    print(f"{'':<10} {'':>12} {'whole reply':>21} {'windows, to whole':>21}")
    print(f"{'solver':<10} {'evaluations':>12} {'mean':>8} {'worst frame':>12} {'mean':>8} {'worst frame':>12}")
    for solver in SOLVERS:
        maker = bench.mel_maker(solver)
        mels = [bench.streamed(maker, reply, seed, WHOLE) for seed, reply in enumerate(replies)]
        cut = [bench.streamed(maker, reply, seed, shipped) for seed, reply in enumerate(replies)]
        found, seams = distances(mels, wholes) / apart, distances(cut, mels) / apart
        print(
            f"{solver.method:<6}{solver.steps:>4} {solver.evaluations:>12} {found.mean():>8.4f} {found.max():>12.4f} "
            f"{seams.mean():>8.4f} {seams.max():>12.4f}",
            flush=True,
        )


def recognised(bench: Bench, replies: Sequence[Reply]) -> None:
    """A line a way to make the sound of the same codes."""
    shipped, recogniser = WindowPlan.streaming(bench.settings), Recogniser()
    other_seed, rk4, euler = 1000, Solver("rk4", 3), Solver("euler", 9)
    ways: dict[str, tuple[Solver | None, WindowPlan, int]] = {
        "whole reply, reference's solver": (None, WHOLE, 0),
        "the same, other noise": (None, WHOLE, other_seed),
        "windows": (None, shipped, 0),
        "windows, rk4 in 3 steps": (rk4, shipped, 0),
        "windows, euler in 9 steps": (euler, shipped, 0),
    }
    print("\n4. Words recognised\n")
    for name, (solver, plan, seed) in ways.items():
        maker, right, total = bench.speaker(solver), 0, 0
        for number, reply in enumerate(replies):
            sound = bench.streamed(maker, reply, seed + number, plan)
            expected = words(reply.text)
            total += len(expected)
            right += len(expected) - word_errors(expected, recogniser.hear(sound, bench.settings.sample_rate_hz))
        print(f"{name:<34} {right:>4} of {total} {100 * right / total:>6.1f} %", flush=True)


def main() -> None:
    """Print the tables."""
    omni = Omni.load(DEMO_BUNDLE, threads=1)
    bench, spoken = Bench(omni.bundle), collect(omni)
    versions = f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}, Python {platform.python_version()}"
    print(f"{time.strftime('%Y-%m-%d')}, float32, {versions}")
    latency(bench.settings)
    replies = [reply for found in spoken.values() for reply in found[:FOR_MELS]]
    wholes = [bench.streamed(bench.whole, reply, seed, WHOLE) for seed, reply in enumerate(replies)]
    others = [bench.streamed(bench.whole, reply, seed + 1000, WHOLE) for seed, reply in enumerate(replies)]
    apart = float(distances(others, wholes).mean())
    print(f"\n{len(replies)} replies of {', '.join(spoken)}, {len(np.concatenate(wholes))} frames.")
    print(f"Between two seeds a frame's distance is {apart:.3f} on average (natural log): 1 in what follows.")
    windows(bench, replies, wholes, apart)
    joined(bench, spoken, apart)
    solvers(bench, replies, wholes, apart)
    recognised(bench, [reply for found in spoken.values() for reply in found[:FOR_WORDS]])


if __name__ == "__main__":
    sys.exit(main())
