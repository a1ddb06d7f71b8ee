"""Layers a checkpoint stores quantized: which they are, how they are stored, and their codes one layer at a time.

Inputs: the `quantization_config` of `config.json` (at the top, or in a component's section: `SECTIONS`) and tensors
`<layer>.qweight`, `.qzeros`, `.scales`, `.g_idx` → outputs: `QuantizedWeight (N, K)`. The tensors say which layers are
quantized; the configuration says how. `modules_to_not_convert` and the like name layers that are not, and are only held
against the tensors.

The official Qwen/Qwen2.5-Omni-7B-AWQ and -GPTQ-Int4, as far as can be learnt without them (the low-VRAM demos in
QwenLM/Qwen2.5-Omni at low-VRAM-mode/, with AutoAWQ 0.2.9 and gptqmodel 2.0.0): the seven linear layers of every block
of `thinker.model.layers` are quantized to 4 bits in groups of 128; lm_head, encoders, Talker and Token2Wav are floats.
AWQ is GEMM with zero points, made with {"zero_point": true, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}
(AutoAWQ pull request 759), and its `modules_to_not_convert` is ["visual"] though the Talker is not quantized either:
only the tensors can be believed. GPTQ is gptqmodel's default: version 1, symmetric, no act-order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError, QuantizationError
from ..quantize.formats import FileFormat, check_shapes, unpack, unpack_index, unpack_zeros
from ..quantize.packing import QuantizedWeight
from .config import Section
from .graph import WeightForm
from .safetensors_file import Place

_SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")
_VERSIONS: dict[str, Literal[1, 2]] = {"gptq": 1, "gptq_v2": 2}

SECTIONS: dict[str, tuple[str, ...]] = {
    "thinker.audio_tower.": ("thinker_config", "audio_config"),
    "thinker.visual.": ("thinker_config", "vision_config"),
    "token2wav.code2wav_dit_model.": ("token2wav_config", "dit_config"),
    "thinker.": ("thinker_config",),
    "talker.": ("talker_config",),
    "": (),
}
"""Where in config.json a `quantization_config` stands for the layers under a prefix, the most particular first."""


@dataclass(frozen=True)
class _Settings:
    """One `quantization_config`: what it says of the layers under `prefix`."""

    prefix: str
    where: str
    """Its place in config.json."""
    default: FileFormat
    act_order: bool
    overrides: Mapping[str, Section | None]
    """gptqmodel's `dynamic`: patterns of layer names, with their own settings, or None for layers not quantized."""
    ignored: tuple[str, ...]
    """AWQ's `modules_to_not_convert`: parts of names."""
    algorithm: str
    quantizer: str

    @classmethod
    def from_hf(cls, section: Section, prefix: str) -> _Settings:
        """Read a `quantization_config`; raises `CheckpointError` for what Nearfield cannot import."""
        method = section.text("quant_method", default="").lower()
        readers = {"awq": _read_awq, "gptq": _read_gptq}
        if method not in readers:
            raise CheckpointError(
                f"{section.path}.quant_method is {method!r}; Nearfield imports 'awq' and 'gptq': "
                "export from the full-precision checkpoint"
            )
        meta = section.section("meta") if section.has("meta") else Section({}, "")
        quantizers = meta.values.get("quantizer") or []
        names = [str(name) for name in (quantizers if isinstance(quantizers, list) else [quantizers])]
        form = readers[method](section)
        return cls(
            prefix=prefix,
            where=section.path,
            default=replace(form, borrows=any(name.startswith("gptqmodel") for name in names)),
            act_order=section.flag("desc_act", default=False),
            overrides=_overrides(section),
            ignored=_ignored(section),
            algorithm=meta.text("algorithm", default=method),
            quantizer=", ".join(names) or "checkpoint",
        )

    def format_of(self, layer: str) -> FileFormat:
        """How `layer` (its name in the file) is stored; raises `CheckpointError` where it should not be quantized."""
        for pattern, settings in self.overrides.items():
            if re.match(pattern, layer):  # the first that matches holds, as in gptqmodel
                if settings is None:
                    raise self._contradiction(layer, pattern)
                return _with(self.default, settings)
        for part in self.ignored:
            if part in layer:
                raise self._contradiction(layer, part)
        return self.default

    def _contradiction(self, layer: str, entry: str) -> CheckpointError:
        return CheckpointError(
            f"{self.where} says by {entry!r} that {layer} is not quantized, and it is; "
            "weights and configuration are of different checkpoints"
        )


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer that is stored quantized."""

    name: str
    shape: tuple[int, int]
    """Of the weight: outputs, inputs."""
    form: WeightForm
    stored: FileFormat
    places: Mapping[str, Place]

    def read(self) -> QuantizedWeight:
        """Return the codes; raises `CheckpointError` where `quantize.formats.unpack` refuses them."""
        tensors = {
            suffix: place.file.read(place.name) if suffix == "scales" else place.file.read_int32(place.name)
            for suffix, place in self.places.items()
        }
        try:
            return unpack(tensors, self.stored)
        except QuantizationError as error:
            raise CheckpointError(f"{self.name}: {error}") from error


def take_quantized_layers(path: Path, config: Section, places: dict[str, Place]) -> dict[str, QuantizedLayer]:
    """Return the layers in `places` that are stored quantized, by the name of their weight, and remove their tensors.

    Group indices and zero points are read here, as the graph depends on them; they are a hundredth of the codes. Raises
    `CheckpointError` when a tensor is missing or of the wrong shape, when configuration and tensors do not agree, or
    for formats Nearfield cannot import.
    """
    settings = _all_settings(config)
    names = {name.rpartition(".")[0] for name in places if name.rpartition(".")[2] in ("qweight", "qzeros", "g_idx")}
    if names and not settings:
        raise CheckpointError(
            f"{path} holds quantized layers ({min(names)}), and its config.json has no quantization_config to say how; "
            "take config.json from where the weights came from"
        )
    if settings and not names:
        raise CheckpointError(
            f"{settings[0].where} says that {path} is quantized, and none of its tensors are; "
            "weights and configuration are of different checkpoints"
        )
    layers: dict[str, QuantizedLayer] = {}
    for name in sorted(names):
        if f"{name}.weight" in places:
            raise CheckpointError(f"{path} holds layer {name} twice: quantized, and as floats; download it again")
        own = {suffix: places.pop(f"{name}.{suffix}") for suffix in _SUFFIXES if f"{name}.{suffix}" in places}
        layers[f"{name}.weight"] = _open_layer(path, name, own, settings)
    return layers


def _open_layer(path: Path, name: str, places: dict[str, Place], settings: list[_Settings]) -> QuantizedLayer:
    own = next((one for one in settings if name.startswith(one.prefix)), None)
    if own is None:
        raise CheckpointError(
            f"{path} holds quantized layer {name}, and no quantization_config of config.json covers it"
        )
    stored = own.format_of(next(iter(places.values())).name.rpartition(".")[0])
    needed = (*stored.tensor_names(), *(("g_idx",) if own.act_order else ()))
    missing = [suffix for suffix in needed if suffix not in places]
    if missing:
        raise CheckpointError(
            f"quantized layer {name} of {path} has no {' and no '.join(missing)}; expected {', '.join(needed)}: "
            "download the checkpoint again"
        )
    shapes = {suffix: place.file.tensors[place.name].shape for suffix, place in places.items()}
    try:
        if any(len(shape) != (1 if suffix == "g_idx" else 2) for suffix, shape in shapes.items()):
            raise QuantizationError(f"its tensors have shapes {shapes}; expected two axes, and one for g_idx")
        check_shapes(shapes, stored)
        outputs, inputs = stored.shape(shapes)
        zeros = unpack_zeros(_words(places["qzeros"]), outputs, stored)
        index = unpack_index(_words(places["g_idx"]), zeros.shape[1], stored) if "g_idx" in places else None
    except QuantizationError as error:
        raise CheckpointError(f"{name}: {error}") from error
    form = WeightForm(
        method=own.algorithm,
        bits=stored.bits,
        group_size=stored.group_size,
        symmetric=bool((zeros == 1 << (stored.bits - 1)).all()),
        reordered=index is not None,
        source=own.quantizer,
    )
    return QuantizedLayer(name, (outputs, inputs), form, stored, places)


def _words(place: Place) -> npt.NDArray[np.int32]:
    return place.file.read_int32(place.name)


def _all_settings(config: Section) -> list[_Settings]:
    """Every `quantization_config`, the most particular first."""
    found = []
    for prefix, path in SECTIONS.items():
        section: Section | None = config
        for name in path:
            section = section.section(name) if section is not None and section.has(name) else None
        if section is not None and section.has("quantization_config"):
            found.append(_Settings.from_hf(section.section("quantization_config"), prefix))
    return found


def _read_awq(section: Section) -> FileFormat:
    version = section.text("version", "checkpoint_format", "format", default="gemm").lower()
    if version != "gemm":
        raise CheckpointError(
            f"{section.path}.version is {version!r}; of the AWQ formats Nearfield imports 'gemm', the one they are "
            "published in"
        )
    return _checked(section, FileFormat("awq", section.integer("bits", "w_bit"), _group_size(section)))


def _read_gptq(section: Section) -> FileFormat:
    version = section.text("checkpoint_format", "format", default="gptq").lower()
    if version not in _VERSIONS or section.flag("is_marlin_format", default=False):
        found = version if version not in _VERSIONS else "marlin"
        raise CheckpointError(
            f"{section.path}.checkpoint_format is {found!r}; of the GPTQ formats Nearfield imports 'gptq' and 'gptq_v2'"
        )
    packed = section.text("pack_dtype", default="int32")
    if packed != "int32":
        raise CheckpointError(f"{section.path}.pack_dtype is {packed!r}; expected 'int32'")
    symmetric = section.flag("sym", default=False)
    form = FileFormat("gptq", section.integer("bits"), _group_size(section), symmetric, _VERSIONS[version])
    return _checked(section, form)


def _with(form: FileFormat, section: Section) -> FileFormat:
    """`form` as an entry of `dynamic` changes it."""
    changed = replace(
        form,
        bits=section.integer("bits", default=form.bits),
        group_size=_group_size(section, form.group_size),
        symmetric=section.flag("sym", default=form.symmetric),
    )
    return _checked(section, changed)


def _checked(section: Section, form: FileFormat) -> FileFormat:
    allowed = {"awq": (4,), "gptq": (4, 8)}[form.method]
    if form.bits not in allowed:
        expected = " or ".join(str(bits) for bits in allowed)
        raise CheckpointError(
            f"{section.path} is of {form.bits} bits; Nearfield imports {form.method.upper()} of {expected} bits"
        )
    return form


def _group_size(section: Section, default: int = 128) -> int:
    size = section.integer("group_size", "q_group_size", default=default)
    if size != -1 and size < 1:
        raise CheckpointError(f"{section.path}.group_size is {size}; expected a positive number, or -1 for whole rows")
    return size


def _overrides(section: Section) -> dict[str, Section | None]:
    if not section.has("dynamic"):
        return {}
    dynamic = section.section("dynamic")
    overrides: dict[str, Section | None] = {}
    for pattern in dynamic.values:
        try:
            re.compile(pattern[2:] if pattern[:2] in ("+:", "-:") else pattern)
        except re.error as error:
            raise CheckpointError(f"{dynamic.path}: {pattern!r} is not a regular expression ({error})") from error
        if pattern.startswith("-:"):
            overrides[pattern[2:]] = None
        else:
            overrides[pattern.removeprefix("+:")] = dynamic.section(pattern)
    return overrides


def _ignored(section: Section) -> tuple[str, ...]:
    names = section.values.get("modules_to_not_convert") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{section.path}.modules_to_not_convert is {names!r}; expected a list of names")
    return tuple(names)
