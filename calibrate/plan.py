"""How far a whole run is: its phases in order, each with an estimate of its work, so that one time left can be given.

Inputs: a checkpoint, samples, what is to be done → outputs: `Plan`, which turns the progress of a phase into that of
the run. Work is counted in multiply-adds: rows that go through a part times its weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..export.checkpoint import Checkpoint
from .front import Front
from .fronts import EVERY, REPLIES
from .inputs import Progress
from .policy import Part
from .samples import Sample
from .speech import MOST_CODES
from .stack import Stack

_CODES_A_TOKEN = 16  # about three words a second, 50 codes
_FRAMES_A_CODE = 4  # two mel frames, each conditional and unconditional
_EVALUATIONS = 36
_ONE_BY_ONE = 8
"""A step of a decoder costs this many times its share of a prompt: all weights are read for one row."""
_COLUMN_BY_COLUMN = 3
"""So many times a plain product cost GPTQ's (5 s for 3584² on one core)."""


class Plan:
    """The phases of a run. `of` gives what a part reports to; `progress` is told of work done and of all there is."""

    def __init__(self, phases: Sequence[tuple[Part, str, float]], progress: Progress) -> None:
        self._progress, self.total = progress, sum(work for _, _, work in phases)
        self._phases: dict[tuple[Part, str], tuple[float, float]] = {}
        start = 0.0
        for part, what, work in phases:
            self._phases[part, what] = start, work
            start += work

    def of(self, part: Part) -> Progress:
        """What the phases of a part report to, each under its name."""

        def report(what: str, done: float, total: float) -> None:
            start, work = self._phases[part, what]
            self._progress(what, start + work * done / total, self.total)

        return report


def phases(
    checkpoint: Checkpoint, stacks: Mapping[Part, Stack], samples: Sequence[Sample]
) -> list[tuple[Part, str, float]]:
    """Every phase with its work, in the order in which they come."""
    rows = _Rows.of(checkpoint, samples)
    return [(part, what, work) for part, stack in stacks.items() for what, work in _of_part(checkpoint, stack, rows)]


@dataclass(frozen=True)
class _Rows:
    """Rows that go through the parts for all samples."""

    audio: int
    vision: int
    thinker: int
    codes: int

    @classmethod
    def of(cls, checkpoint: Checkpoint, samples: Sequence[Sample]) -> _Rows:
        front = Front.read(checkpoint.path, checkpoint.config)
        tokens, media, codes = 0, {"audio": 0, "vision": 0}, 0
        for sample in samples:
            prompt, reply = front.prompt(sample.messages), len(front.tokenizer.encode(sample.reply))
            tokens += len(prompt.token_ids) + reply
            codes += min(MOST_CODES, _CODES_A_TOKEN * reply)
            for slot in prompt.slots:
                media["audio" if slot.kind == "audio" else "vision"] += len(slot.indices)
        return cls(2 * media["audio"], 4 * media["vision"], tokens, codes)  # an embedding is 2 positions, 4 patches

    def through(self, part: Part) -> float:
        """Rows its layers are calibrated on."""
        solved = min(REPLIES * MOST_CODES, self.codes) * _FRAMES_A_CODE
        of_part: dict[Part, float] = {
            "audio": self.audio,
            "vision": self.vision,
            "thinker": self.thinker,
            "talker": self.thinker + self.codes,
            "dit": solved * _EVALUATIONS / EVERY,
        }
        return of_part[part]


def _of_part(checkpoint: Checkpoint, stack: Stack, rows: _Rows) -> Iterator[tuple[str, float]]:
    component, part = stack.component, stack.part

    def weights(prefix: str) -> int:
        return sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names if name.startswith(prefix))

    layers = weights(f"{component.root}{component.path}")
    if part == "thinker":
        yield "hearing", rows.audio * weights("thinker.audio_tower.")
        yield "seeing", rows.vision * weights("thinker.visual.")
    elif part == "talker":
        yield "speaking", (rows.thinker + _ONE_BY_ONE * rows.codes) * layers
    elif part == "dit":
        yield "voicing", rows.through("dit") * EVERY * layers
    else:
        yield "hearing" if part == "audio" else "seeing", rows.through(part) * (weights(component.root) - layers)
    yield f"{part} layer", 2 * rows.through(part) * layers + stack.layers * _quantizing(checkpoint, stack, rows)


def _quantizing(checkpoint: Checkpoint, stack: Stack, rows: _Rows) -> float:
    """Second moments of a layer's inputs, and GPTQ; other methods cost little beside the runs of the layer."""
    if stack.method not in ("gptq", "awq-gptq"):
        return 0.0
    work = 0.0
    for group in stack.component.graph(0).groups:
        shapes = [checkpoint.shape(f"{stack.component.prefix(0)}{name}.weight") for name in group.names]
        inputs = shapes[0][1]
        work += rows.through(stack.part) * inputs**2 / 2
        work += _COLUMN_BY_COLUMN * 1.5 * sum(outputs for outputs, _ in shapes) * inputs**2
    return work
