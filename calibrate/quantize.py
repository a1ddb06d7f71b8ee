"""`quantize_checkpoint`: a checkpoint and calibration samples → a checkpoint whose decoders are quantized.

The result is in the ecosystem's own formats (GPTQ version 2, or AWQ GEMM), with everything else as it was, byte for
byte. Peak memory is that of one layer with its second moments, or of one encoder. Work is kept in a folder beside the
result until it is whole; a run that was stopped, however, goes on from there and ends with the same files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import __version__
from ..errors import CheckpointError, ExportError
from ..export.checkpoint import Checkpoint
from ..export.decoder import DecoderConfig
from ..export.export import Configs
from ..export.safetensors_file import SafetensorsFile
from ..quantize.formats import FileFormat
from ..quantize.formats import Method as FileMethod
from ..quantize.grid import Grid
from .inputs import Float32, Progress, Steps, thinker_steps
from .layer import Method
from .policy import PARTS, Part, bits_of
from .report import Errors, drawing
from .safetensors_writer import Tensor, write_safetensors
from .samples import Sample
from .speech import talker_steps
from .stack import Stack, errors_of, quantize_stack

_WRITTEN = ("model.safetensors.index.json", "config.json")
_TENSORS_A_FILE = 64
REPORT = "quantization"
"""Name of the report in the result: `.json` with all figures, `.svg` with a plot of them."""


@dataclass(frozen=True)
class Settings:
    """How a checkpoint is quantized."""

    method: Method = "awq-gptq"
    bits: Literal[4, 8] | None = None
    """None: as `policy.py` says, by part."""
    group_size: int = 128
    symmetric: bool = False
    parts: tuple[Part, ...] = PARTS
    threads: int | None = None


def quantize_checkpoint(
    source: Path, target: Path, samples: Sequence[Sample], settings: Settings, progress: Progress
) -> Errors:
    """Quantize the checkpoint in `source` into the new directory `target`; returns each Linear's error, by layer.

    Raises `CheckpointError`, `InputError`, `QuantizationError`, or `ExportError` when `target` is taken.
    """
    checkpoint = Checkpoint.open(source)
    if checkpoint.stored_forms:
        raise CheckpointError(f"{source} is quantized already; quantize the full-precision checkpoint")
    stacks, key = _stacks(checkpoint, settings), _key(checkpoint, samples, settings)
    if target.exists():
        return _finished(target, key)
    folder = target.absolute().parent / f".{target.name}.partial-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    _quantize_decoders(checkpoint, stacks, samples, folder, settings.threads, progress)
    errors: Errors = {part: errors_of(stack, folder) for part, stack in stacks.items()}
    report = {"key": key, "settings": asdict(settings), "errors": errors}
    _assemble(checkpoint, stacks, report, folder)
    folder.replace(target)
    return errors


def _finished(target: Path, key: str) -> Errors:
    """The errors of a result that is there already, if it is the very one that is asked for."""
    report = target / f"{REPORT}.json"
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    if found.get("key") != key:
        raise ExportError(f"{target} is there already, and not of these settings and data; name another directory")
    errors: Errors = found["errors"]
    return errors


def _quantize_decoders(
    checkpoint: Checkpoint, stacks: Mapping[Part, Stack], samples: Sequence[Sample], folder: Path,
    threads: int | None, progress: Progress,
) -> None:  # fmt: skip
    """The Thinker on the samples, then the Talker on what the quantized Thinker makes of them."""
    steps = _kept(folder / "thinker-steps.npz", lambda: thinker_steps(checkpoint, samples, folder, threads, progress))
    thinker = stacks["thinker"]
    states = quantize_stack(thinker, checkpoint, steps, folder, threads, progress)
    if (talker := stacks.get("talker")) is None:
        return
    norm = checkpoint.read("thinker.model.norm.weight").astype(np.float32)
    hidden = [_rms_norm(each, norm, thinker.config.norm_epsilon) for each in states]
    spoken = _kept(
        folder / "talker-steps.npz", lambda: talker_steps(checkpoint, steps, hidden, folder, threads, progress)
    )
    del states
    quantize_stack(talker, checkpoint, spoken, folder, threads, progress)


def _stacks(checkpoint: Checkpoint, settings: Settings) -> dict[Part, Stack]:
    configs = Configs.from_hf(checkpoint.config)
    stacks: dict[Part, Stack] = {}
    for part in settings.parts:
        bits = settings.bits or bits_of(part, configs)
        config = configs.thinker if part == "thinker" else configs.talker
        method: FileMethod = "gptq"
        if settings.method == "awq" and _awq_holds(config, bits, settings):
            method = "awq"
        form = FileFormat(method, bits, settings.group_size, settings.symmetric)
        grid = Grid(bits, settings.group_size, settings.symmetric, np.float16)
        stacks[part] = Stack(part, config, settings.method, grid, form)
    return stacks


def _awq_holds(config: DecoderConfig, bits: int, settings: Settings) -> bool:
    """Whether AWQ's file format can hold a decoder's weights; GPTQ's holds all, and codes are codes."""
    inputs = config.hidden_size, config.heads * config.head_dim, config.intermediate_size
    outputs = config.hidden_size, config.kv_heads * config.head_dim, config.intermediate_size
    whole = all(size % settings.group_size == 0 for size in inputs) and all(size % 8 == 0 for size in outputs)
    return bits == 4 and whole


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


def _kept(path: Path, make: Callable[[], list[Steps]]) -> list[Steps]:
    """Steps that an earlier run left in `path`, or made now and left there."""
    if not path.exists():
        made = make()
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(
                file,
                embeddings=np.concatenate([it.embeddings for it in made]),
                position_ids=np.concatenate([it.position_ids for it in made], axis=1),
                is_media=np.concatenate([it.is_media for it in made]),
                lengths=[len(it.embeddings) for it in made],
                prompts=[it.prompt for it in made],
            )
        partial.replace(path)
    with np.load(path) as kept:
        ends = np.cumsum(kept["lengths"])[:-1]
        parts = zip(
            np.split(kept["embeddings"], ends),
            np.split(kept["position_ids"], ends, axis=1),
            kept["prompts"].tolist(),
            np.split(kept["is_media"], ends),
            strict=True,
        )
        return [Steps(*part) for part in parts]


def _rms_norm(states: Float32, weight: Float32, epsilon: float) -> Float32:
    scaled: Float32 = states / np.sqrt(np.mean(states**2, axis=-1, keepdims=True) + np.float32(epsilon)) * weight
    return scaled


def _assemble(checkpoint: Checkpoint, stacks: Mapping[Part, Stack], report: Mapping[str, Any], folder: Path) -> None:
    """Put beside the quantized layers all that stays as it is, and remove what only the work needed."""
    placed = {
        name: file
        for stack in stacks.values()
        for layer in range(stack.config.layers)
        for file in (stack.layer_file(layer),)
        for name in SafetensorsFile(folder / file).tensors
    }
    replaced = {name.removesuffix(".qweight") + ".weight" for name in placed if name.endswith(".qweight")}
    rest = sorted(checkpoint.stored_names - placed.keys() - replaced)
    files = [rest[start : start + _TENSORS_A_FILE] for start in range(0, len(rest), _TENSORS_A_FILE)]
    for number, names in enumerate(files, start=1):
        file = f"rest-{number:02}-of-{len(files):02}.safetensors"
        write_safetensors(folder / file, {name: _as_stored(checkpoint, name) for name in names})
        placed |= dict.fromkeys(names, file)
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": dict(sorted(placed.items()))})
    config: dict[str, Any] = json.loads((checkpoint.path / "config.json").read_text(encoding="utf-8"))
    for part, stack in stacks.items():
        quantization = stack.form.config(quantizer=f"nearfield:{__version__}", algorithm=stack.method)
        config[f"{part}_config"]["quantization_config"] = quantization
    _write_json(folder / "config.json", config)
    _write_json(folder / f"{REPORT}.json", report)
    (folder / f"{REPORT}.svg").write_text(drawing(report["errors"]), encoding="utf-8", newline="\n")
    for kept in ("*-steps.npz", "*-states-*.npy", "*-layer-*.json", "*.onnx", "*.data", "*.partial"):
        for path in folder.glob(kept):
            path.unlink()
    for path in sorted(checkpoint.path.iterdir()):
        if path.is_file() and path.suffix != ".safetensors" and path.name not in _WRITTEN:
            shutil.copyfile(path, folder / path.name)


def _as_stored(checkpoint: Checkpoint, name: str) -> Tensor:
    return Tensor(checkpoint.stored_dtype(name), checkpoint.shape(name), checkpoint.raw(name))


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8", newline="\n")
