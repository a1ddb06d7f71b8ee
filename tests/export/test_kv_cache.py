"""A bundle whose decoders keep their cache in a type of its own; and what cannot be asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
from nearfield.errors import ExportError
from nearfield.export.attention import CacheScales
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.decoder import DecoderConfig
from nearfield.export.export import Configs, ExportOptions, export_bundle
from nearfield.runtime.events import AudioChunk, TurnEnd
from nearfield.runtime.manifest import ComponentName
from nearfield.runtime.messages import Message, Text
from nearfield.runtime.omni import Omni

INT8 = ExportOptions(bits=32, kv_cache="int8")
TYPES = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}


def scales_of(checkpoint: Path) -> dict[ComponentName, CacheScales]:
    """Scales that fit a checkpoint's shapes, wide enough for all it computes."""
    configs = Configs.from_hf(Checkpoint.open(checkpoint).config)
    found: dict[ComponentName, DecoderConfig] = {"thinker": configs.thinker, "talker": configs.talker}
    shapes = {name: (config.layers, config.kv_heads, config.head_dim) for name, config in found.items()}
    return {name: CacheScales(*np.full((2, *shape), 0.05, np.float32)) for name, shape in shapes.items()}


@pytest.mark.parametrize("kind", ["same", "float16", "int8"])
def test_a_bundle_with_each_type_opens_and_answers(
    checkpoint_3b: Path, tmp_path: Path, kind: Literal["same", "float16", "int8"]
) -> None:
    options = ExportOptions(bits=32, kv_cache=kind, kv_scales=scales_of(checkpoint_3b) if kind == "int8" else {})
    manifest = export_bundle(checkpoint_3b, tmp_path / "bundle", options)
    expected = "float32" if kind == "same" else kind
    for name, cache in (("thinker", manifest.thinker.kv_cache), ("talker", manifest.talker.kv_cache)):
        assert cache.dtype == (None if kind == "same" else kind)
        graph = onnx.load(tmp_path / "bundle" / f"{name}.onnx", load_external_data=False).graph
        kept = [port for port in (*graph.input, *graph.output) if port.name.startswith(("past_key", "present."))]
        assert len(kept) == 4 * cache.layers
        assert {port.type.tensor_type.elem_type for port in kept} == {TYPES[expected]}
    omni = Omni.load(tmp_path / "bundle", threads=1, context=128)
    speak = kind == "int8"  # once is enough
    events = list(omni.respond([Message("user", [Text("hello")])], max_tokens=3, max_codes=2, speak=speak))
    assert isinstance(events[-1], TurnEnd)
    assert any(isinstance(event, AudioChunk) for event in events) == speak


def test_what_is_float16_anyway_is_what_it_was(checkpoint_3b: Path) -> None:
    config = Configs.from_hf(Checkpoint.open(checkpoint_3b).config).thinker
    assert ExportOptions(bits=16, kv_cache="float16").cache("thinker", config).dtype is None
    assert ExportOptions(bits=32, kv_cache="float16").cache("thinker", config).dtype == "float16"


def test_the_standard_dialect_has_no_other_type(checkpoint_3b: Path, tmp_path: Path) -> None:
    options = ExportOptions(bits=32, dialect="standard", kv_cache="float16")
    with pytest.raises(ExportError, match="'standard' keeps keys and values as float32 only, not as float16"):
        export_bundle(checkpoint_3b, tmp_path / "bundle", options)
    assert not list(tmp_path.iterdir())


def test_int8_needs_scales_that_fit(checkpoint_3b: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="int8 cache needs scales for the thinker's keys and values"):
        export_bundle(checkpoint_3b, tmp_path / "bundle", INT8)
    good = scales_of(checkpoint_3b)
    zero = good["talker"].value.copy()
    zero[0, 0, 3] = 0
    for wrong, found in ((good["thinker"].key[:1], r"found \(1, 2, 16\)"), (zero, "found .* from 0 to 0.05")):
        options = replace(INT8, kv_scales=good | {"talker": CacheScales(good["talker"].key, wrong)})
        with pytest.raises(ExportError, match=f"scales of the talker's cache must be .* positive numbers, {found}"):
            export_bundle(checkpoint_3b, tmp_path / "bundle", options)
    assert not list(tmp_path.iterdir())
