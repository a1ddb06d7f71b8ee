"""What cannot be quantized is refused by name before any work, and a full disk costs only what was not finished."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nearfield.calibrate.policy import Part
from nearfield.calibrate.quantize import Settings, quantize_checkpoint
from nearfield.calibrate.samples import Sample
from nearfield.errors import CheckpointError, ExportError, InputError, NearfieldError, QuantizationError
from nearfield.runtime.messages import Audio, Message, Text
from quantized import Array, copy_with
from safetensors.numpy import load_file

UP = "thinker.model.layers.1.mlp.up_proj.weight"
FC1 = "thinker.audio_tower.layers.1.fc1"


def quiet(_: str, __: float, ___: float) -> None:
    pass


def spoken(count: int = 4, size: int = 40_000) -> list[Sample]:
    sound = Audio(np.random.default_rng(5).normal(size=size).astype(np.float32) * 0.1)
    return [Sample([Message("user", [sound])], "Yes, it is.") for _ in range(count)]


def quantize(
    source: Path, target: Path, samples: Sequence[Sample] | None = None, parts: Sequence[Part] = ("audio",), **more: Any
) -> None:
    settings = Settings(**{"method": "rtn", "group_size": 32, "parts": tuple(parts), "threads": 1, **more})
    quantize_checkpoint(source, target, samples or spoken(), settings, quiet)


def check_refused(
    kind: type[NearfieldError], said: str, source: Path, folder: Path, target: str = "out", **more: Any
) -> None:
    """With this message, and nothing in `folder` that was not there."""
    before = sorted(path.name for path in folder.rglob("*"))
    with pytest.raises(kind, match=said):
        quantize(source, folder / target, **more)
    assert sorted(path.name for path in folder.rglob("*")) == before


@pytest.fixture
def damaged(checkpoint_3b: Path, tmp_path: Path) -> Callable[[dict[str, Array | None]], Path]:
    def made(changes: dict[str, Array | None]) -> Path:
        tensors = load_file(checkpoint_3b / "model.safetensors") | changes
        copy_with(checkpoint_3b, tmp_path / "in", {name: it for name, it in tensors.items() if it is not None})
        return tmp_path / "in"

    return made


Damaged = Callable[[dict[str, "Array | None"]], Path]


# The checkpoint


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named(
    checkpoint_3b: Path, damaged: Damaged, tmp_path: Path, value: float
) -> None:
    weight = load_file(checkpoint_3b / "model.safetensors")[UP]
    weight[3, 4:6] = value
    said = rf"tensor {UP} of .*in holds 2 values that are NaN or infinite; .* download it again"
    check_refused(CheckpointError, said, damaged({UP: weight}), tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({f"{FC1}.weight": None}, f"the checkpoint has no tensor '{FC1}.weight'; it is incomplete: download it again"),
        ({f"{FC1}.bias": np.zeros(3, np.float32)}, rf"tensor '{FC1}\.bias' has shape \(3,\), its config\.json says"),
        (
            {f"{FC1.replace('1', '2', 1)}.weight": np.zeros((1, 1), np.float32)},
            r"holds thinker\.audio_tower\.layers\.2\.fc1\.weight, which none of the 2 layers",
        ),
        ({f"{FC1}.scale": np.zeros(3, np.float32)}, rf"holds {FC1}\.scale, which none of the 2 layers"),
    ],
)
def test_layers_that_do_not_match_are_named(
    damaged: Damaged, tmp_path: Path, changes: dict[str, Array | None], said: str
) -> None:
    check_refused(ExportError, said, damaged(changes), tmp_path)


def test_a_missing_shard_is_named(checkpoint_7b: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint_7b, tmp_path / "in")
    shard = max((tmp_path / "in").glob("*.safetensors"))
    shard.unlink()
    check_refused(CheckpointError, f"{shard.name} is missing; download the checkpoint again", tmp_path / "in", tmp_path)


def test_activations_that_overflow_are_named(checkpoint_3b: Path, damaged: Damaged, tmp_path: Path) -> None:
    name = "thinker.audio_tower.layers.0.self_attn.v_proj.weight"
    weight = load_file(checkpoint_3b / "model.safetensors")[name]
    with pytest.raises(
        QuantizationError, match=r"thinker\.audio_tower\.layers\.0: activations of a layer of 64 inputs"
    ):
        quantize(damaged({name: weight * np.float32(1e38)}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What is asked for


@pytest.mark.parametrize(
    ("group_size", "said"),
    [
        (0, "group size 0: expected a positive even number; 128 is usual"),
        (-16, "group size -16: expected a positive even number"),
        (7, "group size 7: expected"),
        (24, r"layers\.0\.self_attn\.q_proj: groups of 24 inputs have no place in a graph; 16 or a multiple of it has"),
    ],
)
def test_a_group_size_that_no_graph_takes_is_refused(
    checkpoint_3b: Path, tmp_path: Path, group_size: int, said: str
) -> None:
    check_refused(QuantizationError, said, checkpoint_3b, tmp_path, group_size=group_size)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_too_little_data_is_refused_by_name(checkpoint_3b: Path, tmp_path: Path, method: str) -> None:
    said = r"thinker\.audio_tower\.layers\.0: fc2: 13 tokens of calibration data for a layer of 160 inputs: expected at"
    with pytest.raises(QuantizationError, match=said):
        quantize(checkpoint_3b, tmp_path / "out", spoken(1, 4000), method=method)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("part", "said"), [("audio", "no calibration sample has a sound"), ("vision", "has a picture")]
)
def test_a_modality_that_is_missing_is_named(checkpoint_3b: Path, tmp_path: Path, part: Part, said: str) -> None:
    typed = [Sample([Message("user", [Text("Hello.")])], "Hi.")]
    with pytest.raises(InputError, match=said):
        quantize(checkpoint_3b, tmp_path / "out", typed, [part])
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_taken_is_left_as_it_is(checkpoint_3b: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "quantization.json").write_text("{", encoding="utf-8")
    for name in ("file", "folder"):
        check_refused(ExportError, f"{name} is there already", checkpoint_3b, tmp_path, name)
    check_refused(
        ExportError, "cannot be made .*name a directory you may write to", checkpoint_3b, tmp_path, "file/out"
    )
    assert (tmp_path / "file").read_text() == "mine"


# The disk


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_disk_that_is_too_small_is_refused_before_any_work(
    checkpoint_3b: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    check_refused(ExportError, r"need about 0\.\d GB, its disk has 0\.0 GB free; make room", checkpoint_3b, tmp_path)


@pytest.fixture(scope="module")
def whole(checkpoint_3b: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    target = tmp_path_factory.mktemp("whole") / "out"
    quantize(checkpoint_3b, target)
    return digests(target)


@pytest.mark.parametrize(
    ("module", "function", "call"),
    [
        (os, "fsync", 2),
        (np, "savez", 1),
        (os, "fsync", 4),
        (shutil, "copyfile", 1),
    ],
    ids=["layer", "data", "rest", "copy"],
)  # fmt: skip
def test_a_full_disk_is_said_and_the_same_command_goes_on(
    checkpoint_3b: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    module: Any, function: str, call: int,
) -> None:  # fmt: skip
    real, calls = getattr(module, function), 0

    def full(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **more)

    target = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(module, function, full)
        said = r"the disk of .*out is full: about \d+\.\d GB more are needed, .* are free now; .*it goes on where it"
        with pytest.raises(ExportError, match=said):
            quantize(checkpoint_3b, target)
    assert not target.exists()
    (folder,) = tmp_path.iterdir()
    assert not list(folder.glob("*.partial")), "a file that was not finished takes no room"
    quantize(checkpoint_3b, target)
    assert digests(target) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
