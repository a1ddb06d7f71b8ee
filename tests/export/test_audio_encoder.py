"""The audio encoder's graph beside the reference: blocks of every length, whatever stands behind a block's frames."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import Array, Graph, open_component
from nearfield.errors import CheckpointError
from nearfield.export.audio_encoder import AudioEncoderConfig, audio_encoder_graph
from nearfield.export.bind import Reader, write_component
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.config import Section
from nearfield.export.graph import Style
from nearfield.quantize.packing import QuantizedWeight
from nearfield.runtime.manifest import Dialect, FloatType
from tolerances import FP16_RELATIVE, FP32_RELATIVE, relative_error
from torch import nn
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoderLayer

BLOCK_FRAMES = 200
DIALECTS: list[Dialect] = ["ort", "standard"]


def tokens(frames: int) -> int:
    """Embeddings of a block of so many frames, as the contract has it."""
    return ((frames - 1) // 2 + 1) // 2


@torch.no_grad()
def encode(tower: nn.Module, clips: list[Array]) -> list[Array]:
    """The reference's embeddings `(tokens, D)` of several clips `(128, frames)` of at most one block, in one call."""
    lengths = torch.tensor([clip.shape[1] for clip in clips])
    mel = torch.from_numpy(np.concatenate(clips, axis=1))
    embeddings = tower(mel, feature_lens=lengths).last_hidden_state.numpy()
    return np.split(embeddings, np.cumsum([tokens(int(length)) for length in lengths])[:-1])


def batch(clips: list[Array], padding: Array, dtype: FloatType) -> dict[str, Array]:
    """Inputs of the graph: every clip in a block of its own, before `padding (128, 200)`."""
    mel = np.stack([np.concatenate([clip, padding[:, clip.shape[1] :]], axis=1) for clip in clips])
    return {"mel": mel.astype(dtype), "frames": np.array([clip.shape[1] for clip in clips], np.int64)}


@dataclass
class Case:
    """The encoder of one checkpoint, with a clip of every length a block can have and the reference's embeddings."""

    checkpoint: Path
    config: AudioEncoderConfig
    tower: nn.Module
    clips: list[Array]
    expected: list[Array]

    def open(self, style: Style, directory: Path) -> Graph:
        return open_component(audio_encoder_graph(self.config, style), self.checkpoint, directory)


@pytest.fixture(scope="module", params=["3b", "7b"])
def case(request: pytest.FixtureRequest) -> Case:
    checkpoint: Path = request.getfixturevalue(f"checkpoint_{request.param}")
    tower = request.getfixturevalue(f"reference_{request.param}").thinker.model.audio_tower
    section = Checkpoint.open(checkpoint).config.section("thinker_config").section("audio_config")
    rng = np.random.default_rng(11)
    clips = [rng.standard_normal((128, frames)).astype(np.float32) for frames in range(1, BLOCK_FRAMES + 1)]
    return Case(checkpoint, AudioEncoderConfig.from_hf(section), tower, clips, encode(tower, clips))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("float_type", "limit"), [("float32", FP32_RELATIVE), ("float16", FP16_RELATIVE)])
def test_blocks_of_every_length_equal_the_reference(
    case: Case, dialect: Dialect, float_type: FloatType, limit: float, tmp_path: Path
) -> None:
    graph = case.open(Style(dialect, float_type), tmp_path)
    junk = np.random.default_rng(5).standard_normal((128, BLOCK_FRAMES)).astype(np.float32)
    embeddings = graph.run(batch(case.clips, junk, float_type))["embeddings"]
    assert embeddings.shape == (len(case.clips), 50, case.config.output_width)
    assert embeddings.dtype == float_type
    for block, expected in zip(embeddings, case.expected, strict=True):
        if len(expected):
            assert relative_error(block[: len(expected)], expected) <= limit
        assert not block[len(expected) :].any(), "zeros follow"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_stands_behind_the_frames_and_in_other_blocks_changes_nothing(
    case: Case, dialect: Dialect, tmp_path: Path
) -> None:
    graph = case.open(Style(dialect, "float32"), tmp_path)
    for frames in (2, 3, 7, 118, 199):
        clip = case.clips[frames - 1]
        alone = graph.run(batch([clip], np.zeros((128, BLOCK_FRAMES)), "float32"))["embeddings"][0]
        beside = batch([case.clips[-1], clip], np.full((128, BLOCK_FRAMES), np.nan), "float32")
        np.testing.assert_allclose(graph.run(beside)["embeddings"][1], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_half_precision_stops_short_of_infinity(case: Case, dialect: Dialect, tmp_path: Path) -> None:
    component = audio_encoder_graph(case.config, Style(dialect, "float16"))
    write_component(component, Reader(Loud(Checkpoint.open(case.checkpoint))), tmp_path)
    clip = case.clips[-1]
    out = Graph(tmp_path / "audio_encoder.onnx").run(batch([clip], clip, "float16"))["embeddings"][0]
    tower = copy.deepcopy(case.tower)
    for name, parameter in tower.named_parameters():
        parameter.data = torch.from_numpy(louder(name, parameter.data.numpy()))
    for module in tower.modules():
        if isinstance(module, Qwen2_5OmniAudioEncoderLayer):  # what the reference does to half floats, done in float32
            module.register_forward_hook(lambda _module, _inputs, outputs: (outputs[0].clamp(-64504, 64504),))
    (expected,) = encode(tower, [clip])
    assert relative_error(out, expected) <= FP16_RELATIVE


def louder(name: str, tensor: Array) -> Array:
    """Lift channels of every layer, the first so far that two layers together leave the range of half floats."""
    if name.endswith("fc2.bias"):
        tensor = tensor + np.pad([40_000, -20_000, 30_000], (0, len(tensor) - 3))
    return tensor.astype(np.float32)


@dataclass(frozen=True)
class Loud:
    """A checkpoint (`export.bind.Weights`) whose audio layers are lifted."""

    checkpoint: Checkpoint

    @property
    def names(self) -> frozenset[str]:
        return self.checkpoint.names

    def shape(self, name: str) -> tuple[int, ...]:
        return self.checkpoint.shape(name)

    def read(self, name: str) -> Array:
        return louder(name, self.checkpoint.read(name))

    def rows(self, name: str, rows_at_once: int) -> Iterator[tuple[int, Array]]:
        return self.checkpoint.rows(name, rows_at_once)

    def quantized(self, name: str) -> QuantizedWeight:
        return self.checkpoint.quantized(name)


def test_every_tensor_under_the_prefix_is_taken_or_known_to_be_unused(case: Case, tmp_path: Path) -> None:
    component = audio_encoder_graph(case.config, Style("ort", "float32"))
    checkpoint = Checkpoint.open(case.checkpoint)
    reader = Reader(checkpoint)
    write_component(component, reader, tmp_path)
    theirs = {name for name in checkpoint.names if name.startswith("thinker.audio_tower.")}
    assert theirs - reader.taken == set(component.unused) == {"thinker.audio_tower.audio_bos_eos_token.weight"}


def test_settings_it_does_not_have_are_refused() -> None:
    with pytest.raises(CheckpointError, match="activation_function is 'relu'; Nearfield's is 'gelu'"):
        AudioEncoderConfig.from_hf(Section({"activation_function": "relu"}, "config.json.audio_config"))
    with pytest.raises(CheckpointError, match="n_window is 75; expected an even number"):
        AudioEncoderConfig.from_hf(Section({"n_window": 75}, "config.json.audio_config"))
