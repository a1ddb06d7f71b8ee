"""Quantized weights for tests: any that there can be, and whole checkpoints whose layers are stored quantized."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from nearfield.quantize.formats import FileFormat, pack
from nearfield.quantize.grid import Grid
from nearfield.quantize.packing import QuantizedWeight
from nearfield.quantize.rtn import round_to_nearest
from safetensors.numpy import load_file, save_file

Array = npt.NDArray[Any]
FormatOf = Callable[[str], FileFormat | None]
"""How a layer is to be stored, by its name; None for floats."""

DECODER_LAYER = re.compile(r"^(thinker|talker)\.model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj$")


@st.composite
def quantized_weights(
    draw: st.DrawFn,
    bits: tuple[int, ...] = (4, 8),
    scale_types: tuple[npt.DTypeLike, ...] = (np.float32, np.float16),
    act_order: tuple[bool, ...] = (False, True),
) -> QuantizedWeight:
    """Any codes, any zero points (the edges, and the middle of symmetric ones), scales over three decades.

    The number of inputs is often not a multiple of the group size, nor of what fits a word.
    """
    width = draw(st.sampled_from(bits))
    group_size = draw(st.sampled_from([16, 32, 128]))
    columns = draw(st.integers(1, 4 * group_size + 3))
    rows = draw(st.integers(1, 9))
    groups = -(-columns // group_size)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    top, middle = 1 << width, 1 << (width - 1)
    edges = {"any": (0, top), "lowest": (0, 1), "highest": (top - 1, top), "symmetric": (middle, middle + 1)}
    index = rng.permutation(np.arange(columns, dtype=np.int32) // np.int32(group_size))
    in_order = np.array_equal(index, np.sort(index))
    return QuantizedWeight(
        codes=rng.integers(0, top, (rows, columns), np.uint8),
        scales=np.exp(rng.uniform(-7, 0, (rows, groups))).astype(draw(st.sampled_from(scale_types))),
        zeros=rng.integers(*edges[draw(st.sampled_from(sorted(edges)))], (rows, groups), np.uint8),
        group_size=group_size,
        bits=width,
        group_index=index if draw(st.sampled_from(act_order)) and not in_order else None,
    )


def write_quantized(
    source: Path,
    target: Path,
    format_of: FormatOf,
    config: dict[str, Any] | None,
    *,
    section: str | None = None,
    act_order: bool = False,
) -> Path:
    """Copy the checkpoint at `source` with layers stored as `format_of` says, and `config` as its quantization_config.

    Beside it, `<target>-floats` is the same checkpoint with the floats that the codes stand for. With `act_order`, the
    inputs of q, k and v of a block are grouped in one order, those of every other layer in one of its own.
    """
    floats = target.with_name(f"{target.name}-floats")
    tensors = {
        name: tensor for shard in sorted(source.glob("*.safetensors")) for name, tensor in load_file(shard).items()
    }
    plain = dict(tensors)
    for name in [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]:
        form = format_of(name)
        if form is None:
            continue
        weight = _quantized(tensors.pop(f"{name}.weight"), form, _order_seed(name) if act_order else None)
        plain[f"{name}.weight"] = weight.dequantize()
        tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in pack(weight, form).items()}
    for path, content, quantization in ((target, tensors, config), (floats, plain, None)):
        path.mkdir()
        for file in source.iterdir():
            if not file.name.startswith("model"):
                shutil.copy(file, path)
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in content.items()}, path / "model.safetensors")
        if quantization is not None:
            set_quantization_config(path, quantization, section)
    return target


def set_quantization_config(checkpoint: Path, quantization: dict[str, Any] | None, section: str | None = None) -> None:
    """Write `quantization` into the checkpoint's config.json, at the top or in a section; None removes it."""
    path = checkpoint / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    holder = config if section is None else config[section]
    holder.pop("quantization_config", None)
    if quantization is not None:
        holder["quantization_config"] = quantization
    path.write_text(json.dumps(config), encoding="utf-8")


def thinker_layers(form: FileFormat) -> Callable[[str], FileFormat | None]:
    """As published: the Thinker's blocks are quantized, the rest is not."""
    return lambda name: form if DECODER_LAYER.match(name) and name.startswith("thinker.") else None


def decoder_layers(form: FileFormat) -> Callable[[str], FileFormat | None]:
    return lambda name: form if DECODER_LAYER.match(name) else None


def all_linear_layers(form: FileFormat) -> Callable[[str], FileFormat | None]:
    """Every layer that has a quantized form in a graph, and a few that have none."""
    kinds = r"\.(\w*proj|fc[12]|[qkv]|to_[qkv]|to_out\.0|ff\.ff\.[03]|mlp\.[02]|lm_head|codec_head|proj_out|linear)$"
    floats = r"patch_embed|spk_encoder"
    return lambda name: form if re.search(kinds, name) and not re.search(floats, name) else None


def copy_with(checkpoint: Path, target: Path, tensors: dict[str, Array]) -> None:
    """Copy a checkpoint with other tensors."""
    target.mkdir(exist_ok=True)
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    save_file(tensors, target / "model.safetensors")


def _order_seed(name: str) -> int:
    shared = re.sub(r"\.[qkv]_proj$", "", name)
    return sum(shared.encode())


def _quantized(weight: Array, form: FileFormat, order_seed: int | None) -> QuantizedWeight:
    """Round to nearest, the inputs grouped in a random order if a seed is given."""
    columns = weight.shape[1]
    order = np.arange(columns) if order_seed is None else np.random.default_rng(order_seed).permutation(columns)
    grid = Grid(form.bits, form.groups_of(columns), form.symmetric, np.float16)
    quantized = round_to_nearest(weight[:, order].astype(np.float32), grid)
    back = np.argsort(order)
    index = (back // grid.group_size).astype(np.int32)
    codes = quantized.codes[:, back]
    if form.version == 1:
        quantized = replace(quantized, zeros=np.maximum(quantized.zeros, 1))
    return replace(quantized, codes=codes, group_index=None if order_seed is None else index)
