"""The vocoder's graph beside the reference."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graphs import Array, Graph, open_component
from nearfield.errors import CheckpointError
from nearfield.export.bigvgan import BigVGANConfig, low_pass, vocoder_graph
from nearfield.export.bind import Reader, write_component
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.config import Section
from nearfield.export.graph import Style, shape_of
from nearfield.runtime.manifest import Dialect, FloatType
from tolerances import FP16_RELATIVE, FP32_RELATIVE, relative_error
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import kaiser_sinc_filter1d

DIALECTS: list[Dialect] = ["ort", "standard"]
FRAMES = (1, 2, 7, 40)


@dataclass
class Case:
    """The vocoder of one checkpoint, and the reference's."""

    checkpoint: Path
    config: BigVGANConfig
    reference: Any

    def open(self, style: Style, directory: Path) -> Graph:
        return open_component(vocoder_graph(self.config, style), self.checkpoint, directory)

    @torch.no_grad()
    def waveform(self, mel: Array) -> Array:
        """The reference's waveform `(1, 240·F)`."""
        waveform: Array = self.reference(torch.from_numpy(mel)).numpy()
        return waveform[None]


def speech_like(frames: int, seed: int = 0) -> Array:
    """A mel `(1, 80, F)` in the range of the published DiT's, −11.6 … −0.1."""
    return np.random.default_rng([seed, frames]).normal(-5.5, 2.0, (1, 80, frames)).clip(-11.6, -0.1).astype(np.float32)


@pytest.fixture(scope="module", params=["3b", "7b"])
def case(request: pytest.FixtureRequest) -> Case:
    path: Path = request.getfixturevalue(f"checkpoint_{request.param}")
    section = Checkpoint.open(path).config.section("token2wav_config").section("bigvgan_config")
    reference = request.getfixturevalue(f"reference_{request.param}").token2wav.code2wav_bigvgan_model
    return Case(path, BigVGANConfig.from_hf(section), reference)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("float_type", "limit"), [("float32", FP32_RELATIVE), ("float16", FP16_RELATIVE)])
def test_waveform_equals_the_reference(
    case: Case, dialect: Dialect, float_type: FloatType, limit: float, tmp_path: Path
) -> None:
    graph = case.open(Style(dialect, float_type), tmp_path)
    for frames in FRAMES:
        mel = speech_like(frames)
        waveform = graph.run({"mel": mel.astype(float_type)})["waveform"]
        assert (waveform.shape, waveform.dtype) == ((1, 240 * frames), np.dtype(float_type))
        assert relative_error(waveform, case.waveform(mel)) <= limit, f"{frames} frames"


def test_mels_beyond_both_clamps_equal_the_reference(case: Case, tmp_path: Path) -> None:
    """Under −13.24 the reference's amplitude floor holds, then its −1; above 2.3 its 1, and exp overflows at 88.7."""
    graph = case.open(Style("ort", "float32"), tmp_path)
    mel = np.random.default_rng(1).uniform(-130, 100, (1, 80, 20)).astype(np.float32)
    mel[0, :, :8] = np.linspace(-14, 3, 640).reshape(80, 8)
    assert relative_error(graph.run({"mel": mel})["waveform"], case.waveform(mel)) <= FP32_RELATIVE


def test_waveform_is_clipped(case: Case, tmp_path: Path) -> None:
    component = vocoder_graph(case.config, Style("ort", "float32"))
    write_component(component, Reader(Louder(case.checkpoint)), tmp_path)
    waveform = Graph(tmp_path / "vocoder.onnx").run({"mel": speech_like(7)})["waveform"]
    expected = case.waveform(speech_like(7))
    unclipped = np.abs(expected) < 1 / Louder.GAIN
    assert 0 < unclipped.mean() < 1
    assert (np.abs(waveform[~unclipped]) == 1).all()
    assert relative_error(waveform[unclipped], Louder.GAIN * expected[unclipped]) <= FP32_RELATIVE


class Louder(Checkpoint):
    """A checkpoint whose last convolution is stronger than the clip allows."""

    GAIN = 5.0

    def __init__(self, path: Path) -> None:
        vars(self).update(vars(Checkpoint.open(path)))

    def read(self, name: str) -> Array:
        tensor = super().read(name)
        return tensor * self.GAIN if name.endswith("conv_post.weight") else tensor


def test_the_context_is_where_the_gradient_ends(case: Case) -> None:
    reference, context = copy.deepcopy(case.reference).double(), case.config.context_frames
    frame = context + 2
    mel = torch.from_numpy(speech_like(2 * frame + 1).astype(np.float64)).requires_grad_()
    samples = reference(mel)[240 * frame : 240 * (frame + 1)]
    (samples * torch.linspace(-1, 1, 240, dtype=torch.float64)).sum().backward()
    assert mel.grad is not None
    reached = mel.grad.abs().amax(dim=(0, 1)).nonzero()  # far out it is tiny: 1e-126 of the largest
    assert (frame - int(reached.min()), int(reached.max()) - frame) == (context, context)


def test_low_pass_equals_the_reference() -> None:
    np.testing.assert_allclose(low_pass(), kaiser_sinc_filter1d(0.25, 0.3, 12).reshape(12), rtol=0, atol=1e-7)


def test_every_tensor_of_the_prefix_is_taken(case: Case, tmp_path: Path) -> None:
    component, reader = vocoder_graph(case.config, Style("ort", "float32")), Reader(Checkpoint.open(case.checkpoint))
    write_component(component, reader, tmp_path)
    assert {name for name in reader.weights.names if name.startswith(component.prefix)} == reader.taken
    assert component.unused == ()


def test_published_size() -> None:
    config = BigVGANConfig.from_hf(Section({}, "bigvgan_config"))
    root = vocoder_graph(config, Style("ort", "float32")).root
    shapes = {name: shape_of(parameter) for name, parameter in root.named_parameters()}
    assert len(shapes) == 449  # tensors of the published files
    assert shapes["ups.0.0.weight"] == (1536, 768, 11)
    assert shapes["resblocks.17.convs1.0.weight"] == (24, 24, 11)
    assert (config.samples_per_frame, config.context_frames) == (240, 34)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"upsample_rates": [5, 3]}, "2 upsample_rates and 6 upsample_kernel_sizes"),
        ({"resblock_kernel_sizes": [3]}, "1 resblock_kernel_sizes and 3 resblock_dilation_sizes"),
        ({"resblock_dilation_sizes": [[1, 3]]}, "expected lists of three whole numbers"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        BigVGANConfig.from_hf(Section(settings, "bigvgan_config"))
