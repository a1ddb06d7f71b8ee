"""Encoders and DiT: taken apart they compute what they do whole, and quantized they are exported in both dialects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from graphs import Graph
from nearfield.calibrate import speech
from nearfield.calibrate.components import components
from nearfield.calibrate.front import Front
from nearfield.calibrate.fronts import _Recording, _token2wav, _voices, audio_given, dit_given, vision_given
from nearfield.calibrate.inputs import Steps, open_component
from nearfield.calibrate.layers import STYLE, Given, Layer, _tap
from nearfield.calibrate.policy import Part
from nearfield.calibrate.quantize import Settings, quantize_checkpoint
from nearfield.calibrate.samples import Sample
from nearfield.export.audio_encoder import audio_encoder_graph
from nearfield.export.bind import Reader, write_component
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.dit import dit_graph
from nearfield.export.export import Configs, _quantization
from nearfield.export.graph import ComponentGraph, Style
from nearfield.export.vision_encoder import vision_encoder_graph
from nearfield.runtime.encoders import AudioEncoder, VisionEncoder
from nearfield.runtime.messages import Audio, Image, Message, Text, Video
from nearfield.runtime.messages import Part as MediaOrText
from tolerances import FP32_RELATIVE, INT4_MATMUL, relative_error

Array = npt.NDArray[Any]
PARTS: tuple[Part, ...] = ("audio", "vision", "dit")
CODES = 31  # 62 frames: three blocks of 24, the last of them short


def quiet(_: str, __: float, ___: float) -> None:
    pass


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Sounds that end inside a block of 2 s, pictures of more than a window, cut by the edge; a clip with sound."""
    rng = np.random.default_rng(5)
    sounds = [Audio(rng.normal(size=size).astype(np.float32) * 0.1) for size in (9_000, 40_100, 20_000)]
    pictures = rng.integers(0, 255, (4, 140, 196, 3), dtype=np.uint8)
    users: list[list[MediaOrText]] = [
        [sounds[0]],
        [sounds[1], Text("What?")],
        [Image(pictures[0])],
        [Video([*pictures], 2.0, sounds[2])],
    ]
    return [Sample([Message("user", parts)], f"It is number {number}.") for number, parts in enumerate(users * 3)]


@pytest.fixture(scope="module")
def spoken() -> list[Steps]:
    nothing = np.empty((0, 1), np.float32)
    rng = np.random.default_rng(6)
    codes = [rng.integers(0, 257, CODES), np.empty(0, np.int64)]
    return [Steps(nothing, np.empty((3, 0), np.int64), 0, np.empty(0, np.bool_), it) for it in codes]


def given_of(
    part: Part, checkpoint: Checkpoint, samples: Sequence[Sample], spoken: Sequence[Steps], folder: Path
) -> Iterator[Given]:
    if part == "dit":
        return dit_given(checkpoint, spoken, folder, 1, quiet)
    return (audio_given if part == "audio" else vision_given)(checkpoint, samples, folder, 1, quiet)


def _graph(part: Part, configs: Configs, style: Style) -> ComponentGraph:
    if part == "dit":
        return dit_graph(configs.dit, style)
    return audio_encoder_graph(configs.audio, style) if part == "audio" else vision_encoder_graph(configs.vision, style)


def run_whole(part: Part, checkpoint: Checkpoint, samples: Sequence[Sample], folder: Path) -> list[Mapping[str, Array]]:
    """What every Linear of the whole component is given, run by run, as the runtime feeds it."""
    configs = Configs.from_hf(checkpoint.config)
    component = _graph(part, configs, STYLE)
    groups = list(_tap(component.model))
    if part == "vision":  # the patches are an input already
        graph, groups = component.model.graph, groups[1:]
        graph.outputs.remove(graph.inputs[0])
        graph.inputs[0].name = "pixels"
    runs: list[Mapping[str, Array]] = []

    def take(_: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        runs.append({name: outputs[group.output] for group in groups for name in group.names})

    recording = _Recording(open_component(checkpoint, component, folder, 1), take)
    front = Front.read(checkpoint.path, checkpoint.config)
    media = [part for sample in samples for message in sample.messages for part in message.content]
    if part == "audio":
        for it in media:
            sound = it.audio if isinstance(it, Video) else it
            if isinstance(sound, Audio):
                AudioEncoder(recording, front.audio, "float32").hear(sound)
    elif part == "vision":
        for it in media:
            if isinstance(it, Image | Video):
                VisionEncoder(recording, front.vision, "float32").see(it)
    else:
        codes = np.random.default_rng(6).integers(0, 257, CODES)
        _token2wav(checkpoint, recording).mel(codes, _voices(checkpoint, configs.dit)[0], seed=0)
        runs = runs[::9]
    return runs


@pytest.mark.parametrize("part", PARTS)
def test_layers_one_by_one_are_given_what_they_are_in_the_whole_graph(
    part: Part, checkpoint_3b: Path, samples: Sequence[Sample], spoken: Sequence[Steps], tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(checkpoint_3b)
    component = components(Configs.from_hf(checkpoint.config))[part]
    pieces = list(given_of(part, checkpoint, samples, spoken, tmp_path))
    runs = run_whole(part, checkpoint, samples, tmp_path)
    assert len(pieces) == len(runs) == (4 if part == "dit" else 6 + 3 * (part == "audio"))
    states = [it.hidden for it in pieces]
    for number in range(component.layers):
        layer = Layer(component.graph(number), checkpoint, tmp_path, 1)
        for index, (piece, run) in enumerate(zip(pieces, runs, strict=True)):
            states[index], inputs = layer.run(Given(states[index], piece.others, piece.meant))
            for group, rows in inputs.items():
                for name in group.names:
                    whole = run[f"{component.path}{number}.{name}"]
                    expected = whole.reshape(-1, whole.shape[-1])
                    if piece.meant is not None:
                        expected = expected[piece.meant]
                    assert relative_error(rows, expected) <= FP32_RELATIVE, name


@pytest.fixture(scope="module")
def quantized(checkpoint_3b: Path, samples: Sequence[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything quantized to 8 bits, with scales of AWQ."""
    target = tmp_path_factory.mktemp("quantized") / "all"
    settings = Settings(method="awq-gptq", bits=8, group_size=32, parts=("thinker", "talker", *PARTS), threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speech, "MOST_CODES", CODES)
        quantize_checkpoint(checkpoint_3b, target, samples, settings, quiet)
    return target


@pytest.mark.parametrize("part", PARTS)
def test_quantized_components_are_exported_in_both_dialects(
    part: Part, quantized: Path, checkpoint_3b: Path, tmp_path: Path
) -> None:
    before, after = Checkpoint.open(checkpoint_3b), Checkpoint.open(quantized)
    configs = Configs.from_hf(after.config)
    inputs = _inputs(part, configs)
    floats, codes = Style("ort", "float32"), Style("ort", "float32", accuracy_level=1, stored=after.stored_forms)
    outputs: dict[str, Array] = {}
    for name, checkpoint, style in (
        ("before", before, floats),
        ("floats", after, floats),
        ("ort", after, codes),
        ("standard", after, replace(codes, dialect="standard")),
    ):
        graph = _graph(part, configs, style)
        write_component(graph, Reader(checkpoint), tmp_path)
        (outputs[name],) = Graph(tmp_path / f"{graph.name}.onnx").run(inputs).values()
        record = _quantization(graph, style)
        assert (record is not None) == bool(style.stored)
        if record is not None:
            assert (record.method, record.bits, record.group_size) == ("awq-gptq", 8, 32)
            ends = {
                "audio": {"proj"},
                "vision": {"merger.mlp.0", "merger.mlp.2"},
                "dit": {"input_embed.proj", "proj_out"},
            }
            assert record.other_bits == dict.fromkeys(ends[part], 32)
    for dialect in ("ort", "standard"):
        assert relative_error(outputs[dialect], outputs["floats"]) <= INT4_MATMUL
    assert 0 < relative_error(outputs["floats"], outputs["before"]) < 0.02, "a scale not given back would show here"


def _inputs(part: Part, configs: Configs) -> dict[str, Array]:
    rng = np.random.default_rng(3)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    if part == "audio":
        return {"mel": normal(2, configs.audio.mel_bins, 200), "frames": np.array([200, 77])}
    if part == "vision":
        places = np.stack(np.meshgrid(np.arange(4), np.arange(8), indexing="ij"), axis=-1).reshape(-1, 2)
        slots = np.full((1, 64), -1)
        slots[0, :32] = np.arange(32)
        pixels = normal(2, 32, configs.vision.patch_values)
        return {"pixels": pixels, "positions": places, "window_slots": slots, "patch_slots": np.arange(32)}
    dit = configs.dit
    return {
        "mel": normal(1, 60, 80), "codes": rng.integers(0, 257, (1, 30)), "speaker": normal(1, dit.enc_emb_dim),
        "encoding": normal(2, dit.enc_dim), "modulation": 0.2 * normal(dit.modulation_rows, dit.hidden_size),
        "guidance": np.array(0.5, np.float32),
    }  # fmt: skip
