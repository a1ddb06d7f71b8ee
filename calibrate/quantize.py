"""`quantize_checkpoint`: a checkpoint and calibration samples → a checkpoint of which some parts are quantized.

The result is in the ecosystem's own formats (GPTQ version 2, or AWQ GEMM), with everything else as it was, byte for
byte. Parts come in the order they work in, each on what those before it put out with their codes: encoders, Thinker,
Talker, DiT. Peak memory is that of one layer with its second moments, or of one encoder. Work is kept in a folder
beside the result until it is whole; a run that was stopped, however, goes on from there and ends with the same files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import __version__
from ..errors import CheckpointError, ExportError
from ..export.checkpoint import Checkpoint
from ..export.export import Configs
from ..quantize.formats import FileFormat
from ..quantize.formats import Method as FileMethod
from ..quantize.grid import Grid
from .assemble import REPORT, assemble
from .check import check_finite, check_layers
from .components import Component, components, decoder_given
from .fronts import audio_given, dit_given, vision_given
from .inputs import Float32, Progress, Steps, thinker_steps
from .kept import kept
from .layer import Method
from .layers import Given
from .plan import Plan, phases
from .policy import DEFAULT_PARTS, Part, bits_of, parts_named
from .quantized_weights import QuantizedWeights
from .report import Errors
from .room import needed_bytes, room
from .samples import Sample
from .speech import last_hidden_states, talker_steps
from .stack import Stack, errors_of, quantize_stack


@dataclass(frozen=True)
class Settings:
    """How a checkpoint is quantized."""

    method: Method = "awq-gptq"
    bits: Literal[4, 8] | None = None
    """None: as `policy.py` says, by part."""
    group_size: int = 128
    symmetric: bool = False
    parts: tuple[Part, ...] = DEFAULT_PARTS
    threads: int | None = None


def quantize_checkpoint(
    source: Path, target: Path, samples: Sequence[Sample], settings: Settings, progress: Progress
) -> Errors:
    """Quantize the checkpoint in `source` into the new directory `target`; returns each Linear's error, by layer.

    Raises `CheckpointError`, `InputError`, `QuantizationError`, or `ExportError`: for names and shapes that do not fit,
    when `target` is taken, and when the disk is full, which the same call goes on after.
    """
    checkpoint = Checkpoint.open(source)
    if checkpoint.stored_forms:
        raise CheckpointError(f"{source} is quantized already; quantize the full-precision checkpoint")
    stacks, key = _stacks(checkpoint, settings), _key(checkpoint, samples, settings)
    if target.exists():
        return _finished(target, key)
    folder = target.absolute().parent / f".{target.name}.partial-{key}"
    if not folder.exists():  # else it was in order when the work began
        for stack in stacks.values():
            check_layers(checkpoint, stack.component, settings.group_size)
        check_finite(checkpoint)
    _make_parent(target)
    plan = Plan(phases(checkpoint, stacks, samples), progress)
    with room(target, folder, needed_bytes(checkpoint, list(stacks.values()))):
        _Run(checkpoint, stacks, samples, folder, settings.threads, plan).all()
        errors: Errors = {part: errors_of(stack, folder) for part, stack in stacks.items()}
        report = {"key": key, "settings": asdict(settings), "errors": errors}
        assemble(checkpoint, list(stacks.values()), report, folder)
        folder.replace(target)
    return errors


def _make_parent(target: Path) -> None:
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"{target} cannot be made ({error}); name a directory you may write to") from error


@dataclass(frozen=True)
class _Run:
    """The parts of one run, in their order; each is passed over where an earlier run has finished it."""

    checkpoint: Checkpoint
    stacks: Mapping[Part, Stack]
    samples: Sequence[Sample]
    folder: Path
    threads: int | None
    plan: Plan

    def all(self) -> None:
        """Quantize every part."""
        checkpoint, samples = self.checkpoint, self.samples
        if "audio" in self.stacks:
            self._quantize("audio", lambda: audio_given(checkpoint, samples, *self._at("audio")))
        if "vision" in self.stacks:
            self._quantize("vision", lambda: vision_given(checkpoint, samples, *self._at("vision")))
        if "thinker" not in self.stacks:
            return
        encoders = self._encoders()
        steps = self._kept("thinker", lambda: thinker_steps(checkpoint, encoders, samples, *self._at("thinker")))
        states = self._quantize_decoder("thinker", steps)
        if "talker" not in self.stacks:
            return
        hidden = (state for (state,) in states)
        spoken = self._kept(
            "talker",
            lambda: talker_steps(checkpoint, steps, last_hidden_states(checkpoint, hidden), *self._at("talker")),
        )
        self._quantize_decoder("talker", spoken)
        if "dit" in self.stacks:
            self._quantize("dit", lambda: dit_given(checkpoint, spoken, *self._at("dit")))

    def _at(self, part: Part) -> tuple[Path, int | None, Progress]:
        return self.folder, self.threads, self.plan.of(part)

    def _quantize(self, part: Part, given: Callable[[], Iterable[Given]]) -> Iterator[Float32]:
        return quantize_stack(self.stacks[part], self.checkpoint, given, *self._at(part))

    def _quantize_decoder(self, part: Part, steps: Sequence[Steps]) -> Iterator[Float32]:
        configs = Configs.from_hf(self.checkpoint.config)
        config = configs.thinker if part == "thinker" else configs.talker
        return self._quantize(part, lambda: (decoder_given(config, it) for it in steps))

    def _encoders(self) -> QuantizedWeights:
        """The checkpoint with the encoders that are quantized by now."""
        encoders = [self.stacks[part] for part in ("audio", "vision") if part in self.stacks]
        files = {self.folder / it.layer_file(layer): it.form for it in encoders for layer in range(it.layers)}
        return QuantizedWeights(self.checkpoint, files)

    def _kept(self, part: Part, make: Callable[[], list[Steps]]) -> list[Steps]:
        """Steps that an earlier run left, or made now and left."""
        records = kept(self.folder / f"{part}-steps.npz", lambda: (vars(it) for it in make()))
        return [Steps.of(record) for record in records]


def _finished(target: Path, key: str) -> Errors:
    """The errors of a result that is there already, if it is the very one that is asked for."""
    try:
        found: dict[str, Any] = json.loads((target / f"{REPORT}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # something else lies there
        found = {}
    if found.get("key") != key:
        raise ExportError(f"{target} is there already, and not of these settings and data; name another directory")
    errors: Errors = found["errors"]
    return errors


def _stacks(checkpoint: Checkpoint, settings: Settings) -> dict[Part, Stack]:
    configs = Configs.from_hf(checkpoint.config)
    known = components(configs)
    stacks: dict[Part, Stack] = {}
    for part in parts_named(",".join(settings.parts)):
        bits = settings.bits or bits_of(part, configs)
        method: FileMethod = "gptq"
        if settings.method == "awq" and bits == 4 and _awq_holds(checkpoint, known[part], settings.group_size):
            method = "awq"
        form = FileFormat(method, bits, settings.group_size, settings.symmetric)
        grid = Grid(bits, settings.group_size, settings.symmetric, np.float16)
        stacks[part] = Stack(known[part], settings.method, grid, form)
    return stacks


def _awq_holds(checkpoint: Checkpoint, component: Component, group_size: int) -> bool:
    """Whether AWQ's file format can hold a part's weights; GPTQ's holds all, and codes are codes."""
    names = [name for group in component.graph(0).groups for name in group.names]
    shapes = [checkpoint.shape(f"{component.prefix(0)}{name}.weight") for name in names]
    return all(inputs % group_size == 0 and outputs % 8 == 0 for outputs, inputs in shapes)


def _key(checkpoint: Checkpoint, samples: Sequence[Sample], settings: Settings) -> str:
    """What decides the result, in a few letters: work of other settings or other data is not gone on with."""
    digest = hashlib.sha256(__version__.encode())
    decisive = {**asdict(settings), "threads": None}
    digest.update(json.dumps([decisive, checkpoint.config.values], sort_keys=True, default=str).encode())
    for file in sorted(checkpoint.path.glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode())
    for sample in samples:
        digest.update(sample.reply.encode())
        for message in sample.messages:
            digest.update(message.role.encode())
            for part in message.content:
                for value in vars(part).values():
                    arrays = value if isinstance(value, list) else [value]
                    for array in arrays:
                        digest.update(array.tobytes() if isinstance(array, np.ndarray) else repr(array).encode())
    return digest.hexdigest()[:12]
