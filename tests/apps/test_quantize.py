"""`quantize` and `build` as a user calls them, on a tiny checkpoint and nano's own calibration data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conversations import some_of_nanos
from nearfield.apps.cli.main import main
from nearfield.calibrate.samples import INDEX
from nearfield.runtime.bundle import Bundle


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of nano's conversations: all kinds, but no long ones."""
    return some_of_nanos(tmp_path_factory.mktemp("calibration"), 24)


def test_quantize_writes_a_checkpoint_that_export_takes(
    checkpoint_7b: Path, calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, bundle = tmp_path / "int4", tmp_path / "bundle"
    options = ["--method", "gptq", "--group-size", "32", "--components", "thinker", "--threads", "1"]
    assert main(["quantize", str(checkpoint_7b), "-o", str(out), "--calibration", str(calibration), *options]) == 0
    said = capsys.readouterr()
    assert "median error" in said.out
    assert "mlp.down_proj" in said.out
    assert main(["export", str(out), "-o", str(bundle), "--dtype", "float32"]) == 0
    components = Bundle.open(bundle).manifest.components
    quantization = components["thinker"].quantization
    assert quantization is not None
    assert (quantization.method, quantization.bits, quantization.group_size) == ("gptq", 4, 32)
    assert quantization.source.startswith("nearfield:")
    assert components["talker"].quantization is None


def test_build_quantizes_exports_and_verifies(
    checkpoint_3b: Path, calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, kept = tmp_path / "bundle", tmp_path / "kept"
    options = ["--calibration", str(calibration), "--method", "rtn", "--group-size", "32", "--threads", "1"]
    command = ["build", str(checkpoint_3b), "-o", str(bundle), "--dtype", "float32", "--accuracy-level", "1", *options]
    assert main([*command, "--keep", str(kept)]) == 0
    assert "all outputs are within their limits" in capsys.readouterr().out
    quantization = {name: it.quantization for name, it in Bundle.open(bundle).manifest.components.items()}
    assert quantization["talker"] is not None
    assert quantization["talker"].bits == 8
    assert json.loads((kept / "quantization.json").read_text(encoding="utf-8"))["settings"]["method"] == "rtn"
    assert main(command) == 1, "before any work is done again"
    assert "overwrite" in capsys.readouterr().err


def test_a_mistake_costs_nothing(
    checkpoint_3b: Path, calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["quantize", str(checkpoint_3b), "-o", str(out)]
    assert main([*command, "--calibration", str(tmp_path)]) == 1
    assert INDEX in capsys.readouterr().err
    assert main([*command, "--calibration", str(calibration), "--group-size", "7"]) == 1
    assert "group size 7" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
