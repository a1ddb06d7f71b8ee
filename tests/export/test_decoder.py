"""Thinker and Talker graphs beside the reference, in both dialects, float types and weight formats."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import Array, CachedGraph, open_component
from hypothesis import given
from hypothesis import strategies as st
from nearfield.errors import CheckpointError
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.config import Section
from nearfield.export.decoder import DecoderConfig
from nearfield.export.graph import ComponentGraph, Style
from nearfield.export.talker import talker_graph
from nearfield.export.thinker import thinker_graph
from nearfield.quantize.grid import Grid
from nearfield.quantize.rtn import round_to_nearest
from nearfield.runtime.manifest import Dialect, FloatType
from reference import load_model
from tolerances import CHUNKED_PREFILL, FP16_RELATIVE, FP32_RELATIVE, relative_error
from transformers import Qwen2_5OmniForConditionalGeneration

POSITIONS = 37
DIALECTS: list[Dialect] = ["ort", "standard"]


class Case:
    """A decoder of one checkpoint with inputs that use all three position axes."""

    def __init__(self, name: str, checkpoint: Path, reference: Qwen2_5OmniForConditionalGeneration) -> None:
        config = Checkpoint.open(checkpoint).config
        section = config.section("thinker_config").section("text_config")
        self.width = section.integer("hidden_size")
        self.name, self.checkpoint, self.reference = name, checkpoint, reference
        self.config = DecoderConfig.from_hf(section if name == "thinker" else config.section("talker_config"))
        rng = np.random.default_rng(7)
        self.embeds = rng.standard_normal((1, POSITIONS, self.width)).astype(np.float32)
        steps = np.arange(POSITIONS)
        self.position_ids = np.stack([steps, steps // 2 + 3, steps % 7])

    def component(self, style: Style) -> ComponentGraph:
        if self.name == "thinker":
            return thinker_graph(self.config, style)
        return talker_graph(self.config, self.width, style)

    def open(self, style: Style, directory: Path, context: int = POSITIONS + 3) -> CachedGraph:
        graph = open_component(self.component(style), self.checkpoint, directory)
        config = self.config
        return CachedGraph(
            graph,
            dialect=style.dialect,
            layers=config.layers,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            context=context,
        )

    @torch.no_grad()
    def expected(self) -> tuple[Array, Array]:
        """Logits of the last position, and normed hidden states, of the reference."""
        embeds, ids = torch.from_numpy(self.embeds), torch.from_numpy(self.position_ids)[:, None]
        if self.name == "thinker":
            thinker = self.reference.thinker
            hidden = thinker.model.language_model(inputs_embeds=embeds, position_ids=ids).last_hidden_state
            return thinker.lm_head(hidden[:, -1]).numpy(), hidden.numpy()
        talker = self.reference.talker
        hidden = talker.model(inputs_embeds=talker.thinker_to_talker_proj(embeds), position_ids=ids).last_hidden_state
        return talker.codec_head(hidden[:, -1]).numpy(), hidden.numpy()


@pytest.fixture(params=["thinker-3b", "talker-3b", "thinker-7b", "talker-7b"])
def case(request: pytest.FixtureRequest) -> Case:
    name, size = request.param.split("-")
    return Case(name, request.getfixturevalue(f"checkpoint_{size}"), request.getfixturevalue(f"reference_{size}"))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("float_type", "limit"), [("float32", FP32_RELATIVE), ("float16", FP16_RELATIVE)])
def test_equals_the_reference(
    case: Case, dialect: Dialect, float_type: FloatType, limit: float, tmp_path: Path
) -> None:
    outputs = case.open(Style(dialect, float_type), tmp_path).feed(case.embeds, case.position_ids)
    logits, hidden = case.expected()
    assert relative_error(outputs["logits"], logits) <= limit
    if case.name == "thinker":
        assert relative_error(outputs["last_hidden_state"], hidden) <= limit


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("float_type", "limit"), [("float32", FP32_RELATIVE), ("float16", FP16_RELATIVE)])
def test_int4_equals_the_reference_with_the_same_weights(
    case: Case, dialect: Dialect, float_type: FloatType, limit: float, tmp_path: Path
) -> None:
    style = Style(dialect, float_type, bits=4, accuracy_level=1)
    outputs = case.open(style, tmp_path).feed(case.embeds, case.position_ids)
    with quantized(case, style):
        logits, _ = case.expected()
    assert relative_error(outputs["logits"], logits) <= limit
    assert relative_error(outputs["logits"], case.expected()[0]) > 10 * limit, "the weights were not quantized"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_half_floats_tell_far_positions_apart(case: Case, dialect: Dialect, tmp_path: Path) -> None:
    case.position_ids = case.position_ids + 20_000  # a half float knows every sixteenth of these
    outputs = case.open(Style(dialect, "float16"), tmp_path).feed(case.embeds, case.position_ids)
    assert relative_error(outputs["logits"], case.expected()[0]) <= FP16_RELATIVE


@pytest.mark.parametrize("name", ["thinker", "talker"])
def test_the_checkpoints_rope_and_norm_settings_are_used(checkpoint_7b: Path, tmp_path: Path, name: str) -> None:
    altered = Path(shutil.copytree(checkpoint_7b, tmp_path / "altered"))
    config = json.loads((altered / "config.json").read_text(encoding="utf-8"))
    for section in (config["thinker_config"]["text_config"], config["talker_config"]):
        section["rms_norm_eps"] = 1e-2  # a hundredth of the mean square, to be seen
        section["rope_parameters"]["rope_theta"] = 5e5
    (altered / "config.json").write_text(json.dumps(config), encoding="utf-8")
    case = Case(name, altered, load_model(altered))
    assert (case.config.norm_epsilon, case.config.rope_theta) == (1e-2, 5e5)
    outputs = case.open(Style("ort", "float32"), tmp_path).feed(case.embeds, case.position_ids)
    assert relative_error(outputs["logits"], case.expected()[0]) <= FP32_RELATIVE


@pytest.mark.parametrize("dialect", DIALECTS)
def test_prefill_in_chunks_equals_one_piece(case: Case, dialect: Dialect, tmp_path: Path) -> None:
    style = Style(dialect, "float32")
    whole = case.open(style, tmp_path).feed(case.embeds, case.position_ids)["logits"]
    graph = case.open(style, tmp_path)

    @given(st.lists(st.integers(1, POSITIONS - 1), max_size=6, unique=True).map(sorted))
    def check(cuts: list[int]) -> None:
        graph.length = 0
        if dialect == "standard":
            graph.past = {name: array[:, :, :0] for name, array in graph.past.items()}
        bounds = [0, *cuts, POSITIONS]
        for start, end in itertools.pairwise(bounds):
            outputs = graph.feed(case.embeds[:, start:end], case.position_ids[:, start:end])
        assert relative_error(outputs["logits"], whole) <= CHUNKED_PREFILL

    check()


def test_settings_it_does_not_have_are_refused() -> None:
    with pytest.raises(CheckpointError, match="use_sliding_window is true; Nearfield has full attention only"):
        DecoderConfig.from_hf(Section({"use_sliding_window": True}, "config.json.talker_config"))
    with pytest.raises(CheckpointError, match="hidden_act is 'gelu'; Nearfield has 'silu' only"):
        DecoderConfig.from_hf(Section({"hidden_act": "gelu", "hidden_size": 64, "num_attention_heads": 4}, "c"))
    for key in ("rope_type", "type"):
        rope = {"rope_scaling": {key: "yarn", "factor": 4.0}}
        with pytest.raises(CheckpointError, match="rope_type is 'yarn'; Nearfield has plain multimodal RoPE only"):
            DecoderConfig.from_hf(Section({"hidden_size": 64, "num_attention_heads": 4, **rope}, "c"))
    values = {"hidden_size": 64, "num_attention_heads": 4, "rope_scaling": {"mrope_section": [2, 3, 4]}}
    with pytest.raises(CheckpointError, match=r"mrope_section \[2, 3, 4\] must add up to half of 16"):
        DecoderConfig.from_hf(Section(values, "config.json.talker_config"))


class quantized:
    """While open, the reference's Linear layers hold what their INT4 codes stand for."""

    def __init__(self, case: Case, style: Style) -> None:
        part = case.reference.thinker.model.language_model if case.name == "thinker" else case.reference.talker.model
        layers = [module for module in part.modules() if isinstance(module, torch.nn.Linear)]
        self.layers = layers if case.name == "thinker" else [*layers, case.reference.talker.thinker_to_talker_proj]
        self.style = style

    def __enter__(self) -> None:
        self.saved = [layer.weight.data for layer in self.layers]
        for layer, weight in zip(self.layers, self.saved, strict=True):
            codes = round_to_nearest(
                weight.numpy(), Grid(group_size=self.style.group_size, scale_dtype=self.style.numpy_dtype)
            )
            layer.weight.data = torch.from_numpy(codes.dequantize())

    def __exit__(self, *_: object) -> None:
        for layer, weight in zip(self.layers, self.saved, strict=True):
            layer.weight.data = weight
