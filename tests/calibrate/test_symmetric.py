"""Quantized without zero points and exported in standard operators: what TensorRT asks of an INT4 weight holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from graphs import Graph
from nearfield.calibrate import speech
from nearfield.calibrate.policy import PARTS
from nearfield.calibrate.quantize import Settings, quantize_checkpoint
from nearfield.calibrate.samples import Sample
from nearfield.export.audio_encoder import audio_encoder_graph
from nearfield.export.bind import Reader, write_component
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.export import Configs, ExportOptions, export_bundle
from nearfield.export.graph import Style
from nearfield.runtime.bundle import Bundle
from nearfield.runtime.messages import Audio, Image, Message
from onnx.external_data_helper import load_external_data_for_model
from tolerances import INT4_MATMUL, relative_error

Array = npt.NDArray[Any]
PREFIXES = {
    "thinker": "thinker.", "talker": "talker.", "audio_encoder": "thinker.audio_tower.",
    "vision_encoder": "thinker.visual.", "dit": "token2wav.code2wav_dit_model.",
}  # fmt: skip
TYPES = {4: onnx.TensorProto.INT4, 8: onnx.TensorProto.INT8}


@pytest.fixture(scope="module")
def quantized(checkpoint_3b: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every part, in the bits it has by default."""
    target = tmp_path_factory.mktemp("quantized") / "symmetric"
    rng = np.random.default_rng(5)
    sound = Audio(rng.normal(size=9000).astype(np.float32) * 0.1)
    picture = Image(rng.integers(0, 255, (56, 84, 3), dtype=np.uint8))
    samples = [Sample([Message("user", [sound, picture])], "It is a number, I think.")] * 8
    settings = Settings(method="gptq", group_size=32, symmetric=True, parts=PARTS, threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speech, "MOST_CODES", 31)
        quantize_checkpoint(checkpoint_3b, target, samples, settings, lambda *_: None)
    return target


@pytest.fixture(scope="module")
def bundle(quantized: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "symmetric"
    options = ExportOptions(dialect="standard", float_type="float32", accuracy_level=1)
    export_bundle(quantized, path, options)
    return path


def _initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {initializer.name: initializer for initializer in model.graph.initializer}


@pytest.mark.parametrize("component", PREFIXES)
def test_codes_are_signed_scales_positive_and_zero_points_absent(component: str, quantized: Path, bundle: Path) -> None:
    checkpoint = Checkpoint.open(quantized)
    graph = onnx.load(bundle / f"{component}.onnx", load_external_data=False)
    load_external_data_for_model(graph, str(bundle))
    tensors = _initializers(graph)
    nodes = [node for node in graph.graph.node if node.op_type == "DequantizeLinear"]
    layers = [name for name in checkpoint.stored_forms if _component_of(name) == component]
    assert len(nodes) == len(layers) > 0
    assert {node.domain for node in graph.graph.node} == {""}, "standard operators only"
    for node in nodes:
        codes, scales = (tensors[name] for name in node.input)  # two inputs: no zero points
        name = node.input[0].removesuffix(".weight")
        form = checkpoint.stored_forms[f"{PREFIXES[component]}{name}"]
        assert form.symmetric
        assert codes.data_type == TYPES[form.bits]
        attributes = {it.name: it.i for it in node.attribute}
        assert attributes == {"axis": 0, "block_size": 32}
        values, steps = onnx.numpy_helper.to_array(codes), onnx.numpy_helper.to_array(scales)
        assert (steps > 0).all(), f"TensorRT refuses a scale of {steps.min()}"
        weight = np.repeat(steps, 32, axis=0)[: len(values)] * values.astype(np.float32)
        np.testing.assert_array_equal(
            _as_stored(weight, component, name), checkpoint.read(f"{PREFIXES[component]}{name}.weight")
        )


def _component_of(name: str) -> str:
    return max((it for it in PREFIXES if name.startswith(PREFIXES[it])), key=lambda it: len(PREFIXES[it]))


def _as_stored(weight: Array, component: str, name: str) -> Array:
    """`(N, K)`; the DiT's queries and keys have the pairs of head 0 in another order."""
    weight = weight.T
    if component == "dit" and name.endswith((".to_q", ".to_k")):
        pairs = np.arange(16).reshape(-1, 2)
        weight[np.concatenate([pairs[:, 0], pairs[:, 1]])] = weight[:16].copy()
    return weight


def test_every_quantized_component_says_so(bundle: Path) -> None:
    components = Bundle.open(bundle).manifest.components
    bits = {
        name: it.quantization and (it.quantization.bits, it.quantization.symmetric) for name, it in components.items()
    }
    assert bits == {
        "thinker": (4, True), "talker": (8, True), "audio_encoder": (8, True), "vision_encoder": (8, True),
        "dit": (8, True), "vocoder": None,
    }  # fmt: skip


def test_it_runs_and_equals_the_product_with_what_the_codes_stand_for(
    quantized: Path, bundle: Path, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(quantized)
    floats = audio_encoder_graph(Configs.from_hf(checkpoint.config).audio, Style("standard", "float32"))
    write_component(floats, Reader(checkpoint), tmp_path)
    mel = np.random.default_rng(0).standard_normal((2, 128, 200)).astype(np.float32)
    inputs = {"mel": mel, "frames": np.array([200, 90])}
    found, expected = (Graph(path / "audio_encoder.onnx").run(inputs)["embeddings"] for path in (bundle, tmp_path))
    assert relative_error(found, expected) <= INT4_MATMUL
