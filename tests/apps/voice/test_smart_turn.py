"""Smart Turn: its features and the way in and out; and the published graph itself, where somebody has it.

NEARFIELD_SMART_TURN names the file: smart-turn-v3.2-cpu.onnx, out of the wheel of the package pipecat-ai.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from nearfield.apps.cli.common import DEMO_DATA
from nearfield.apps.voice.smart_turn import SmartTurn, features
from nearfield.errors import AudioError, InputError
from nearfield.export.graph import FLOAT32, Module, Op, Port, Style, Value, build
from nearfield.runtime.audio import read_audio
from sounds import sound
from tolerances import FEATURES, FP32_RELATIVE, relative_error
from transformers import WhisperFeatureExtractor

Float32 = npt.NDArray[np.float32]

# What pipecat-ai 1.14's own features and smart-turn-v3.2-cpu.onnx say of question-1.flac, all of it and its first half.
PUBLISHED = (0.96047, 0.9768374)


class Loudness(Module):
    """`1 / (1 + exp(−mean of the features))`, in the shape of Smart Turn."""

    def forward(self, op: Op, input_features: Value) -> list[Value]:
        mean = op.ReduceMean(op.Flatten(input_features, axis=1), [1], keepdims=1)  # (1, 1)
        return [op.Sigmoid(mean)]


def save(path: Path, name: str) -> Path:
    ports = [Port(name, FLOAT32, (1, 80, 800))], [Port("logits", FLOAT32, (1, 1))]
    ir.save(build(Loudness(), Style("ort", "float32"), "smart_turn", *ports), path)
    return path


@pytest.mark.parametrize("length", [1, 1600, 48_000, 127_999, 128_000, 128_001, 200_000])
@pytest.mark.parametrize("kind", ["noise", "fading sweep", "loud end", "silence"])
def test_features_are_those_of_the_reference(kind: str, length: int) -> None:
    samples = sound(kind, length, seed=length)
    reference = WhisperFeatureExtractor(feature_size=80, chunk_length=8)
    heard = np.pad(samples[-128_000:], (max(0, 128_000 - length), 0))
    expected = reference(heard, sampling_rate=16_000, do_normalize=True, return_tensors="np").input_features[0]
    found = features(samples)
    assert found.dtype == np.float32
    assert found.shape == (80, 800)
    np.testing.assert_allclose(found, expected, rtol=0, atol=FEATURES)


def test_the_graph_is_given_the_features_and_its_answer_comes_back(tmp_path: Path) -> None:
    complete = SmartTurn(save(tmp_path / "tiny.onnx", "input_features"))
    loud, soft = sound("noise", 200_000, seed=1), sound("fading sweep", 20_000, seed=1)
    for samples in (loud, soft):
        expected = 1 / (1 + np.exp(-features(samples).astype(np.float64).mean()))
        assert relative_error(complete(samples), expected) < FP32_RELATIVE
    assert complete(loud) > complete(soft)


@pytest.mark.parametrize(
    "samples", [np.zeros(0, np.float32), np.zeros(16_000), np.zeros((1, 512), np.float32)], ids=["none", "type", "axes"]
)
def test_what_is_no_sound_is_refused(samples: Float32) -> None:
    with pytest.raises(AudioError, match="a turn is float32"):
        features(samples)


def test_a_file_that_is_not_there_or_another_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.onnx is not a file.*pipecat-ai"):
        SmartTurn(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("not a graph", encoding="utf-8")
    with pytest.raises(InputError, match=r"text\.onnx is no graph"):
        SmartTurn(tmp_path / "text.onnx")
    with pytest.raises(InputError, match=r"other\.onnx is not Smart Turn v3.*found mel → logits"):
        SmartTurn(save(tmp_path / "other.onnx", "mel"))


def test_the_published_graph_says_what_its_publisher_says() -> None:
    path = os.environ.get("NEARFIELD_SMART_TURN")
    if path is None:
        pytest.skip("Smart Turn's graph is not part of Nearfield; NEARFIELD_SMART_TURN names one to be tried")
    complete = SmartTurn(Path(path))
    samples = read_audio(DEMO_DATA / "question-1.flac")
    assert relative_error([complete(samples), complete(samples[: len(samples) // 2])], PUBLISHED) < FP32_RELATIVE
