"""The finished checkpoint: beside the quantized layers all that stays as it is, byte for byte, and the report.

Inputs: a checkpoint, the working folder with the files of all layers, what to report → output: that folder, now a
checkpoint in the ecosystem's formats.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..export.checkpoint import Checkpoint
from ..export.quantized_checkpoint import SECTIONS
from ..export.safetensors_file import SafetensorsFile
from .report import drawing
from .safetensors_writer import Tensor, write_safetensors
from .stack import Stack

REPORT = "quantization"
"""Name of the report in the result: `.json` with all figures, `.svg` with a plot of them."""

_INDEX, _CONFIG = "model.safetensors.index.json", "config.json"
_TENSORS_A_FILE = 64
_WORK = ("*-steps.npz", "*-given.npz", "*-states-*.f32", "*-layer-*.json", "*.onnx", "*.data", "*.partial")


def assemble(checkpoint: Checkpoint, stacks: Sequence[Stack], report: Mapping[str, Any], folder: Path) -> None:
    """Write all that is missing, and remove what only the work needed."""
    placed = {
        name: file
        for stack in stacks
        for layer in range(stack.layers)
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
    _write_json(folder / _INDEX, {"metadata": {}, "weight_map": dict(sorted(placed.items()))})
    _write_json(folder / _CONFIG, _config(checkpoint, stacks))
    _write_json(folder / f"{REPORT}.json", report)
    (folder / f"{REPORT}.svg").write_text(drawing(report["errors"]), encoding="utf-8", newline="\n")
    for pattern in _WORK:
        for path in folder.glob(pattern):
            path.unlink()
    for path in sorted(checkpoint.path.iterdir()):
        if path.is_file() and path.suffix != ".safetensors" and path.name not in (_INDEX, _CONFIG):
            shutil.copyfile(path, folder / path.name)


def _config(checkpoint: Checkpoint, stacks: Sequence[Stack]) -> dict[str, Any]:
    """The checkpoint's configuration, with a `quantization_config` in the section of each part."""
    config: dict[str, Any] = json.loads((checkpoint.path / _CONFIG).read_text(encoding="utf-8"))
    for stack in stacks:
        section = config
        for name in SECTIONS[stack.component.root]:
            section = section[name]
        section["quantization_config"] = stack.form.config(quantizer=f"nearfield:{__version__}", algorithm=stack.method)
    return config


def _as_stored(checkpoint: Checkpoint, name: str) -> Tensor:
    return Tensor(checkpoint.stored_dtype(name), checkpoint.shape(name), checkpoint.raw(name))


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8", newline="\n")
