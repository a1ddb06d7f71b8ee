"""Checkpoints that are quantized already: exported as they are, in the formats they are published in, or refused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Array, CachedGraph, open_component
from nearfield.errors import CheckpointError, ExportError
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.decoder import DecoderConfig
from nearfield.export.export import Configs, ExportOptions, _expected_bytes, _quantization, export_bundle
from nearfield.export.graph import Style
from nearfield.export.layers import Linear, OutputHead
from nearfield.export.quantized_linear import QuantizedLinear
from nearfield.export.thinker import thinker_graph
from nearfield.export.verify import verify
from nearfield.quantize.formats import FileFormat
from nearfield.runtime.bundle import Bundle
from nearfield.runtime.manifest import Dialect, Manifest
from quantized import (
    DECODER_LAYER,
    all_linear_layers,
    copy_with,
    decoder_layers,
    set_quantization_config,
    thinker_layers,
    write_quantized,
)
from safetensors.numpy import load_file
from tolerances import INT4_MATMUL, relative_error

AWQ, GPTQ = FileFormat("awq", 4, 16), FileFormat("gptq", 4, 128)
OFFICIAL_AWQ = {
    "quant_method": "awq", "zero_point": True, "group_size": 16, "bits": 4, "version": "gemm",
    "modules_to_not_convert": ["visual"],
}  # fmt: skip
UP = "thinker.model.layers.0.mlp.up_proj"
POSITIONS = 21


@pytest.fixture(scope="module")
def awq(checkpoint_7b: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Qwen/Qwen2.5-Omni-7B-AWQ is published."""
    target = tmp_path_factory.mktemp("quantized") / "awq"
    return write_quantized(checkpoint_7b, target, thinker_layers(AWQ), OFFICIAL_AWQ)


@pytest.fixture(scope="module")
def gptq(checkpoint_3b: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thinker and Talker by GPTQ with act-order, in groups of 128 of which the last of every row is ragged."""
    target = tmp_path_factory.mktemp("quantized") / "gptq"
    config = GPTQ.config(quantizer="gptqmodel:7.6.0", act_order=True)
    return write_quantized(checkpoint_3b, target, decoder_layers(GPTQ), config, act_order=True)


@pytest.fixture(params=["awq", "gptq"])
def quantized(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


def floats_of(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}-floats")


# What is read


def test_a_quantized_checkpoint_has_the_weights_its_codes_stand_for(quantized: Path) -> None:
    checkpoint, floats = Checkpoint.open(quantized), Checkpoint.open(floats_of(quantized))
    assert checkpoint.names == floats.names
    assert checkpoint.head_is_tied == floats.head_is_tied
    assert checkpoint.stored_forms
    for name in floats.names:
        assert checkpoint.shape(name) == floats.shape(name)
        np.testing.assert_array_equal(checkpoint.read(name), floats.read(name), err_msg=name)
    blocks = list(checkpoint.rows(f"{UP}.weight", 100))
    assert [start for start, _ in blocks] == list(range(0, floats.shape(f"{UP}.weight")[0], 100))
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in blocks]), floats.read(f"{UP}.weight"))


def test_names_transformers_has_in_memory_are_read_alike(gptq: Path, tmp_path: Path) -> None:
    tensors = load_file(gptq / "model.safetensors")
    renamed = {re.sub(r"^thinker\.model\.", "thinker.model.language_model.", name): t for name, t in tensors.items()}
    copy_with(gptq, tmp_path, renamed)
    assert Checkpoint.open(tmp_path).stored_forms == Checkpoint.open(gptq).stored_forms


# What is exported


def _thinker_outputs(path: Path, style: Style, directory: Path) -> dict[str, Array]:
    checkpoint = Checkpoint.open(path)
    config = DecoderConfig.from_hf(checkpoint.config.section("thinker_config").section("text_config"))
    directory.mkdir()
    graph = CachedGraph(
        open_component(thinker_graph(config, style), path, directory), dialect=style.dialect, layers=config.layers,
        kv_heads=config.kv_heads, head_dim=config.head_dim, context=POSITIONS,
    )  # fmt: skip
    embeds = np.random.default_rng(7).standard_normal((1, POSITIONS, config.hidden_size)).astype(np.float32)
    steps = np.arange(POSITIONS)
    return graph.feed(embeds, np.stack([steps, steps // 2 + 3, steps % 7]))


@pytest.mark.parametrize("dialect", ["ort", "standard"])
def test_the_thinker_equals_that_of_the_dequantized_checkpoint(
    quantized: Path, tmp_path: Path, dialect: Dialect
) -> None:
    stored = Checkpoint.open(quantized).stored_forms
    style = Style(dialect, "float32", accuracy_level=1, stored=stored)
    found = _thinker_outputs(quantized, style, tmp_path / "codes")
    expected = _thinker_outputs(floats_of(quantized), Style(dialect, "float32"), tmp_path / "floats")
    for name in ("logits", "last_hidden_state"):
        assert relative_error(found[name], expected[name]) <= INT4_MATMUL
    graph = onnx.load(tmp_path / "codes" / "thinker.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    layers = sum(name.startswith("thinker.") for name in stored)
    assert kinds.count("MatMulNBits" if dialect == "ort" else "DequantizeLinear") == layers


@pytest.fixture(scope="module")
def awq_floats(awq: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """What the dequantized weights of `awq` are exported to."""
    return export_bundle(floats_of(awq), tmp_path_factory.mktemp("bundle") / "floats", ExportOptions(bits=32))


@pytest.fixture(scope="module")
def gptq_bundle(gptq: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "gptq"
    export_bundle(gptq, path, ExportOptions())
    return path


def test_asked_for_floats_a_quantized_checkpoint_is_dequantized(
    awq: Path, tmp_path: Path, awq_floats: Manifest
) -> None:
    manifest = export_bundle(awq, tmp_path / "bundle", ExportOptions(bits=32))
    assert manifest.files == awq_floats.files
    assert all(component.quantization is None for component in manifest.components.values())


def test_a_checkpoint_as_published_is_exported_as_it_is(awq: Path, tmp_path: Path, awq_floats: Manifest) -> None:
    manifest = export_bundle(awq, tmp_path / "bundle", ExportOptions(float_type="float32", accuracy_level=1))
    Bundle.open(tmp_path / "bundle").check()
    thinker = manifest.components["thinker"].quantization
    assert thinker is not None
    assert (thinker.method, thinker.bits, thinker.group_size, thinker.symmetric) == ("awq", 4, 16, False)
    assert (thinker.source, thinker.accuracy_level, thinker.other_bits) == ("checkpoint", 1, {})
    assert {name for name, part in manifest.components.items() if part.quantization is not None} == {"thinker"}
    for name in manifest.components:  # what the checkpoint has as floats, stays so
        assert (manifest.files[f"{name}.data"] == awq_floats.files[f"{name}.data"]) == (name != "thinker")


def test_the_manifest_says_where_the_codes_are_from(gptq_bundle: Path) -> None:
    components = Bundle.open(gptq_bundle).manifest.components
    for name in ("thinker", "talker"):
        quantization = components[name].quantization
        assert quantization is not None
        assert (quantization.method, quantization.group_size) == ("gptq", 128)
        assert quantization.source == "gptqmodel:7.6.0"
    talker = components["talker"].quantization
    assert talker is not None
    assert talker.other_bits == {"thinker_to_talker_proj": 16}


def test_the_room_asked_for_is_about_what_quantized_weights_take(gptq: Path, gptq_bundle: Path) -> None:
    weights = [file for file in gptq_bundle.iterdir() if file.suffix in (".data", ".npy", ".safetensors")]
    taken = sum(file.stat().st_size for file in weights)
    assert _expected_bytes(Checkpoint.open(gptq), ExportOptions()) == pytest.approx(taken, rel=0.1)


def test_layers_of_other_bits_are_listed(checkpoint_3b: Path, tmp_path: Path) -> None:
    eight = FileFormat("gptq", 8, 32, symmetric=True)
    four = FileFormat("gptq", 4, 128)
    kept = f"{UP.removesuffix('up_proj')}down_proj"

    def form_of(name: str) -> FileFormat | None:
        if name == kept or not DECODER_LAYER.match(name):
            return None
        return eight if "self_attn" in name or name.startswith("talker") else four

    config = four.config(quantizer="nearfield:1", algorithm="rtn") | {
        "dynamic": {
            rf"-:{re.escape(kept)}": {},
            r".*self_attn": {"bits": 8, "group_size": 32, "sym": True},
            r"+:talker\..*": {"bits": 8, "group_size": 32, "sym": True},
        }
    }
    path = write_quantized(checkpoint_3b, tmp_path / "mixed", form_of, config)
    checkpoint, options = Checkpoint.open(path), ExportOptions(float_type="float32")
    graphs = Configs.from_hf(checkpoint.config).graphs(options, checkpoint.stored_forms)
    records = {component.name: _quantization(component, style) for component, style in graphs}
    thinker, talker = records["thinker"], records["talker"]
    assert thinker is not None and talker is not None
    assert (thinker.method, thinker.bits, thinker.symmetric, thinker.source) == ("rtn", 4, False, "nearfield:1")
    attention = {f"model.layers.{i}.self_attn.{x}_proj": 8 for i in range(3) for x in "qkvo"}
    assert thinker.other_bits == {**attention, "model.layers.0.mlp.down_proj": 32}
    assert (talker.bits, talker.group_size, talker.symmetric) == (8, 32, True)
    style = Style("ort", "float32", accuracy_level=1, stored=checkpoint.stored_forms)
    outputs = _thinker_outputs(path, style, tmp_path / "codes")
    expected = _thinker_outputs(floats_of(path), Style("ort", "float32"), tmp_path / "floats")
    assert relative_error(outputs["logits"], expected["logits"]) <= INT4_MATMUL


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_every_linear_layer_has_a_quantized_form(request: pytest.FixtureRequest, tmp_path: Path, size: str) -> None:
    source: Path = request.getfixturevalue(f"checkpoint_{size}")
    eight = FileFormat("gptq", 8, -1)
    config = eight.config(quantizer="nearfield:1")
    path = write_quantized(source, tmp_path / "all", all_linear_layers(eight), config)
    checkpoint = Checkpoint.open(path)
    assert ("thinker.lm_head" in checkpoint.stored_forms) == (size == "7b")
    found: set[str] = set()
    for component, _ in Configs.from_hf(checkpoint.config).graphs(ExportOptions(), checkpoint.stored_forms):
        for name, module in component.root.named_modules():
            assert not isinstance(module, Linear), f"{component.prefix}{name} is not quantized"
            assert not isinstance(module, OutputHead) or size == "3b"
            if isinstance(module, QuantizedLinear):
                found.add(f"{component.prefix}{name}")
    modulation = {name for name in checkpoint.stored_forms if re.search(r"norm(_out)?\.linear$", name)}
    assert found == set(checkpoint.stored_forms) - modulation  # which is a table in the bundle
    if size == "7b":
        return
    bundle = export_bundle(path, tmp_path / "bundle", ExportOptions(float_type="float32"))
    assert {name for name, part in bundle.components.items() if part.quantization is None} == {"vocoder"}
    rows = list(verify(tmp_path / "bundle", path))  # the reference holds the weights the codes stand for
    assert {row.component for row in rows} == set(bundle.components)
    assert all(row.passed and row.quantization_error is None for row in rows)


# Configurations


@pytest.mark.parametrize("section", [None, "thinker_config"])
def test_the_configuration_is_found_at_the_top_and_in_the_thinker(
    checkpoint_7b: Path, tmp_path: Path, section: str | None
) -> None:
    form = FileFormat("gptq", 4, 64, symmetric=True, version=1)
    config = form.config(quantizer="gptqmodel:2.0.0")
    path = write_quantized(checkpoint_7b, tmp_path / "model", thinker_layers(form), config, section=section)
    forms = Checkpoint.open(path).stored_forms
    assert len(forms) == 2 * 7
    assert all((form.bits, form.group_size, form.symmetric) == (4, 64, True) for form in forms.values())


def test_thinker_and_talker_can_have_a_configuration_each(checkpoint_7b: Path, tmp_path: Path) -> None:
    talker = FileFormat("gptq", 8, 32)

    def form_of(name: str) -> FileFormat | None:
        return None if not DECODER_LAYER.match(name) else AWQ if name.startswith("thinker") else talker

    path = write_quantized(checkpoint_7b, tmp_path / "model", form_of, OFFICIAL_AWQ, section="thinker_config")
    set_quantization_config(path, talker.config(quantizer="nearfield:1"), "talker_config")
    forms = Checkpoint.open(path).stored_forms
    assert {(name.split(".")[0], form.method, form.bits) for name, form in forms.items()} == {
        ("thinker", "awq", 4),
        ("talker", "gptq", 8),
    }


def test_scales_of_bfloat16_are_read(awq: Path, tmp_path: Path) -> None:
    tensors = load_file(awq / "model.safetensors")
    name = f"{UP}.scales"
    rounded = (tensors[name].astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    copy_with(awq, tmp_path, tensors | {name: rounded})
    content = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert header[name]["dtype"] == "F32"
    assert Checkpoint.open(tmp_path).quantized(f"{UP}.weight").scales.dtype == np.float32


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "compressed-tensors"}, r"quant_method is 'compressed-tensors'; Nearfield imports 'awq' and"),
        ({"bits": 4}, "quant_method is ''; Nearfield imports 'awq' and 'gptq'"),
        ({**OFFICIAL_AWQ, "version": "gemv"}, r"version is 'gemv'; of the AWQ formats Nearfield imports 'gemm'"),
        ({**OFFICIAL_AWQ, "version": "exllama"}, r"version is 'exllama'; of the AWQ"),
        ({**OFFICIAL_AWQ, "version": "marlin"}, r"version is 'marlin'; of the AWQ"),
        ({**OFFICIAL_AWQ, "bits": 8}, "is of 8 bits; Nearfield imports AWQ of 4 bits"),
        ({**OFFICIAL_AWQ, "group_size": 0}, "group_size is 0; expected a positive number, or -1"),
        ({**OFFICIAL_AWQ, "group_size": "128"}, "group_size is '128'; expected a whole number"),
        ({**OFFICIAL_AWQ, "group_size": 32}, r"qzeros has shape .*in groups of 32 .*of different checkpoints"),
        (
            {**OFFICIAL_AWQ, "modules_to_not_convert": ["visual", "mlp"]},
            "says by 'mlp' that thinker.* is not quantized",
        ),
        ({**OFFICIAL_AWQ, "modules_to_not_convert": "visual"}, "is 'visual'; expected a list of names"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, "is of 3 bits; Nearfield imports GPTQ of 4 or 8 bits"),
        ({"quant_method": "gptq", "bits": 2, "group_size": 128}, "is of 2 bits; Nearfield imports GPTQ of 4 or 8 bits"),
        ({"quant_method": "gptq", "group_size": 128}, "has no 'bits'"),
        ({**GPTQ.config(quantizer=""), "checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'; of the GPTQ"),
        ({**GPTQ.config(quantizer=""), "is_marlin_format": True}, "checkpoint_format is 'marlin'; of the GPTQ formats"),
        ({**GPTQ.config(quantizer=""), "pack_dtype": "int16"}, "pack_dtype is 'int16'; expected 'int32'"),
        (
            {**GPTQ.config(quantizer=""), "dynamic": {"-:.*mlp": {}}},
            r"says by '\.\*mlp' that thinker.* is not quantized",
        ),
        ({**GPTQ.config(quantizer=""), "dynamic": {"+:.*(": {}}}, r"'\+:\.\*\(' is not a regular expression"),
        ({**GPTQ.config(quantizer=""), "dynamic": {".*": {"bits": 3}}}, "is of 3 bits; Nearfield imports GPTQ"),
        (GPTQ.config(quantizer=""), "qweight has shape"),  # of tensors that are AWQ's
    ],
)
def test_configurations_that_cannot_be_imported_are_refused(
    awq: Path, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    copy_with(awq, tmp_path, load_file(awq / "model.safetensors"))
    set_quantization_config(tmp_path, config)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path)


def test_quantized_tensors_without_a_configuration_are_refused(awq: Path, tmp_path: Path) -> None:
    copy_with(awq, tmp_path, load_file(awq / "model.safetensors"))
    set_quantization_config(tmp_path, None)
    with pytest.raises(CheckpointError, match=r"holds quantized layers \(thinker.*\), and its config\.json has no"):
        Checkpoint.open(tmp_path)


def test_a_configuration_without_quantized_tensors_is_refused(awq: Path, tmp_path: Path) -> None:
    copy_with(floats_of(awq), tmp_path, load_file(floats_of(awq) / "model.safetensors"))
    set_quantization_config(tmp_path, OFFICIAL_AWQ)
    with pytest.raises(
        CheckpointError, match=r"quantization_config says that .* is quantized, and none of its tensors"
    ):
        Checkpoint.open(tmp_path)


def test_a_layer_no_configuration_covers_is_refused(gptq: Path, tmp_path: Path) -> None:
    copy_with(gptq, tmp_path, load_file(gptq / "model.safetensors"))
    set_quantization_config(tmp_path, None)
    set_quantization_config(tmp_path, GPTQ.config(quantizer="", act_order=True), "thinker_config")
    with pytest.raises(CheckpointError, match=r"holds quantized layer talker.*, and no quantization_config"):
        Checkpoint.open(tmp_path)


# Damaged tensors


@pytest.mark.parametrize("missing", ["qweight", "qzeros", "scales", "g_idx"])
def test_a_missing_tensor_is_named(gptq: Path, tmp_path: Path, missing: str) -> None:
    tensors = load_file(gptq / "model.safetensors")
    del tensors[f"{UP}.{missing}"]
    copy_with(gptq, tmp_path, tensors)
    with pytest.raises(
        CheckpointError, match=rf"quantized layer {UP} of .* has no {missing}; expected qweight, qzeros,"
    ):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qweight": np.zeros((3, 4), np.int32)}, rf"{UP}: qweight has shape \(3, 4\); a weight of 320 outputs"),
        ({"qweight": np.zeros(12, np.int32)}, f"{UP}: its tensors have shapes .*; expected two axes"),
        ({"qweight": np.zeros((20, 320), np.int64)}, f"tensor {UP}.qweight in .* has dtype I64; expected I32"),
        ({"qzeros": np.zeros((2, 40), np.uint8)}, f"tensor {UP}.qzeros in .* has dtype U8; expected I32"),
        ({"scales": np.full((2, 320), np.nan, np.float16)}, f"{UP}: a scale is NaN or infinite; the checkpoint is"),
        ({"scales": np.zeros((2, 320), np.int32)}, f"tensor {UP}.scales in .* has dtype I32; expected F32, F16"),
        ({"g_idx": np.full(160, 7, np.int32)}, f"{UP}: g_idx counts groups 7 to 7; expected 0 to 1"),
        ({"g_idx": np.zeros(160, np.int32)}, f"{UP}: g_idx does not divide 160 inputs into groups of 128"),
        ({"weight": np.zeros((320, 160), np.float32)}, f"holds layer {UP} twice: quantized, and as floats"),
    ],
)
def test_damaged_layers_are_named(gptq: Path, tmp_path: Path, change: dict[str, Array], message: str) -> None:
    tensors = load_file(gptq / "model.safetensors")
    copy_with(gptq, tmp_path, tensors | {f"{UP}.{name}": array for name, array in change.items()})
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path).quantized(f"{UP}.weight")


def test_a_damaged_layer_leaves_nothing_half_written(gptq: Path, tmp_path: Path) -> None:
    tensors = load_file(gptq / "model.safetensors")
    tensors[f"{UP}.scales"][0, 0] = np.nan
    copy_with(gptq, tmp_path / "model", tensors)
    with pytest.raises(CheckpointError, match=f"{UP}: a scale is NaN or infinite; the checkpoint is damaged: download"):
        export_bundle(tmp_path / "model", tmp_path / "bundle", ExportOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_another_shape_than_the_configurations_is_named(gptq: Path, tmp_path: Path) -> None:
    """A layer that is whole in itself, of half the outputs."""
    tensors = load_file(gptq / "model.safetensors")
    halves = {f"{UP}.{name}": np.ascontiguousarray(tensors[f"{UP}.{name}"][:, :160]) for name in ("qweight", "scales")}
    halves[f"{UP}.qzeros"] = np.ascontiguousarray(tensors[f"{UP}.qzeros"][:, :20])
    copy_with(gptq, tmp_path / "model", tensors | halves)
    message = rf"tensor '{UP}\.weight' has shape \(160, 160\), its config\.json says \(320, 160\)"
    style = Style("ort", "float32", stored=Checkpoint.open(tmp_path / "model").stored_forms)
    with pytest.raises(ExportError, match=message):
        _thinker_outputs(tmp_path / "model", style, tmp_path / "out")
