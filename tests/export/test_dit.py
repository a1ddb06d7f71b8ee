"""The DiT's graph, modulation table and schedule beside the reference."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import Array, Graph, open_component
from nearfield.errors import CheckpointError
from nearfield.export.bind import Reader, write_component
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.config import Section
from nearfield.export.dit import dit_graph
from nearfield.export.dit_config import DIT_PREFIX, DiTConfig
from nearfield.export.dit_modulation import modulation_table, rk4_times
from nearfield.export.graph import Style, shape_of
from nearfield.export.speaker_encoder import encode_speaker
from nearfield.runtime.manifest import Dialect, FloatType
from tolerances import FP16_RELATIVE, FP32_RELATIVE, relative_error
from torch.nn.functional import silu

DIALECTS: list[Dialect] = ["ort", "standard"]
# One code; inside a block; a block to the frame, one code less and more; both neighbours; not a multiple of a block.
CODE_COUNTS = (1, 5, 11, 12, 13, 24, 36, 50)
GUIDANCE = 0.5


@dataclass
class Case:
    """The DiT of one checkpoint, the reference's, and a voice."""

    checkpoint: Path
    config: DiTConfig
    reference: Any
    cond: torch.Tensor
    ref_mel: torch.Tensor

    def reader(self) -> Reader:
        return Reader(Checkpoint.open(self.checkpoint))

    def open(self, style: Style, directory: Path) -> Graph:
        return open_component(dit_graph(self.config, style), self.checkpoint, directory)

    def trial(self, codes: int) -> tuple[Array, Array]:
        """A state `(1, F, 80)` and codes `(1, F/2)`, the highest code among them."""
        rng = np.random.default_rng(codes)
        code_ids = rng.integers(0, self.config.num_embeds, (1, codes))
        code_ids[0, -1] = self.config.num_embeds - 1
        return rng.standard_normal((1, 2 * codes, self.config.mel_dim)).astype(np.float32), code_ids

    @torch.no_grad()
    def velocity(self, mel: Array, codes: Array, time: float) -> Array:
        """The reference's guided velocity."""
        conditional, unconditional = self.reference(
            hidden_states=torch.from_numpy(mel),
            condition_vector=self.ref_mel,
            speaker_embedding=self.cond.unsqueeze(1).repeat(1, mel.shape[1], 1),
            quantized_code=torch.from_numpy(codes),
            time_step=torch.tensor(time),
        ).chunk(2)
        velocity: Array = (conditional + (conditional - unconditional) * GUIDANCE).numpy()
        return velocity

    def inputs(self, mel: Array, codes: Array, time: float, float_type: FloatType) -> dict[str, Array]:
        """The same for the graph."""
        mels = self.ref_mel.numpy(), np.zeros_like(self.ref_mel.numpy())
        return {
            "mel": mel.astype(float_type),
            "codes": codes,
            "speaker": self.cond.numpy().astype(float_type),
            "encoding": np.concatenate([encode_speaker(self.config, self.reader(), m) for m in mels]).astype(
                float_type
            ),
            "modulation": modulation_table(self.config, self.reader(), [time])[0].astype(float_type),
            "guidance": np.array(GUIDANCE, float_type),
        }


@pytest.fixture(scope="module", params=["3b", "7b"])
def case(request: pytest.FixtureRequest) -> Case:
    path: Path = request.getfixturevalue(f"checkpoint_{request.param}")
    reference = request.getfixturevalue(f"reference_{request.param}").token2wav.code2wav_dit_model
    section = Checkpoint.open(path).config.section("token2wav_config").section("dit_config")
    voice = torch.load(path / "spk_dict.pt", weights_only=True)["Ethan"]
    return Case(path, DiTConfig.from_hf(section), reference, voice["cond"], voice["ref_mel"])


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("float_type", "limit"), [("float32", FP32_RELATIVE), ("float16", FP16_RELATIVE)])
def test_velocity_equals_the_reference_at_every_length(
    case: Case, dialect: Dialect, float_type: FloatType, limit: float, tmp_path: Path
) -> None:
    graph = case.open(Style(dialect, float_type), tmp_path)
    for codes in CODE_COUNTS:
        mel, code_ids = case.trial(codes)
        velocity = graph.run(case.inputs(mel, code_ids, 0.3, float_type))["velocity"]
        assert velocity.dtype == float_type
        assert relative_error(velocity, case.velocity(mel, code_ids, 0.3)) <= limit, f"{codes} codes"


def test_a_layer_that_looks_both_ways_sees_both_neighbours(case: Case, tmp_path: Path) -> None:
    settings = {"look_ahead_layers": [1], "look_backward_layers": [1], "dim": case.config.hidden_size}
    section = Checkpoint.open(case.checkpoint).config.section("token2wav_config").section("dit_config")
    config = DiTConfig.from_hf(Section(section.values | settings, "dit_config"))
    graph = open_component(dit_graph(config, Style("ort", "float32")), case.checkpoint, tmp_path)
    mel, codes = case.trial(50)
    before = [(block.look_ahead_block, block.look_backward_block) for block in case.reference.transformer_blocks]
    for layer, block in enumerate(case.reference.transformer_blocks):
        block.look_ahead_block = block.look_backward_block = int(layer == 1)
    expected = case.velocity(mel, codes, 0.3)
    for block, (ahead, backward) in zip(case.reference.transformer_blocks, before, strict=True):
        block.look_ahead_block, block.look_backward_block = ahead, backward
    assert relative_error(graph.run(case.inputs(mel, codes, 0.3, "float32"))["velocity"], expected) <= FP32_RELATIVE


@pytest.mark.parametrize("changed", ["codes", "speaker", "encoding", "modulation", "guidance"])
def test_every_input_has_its_effect(case: Case, changed: str, tmp_path: Path) -> None:
    graph = case.open(Style("ort", "float32"), tmp_path)
    mel, codes = case.trial(13)
    inputs = case.inputs(mel, codes, 0.3, "float32")
    before = inputs[changed]
    after = (before + 1) % case.config.num_embeds if changed == "codes" else np.asarray(before * 0.9, np.float32)
    velocity, moved = graph.run(inputs)["velocity"], graph.run(inputs | {changed: after})["velocity"]
    assert relative_error(moved, velocity) > 10 * FP32_RELATIVE


def test_modulation_equals_the_reference_at_every_time_of_the_schedule(case: Case) -> None:
    times = rk4_times(10, -1.0)
    with torch.no_grad():
        embedded = silu(case.reference.time_embed(torch.from_numpy(times)))
        layers = [block.attn_norm.linear(embedded) for block in case.reference.transformer_blocks]
        expected = torch.cat([*layers, case.reference.norm_out.linear(embedded)], dim=1)
    table = modulation_table(case.config, case.reader(), times)
    assert table.dtype == np.float32
    assert relative_error(table, expected.reshape(table.shape)) <= FP32_RELATIVE


@pytest.mark.parametrize("points", [2, 4, 10, 33])
@pytest.mark.parametrize("sway", [-1.0, 0.0, 0.7])
def test_times_are_those_of_the_reference_solver(points: int, sway: float) -> None:
    ends = torch.linspace(0, 1, points)
    ends = ends + sway * (torch.cos(torch.pi / 2 * ends) - 1 + ends)
    expected = [start + (end - start) * third for start, end in itertools.pairwise(ends) for third in (0, 1 / 3, 2 / 3)]
    np.testing.assert_allclose(rk4_times(points, sway), [*expected, ends[-1]], rtol=0, atol=1e-7)


def test_graph_table_and_speaker_encoder_take_every_tensor_of_the_prefix(case: Case, tmp_path: Path) -> None:
    component, reader = dit_graph(case.config, Style("ort", "float32")), case.reader()
    write_component(component, reader, tmp_path)
    modulation_table(case.config, reader, [0.0])
    encode_speaker(case.config, reader, case.ref_mel.numpy())
    assert {name for name in reader.weights.names if name.startswith(DIT_PREFIX)} == reader.taken
    assert component.unused == (f"{DIT_PREFIX}rotary_embed.inv_freq",)


def test_published_section_of_three_keys_has_the_published_size() -> None:
    config = DiTConfig.from_hf(Section({"dim": 1024, "depth": 22, "heads": 16}, "dit_config"))
    assert (config.block_size, config.look_ahead_layers, config.look_backward_layers) == (24, (10,), (0, 20))
    assert (config.num_embeds, config.enc_channels, config.rope_theta) == (8193, (256, 256, 256, 256, 768), 10_000.0)
    root = dit_graph(config, Style("ort", "float32")).root
    weights = sum(math.prod(shape_of(parameter)) for parameter in root.parameters())
    table = (22 * 6 + 2) * 1024 * 1025 + 256 * 1024 + 1024 + 1024 * 1025  # what stays out of the graph
    assert round(table / (weights + table), 2) == 0.43


def test_both_spellings_are_read_alike() -> None:
    published = {"dim": 96, "depth": 3, "heads": 2}
    current = {
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "rope_parameters": {"rope_theta": 1e4},
    }
    assert DiTConfig.from_hf(Section(published, "a")) == DiTConfig.from_hf(Section(current, "b"))


def test_speaker_encoder_settings_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(CheckpointError, match="5, 5 and 1 entries; expected one of each"):
        DiTConfig.from_hf(Section({"enc_dilations": [1]}, "dit_config"))
