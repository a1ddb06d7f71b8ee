"""A checkpoint is quantized whole: it exports, answers like the one it was made from, and survives interruptions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nearfield.calibrate import speech
from nearfield.calibrate.assemble import REPORT
from nearfield.calibrate.inputs import Progress
from nearfield.calibrate.layer import METHODS, Method
from nearfield.calibrate.policy import PARTS
from nearfield.calibrate.quantize import Settings, quantize_checkpoint
from nearfield.calibrate.samples import Sample
from nearfield.errors import CheckpointError, ExportError, QuantizationError
from nearfield.export.checkpoint import Checkpoint
from nearfield.runtime.messages import Audio, Image, Message, Part, Text, Video


def quiet(_: str, __: float, ___: float) -> None:
    pass


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    rng = np.random.default_rng(5)
    sounds = [Audio(rng.normal(size=4000 + 900 * i).astype(np.float32) * 0.1) for i in range(3)]
    pictures = rng.integers(0, 255, (6, 56, 84, 3), dtype=np.uint8)
    users: list[list[Part]] = [
        [sounds[0]], [sounds[1], Text("What is it?")], [Image(pictures[0])], [Text("Seven plus four.")],
        [Video([*pictures[1:5]], 2.0, sounds[2])], [Image(pictures[5]), Text("And this?")],
    ]  # fmt: skip
    return [
        Sample([Message("system", [Text("Be brief.")]), Message("user", parts)], f"It is number {number}, I think.")
        for number, parts in enumerate(users * 2)
    ]


Quantize = Callable[..., Path]


@pytest.fixture(scope="module")
def quantize(checkpoint_3b: Path, samples: Sequence[Sample], tmp_path_factory: pytest.TempPathFactory) -> Quantize:
    def made(
        method: Method = "gptq", progress: Progress = quiet, target: Path | None = None, bits: int = 4, **more: Any
    ) -> Path:
        target = target or tmp_path_factory.mktemp("quantized") / method
        settings = Settings(method=method, bits=bits, group_size=32, threads=1, **more)  # type: ignore[arg-type]
        quantize_checkpoint(checkpoint_3b, target, samples, settings, progress)
        return target

    return made


@pytest.mark.parametrize("method", METHODS)
def test_eight_bits_change_little_and_the_rest_not_at_all(
    method: Method, quantize: Quantize, checkpoint_3b: Path
) -> None:
    before, after = Checkpoint.open(checkpoint_3b), Checkpoint.open(quantize(method, bits=8))
    quantized = {f"{name}.weight" for name in after.stored_forms}
    assert quantized == {name for name in before.names if ".model.layers." in name and name.endswith("proj.weight")}
    moved = set()
    for name in sorted(before.names - quantized):
        if not np.array_equal(before.read(name), after.read(name)):
            moved.add(name.rpartition("layers.")[2].partition(".")[2])
    folded = {"input_layernorm.weight", "post_attention_layernorm.weight", "self_attn.v_proj.bias"}
    assert moved == (folded if method in ("awq", "awq-gptq") else set())
    report = json.loads((after.path / f"{REPORT}.json").read_text(encoding="utf-8"))
    errors = [value for layers in report["errors"].values() for layer in layers.values() for value in layer.values()]
    assert len(errors) == len(quantized)
    assert 0 < max(errors) < 1e-3, "a scale taken at one place and not given back at the other would show here"


def test_gptq_beats_rounding_and_scales_help_it(quantize: Quantize) -> None:
    means = {}
    for method in METHODS:
        report = json.loads((quantize(method) / f"{REPORT}.json").read_text(encoding="utf-8"))
        layers = report["errors"]["thinker"].values()
        means[method] = np.mean([value for layer in layers for value in layer.values()])
    assert means["gptq"] < means["awq"] < means["rtn"]
    assert means["awq-gptq"] < means["awq"]


class Stopped(BaseException):
    pass


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_run_that_is_stopped_anywhere_ends_with_the_same_files(
    quantize: Quantize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speech, "MOST_CODES", 40)
    steps, told = 0, [(0.0, 0.0)]

    def count(_: str, done: float, total: float) -> None:
        nonlocal steps
        steps += 1
        told.append((done, total))

    whole = digests(quantize("awq-gptq", count, tmp_path / "whole", parts=PARTS))
    assert {name.partition("-")[0] for name in whole if "-layer-" in name} == set(PARTS)
    assert told == sorted(told), "what is done of the whole run grows"
    assert len({total for _, total in told[1:]}) == 1
    assert 0.9 < told[-1][0] / told[-1][1] < 1
    runs = 0
    for stop_at in np.linspace(1, steps - 1, 4).astype(int):
        left = int(stop_at)

        def stop(_: str, __: float, ___: float) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Stopped

        target = tmp_path / f"stopped-{stop_at}"
        with pytest.raises(Stopped):
            quantize("awq-gptq", stop, target, parts=PARTS)
        assert not target.exists()
        assert len(list(tmp_path.glob(f".{target.name}.partial-*"))) == 1
        again = 0

        def count_again(_: str, __: float, ___: float) -> None:
            nonlocal again
            again += 1

        assert digests(quantize("awq-gptq", count_again, target, parts=PARTS)) == whole
        assert not list(tmp_path.glob(".*")), "nothing is left beside the result"
        runs += again < steps
    assert runs >= 2, "what was done is not done again"


def test_a_result_that_is_there_is_not_made_again_nor_overwritten(quantize: Quantize, tmp_path: Path) -> None:
    target = quantize("rtn", target=tmp_path / "out")
    before = digests(target)

    def never(_: str, __: float, ___: float) -> None:
        raise AssertionError("work was done")

    quantize("rtn", never, target)
    with pytest.raises(ExportError, match="out is there already, and not of these settings"):
        quantize("gptq", never, target)
    assert digests(target) == before


def test_a_quantized_checkpoint_is_refused(quantize: Quantize, samples: Sequence[Sample], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="quantized already"):
        quantize_checkpoint(quantize("rtn"), tmp_path / "out", samples, Settings(), quiet)


def test_too_few_tokens_are_refused_by_name_and_leave_no_result(checkpoint_3b: Path, tmp_path: Path) -> None:
    short = [Sample([Message("user", [Text("Hi.")])], "Yes.")]
    with pytest.raises(QuantizationError, match=r"thinker\.model\.layers\.0: mlp\.down_proj: 26 tokens"):
        quantize_checkpoint(checkpoint_3b, tmp_path / "out", short, Settings(method="gptq", threads=1), quiet)
    assert not (tmp_path / "out").exists()
