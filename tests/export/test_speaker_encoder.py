"""The speaker encoder in NumPy beside the reference."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from nearfield.errors import CheckpointError
from nearfield.export.bind import Reader
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.config import Section
from nearfield.export.dit_config import DiTConfig
from nearfield.export.graph import Array
from nearfield.export.speaker_encoder import encode_speaker
from nearfield.quantize.packing import QuantizedWeight
from tolerances import SPEAKER_ENCODING, relative_error
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniDiTConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import ECAPA_TimeDelayNet

Fixture = tuple[Checkpoint, DiTConfig, torch.nn.Module]


@pytest.fixture(scope="module", params=["3b", "7b"])
def encoder(request: pytest.FixtureRequest) -> Fixture:
    checkpoint = Checkpoint.open(request.getfixturevalue(f"checkpoint_{request.param}"))
    model = request.getfixturevalue(f"reference_{request.param}")
    config = DiTConfig.from_hf(checkpoint.config.section("token2wav_config").section("dit_config"))
    return checkpoint, config, model.token2wav.code2wav_dit_model.input_embed.spk_encoder


@pytest.mark.parametrize("frames", [5, 17, 400])
@pytest.mark.parametrize("silent", [False, True])
def test_encoding_equals_the_reference(encoder: Fixture, frames: int, silent: bool) -> None:
    checkpoint, config, reference = encoder
    mel = np.random.default_rng(frames).normal(-5, 2, (1, frames, config.mel_dim)).astype(np.float32)
    mel *= not silent
    encoding = encode_speaker(config, Reader(checkpoint), mel)
    assert encoding.dtype == np.float32
    with torch.no_grad():
        assert relative_error(encoding, reference(torch.from_numpy(mel))) <= SPEAKER_ENCODING


def test_other_kernels_and_scales_equal_the_reference() -> None:
    """Kernels that reach unequally far to both sides, four Res2Net groups, at the published width of the last layer."""
    settings = {
        "enc_channels": [32, 32, 32, 64],
        "enc_kernel_sizes": [4, 3, 2, 3],
        "enc_dilations": [3, 2, 3, 2],
        "enc_res2net_scale": 4,
    }
    torch.manual_seed(0)
    reference = ECAPA_TimeDelayNet(Qwen2_5OmniDiTConfig(**settings)).eval()
    config = DiTConfig.from_hf(Section(settings, "dit_config"))
    mel = torch.randn(1, 30, config.mel_dim)
    with torch.no_grad():
        assert (
            relative_error(encode_speaker(config, StateDict(reference), mel.numpy()), reference(mel))
            <= SPEAKER_ENCODING
        )


class StateDict:
    """Weights of a reference speaker encoder, read as a checkpoint is (`graph.TensorSource`)."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.tensors = module.state_dict()

    def read(self, name: str, shape: Sequence[int]) -> Array:
        tensor: Array = self.tensors[name.removeprefix("token2wav.code2wav_dit_model.input_embed.spk_encoder.")].numpy()
        assert tensor.shape == tuple(shape)
        return tensor

    def rows(self, name: str, shape: Sequence[int], rows_at_once: int) -> Iterator[tuple[int, Array]]:
        raise AssertionError("the speaker encoder has no large table")

    def quantized(self, name: str, shape: Sequence[int]) -> QuantizedWeight:
        raise AssertionError("the speaker encoder is not stored quantized")


@pytest.mark.parametrize(
    ("shape", "found"), [((1, 4, 80), "has 4 frames"), ((80, 30), "has shape"), ((1, 30, 81), "has shape")]
)
def test_a_reference_mel_of_another_form_is_refused(encoder: Fixture, shape: tuple[int, ...], found: str) -> None:
    checkpoint, config, _ = encoder
    with pytest.raises(CheckpointError, match=found):
        encode_speaker(config, Reader(checkpoint), np.zeros(shape, np.float32))
