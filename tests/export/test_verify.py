"""The parity table: it passes for what was exported, and fails for what was not."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from checkpoints import SMALL_7B, write_checkpoint
from nearfield.errors import ExportError
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.export import ExportOptions, export_bundle
from nearfield.export.verify import FP16_LIMIT, FP32_LIMIT, Row, _reader, _relative_error, verify
from nearfield.quantize.grid import Grid
from nearfield.quantize.rtn import round_to_nearest
from nearfield.runtime.manifest import Dialect

OUTPUTS = [
    ("audio_encoder", "embeddings"),
    ("vision_encoder", "embeddings"),
    ("thinker", "logits"),
    ("thinker", "last_hidden_state"),
    ("talker", "logits"),
    ("dit", "velocity"),
    ("vocoder", "waveform"),
]


@pytest.mark.parametrize("size", ["3b", "7b"])
@pytest.mark.parametrize("dialect", ["ort", "standard"])
def test_every_float32_graph_equals_the_reference(
    size: str, dialect: Dialect, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    checkpoint = request.getfixturevalue(f"checkpoint_{size}")
    export_bundle(checkpoint, tmp_path / "bundle", ExportOptions(bits=32, dialect=dialect))
    rows = list(verify(tmp_path / "bundle", checkpoint))
    assert [(row.component, row.output) for row in rows] == OUTPUTS
    assert all(row.limit == FP32_LIMIT and row.error <= FP32_LIMIT and row.passed for row in rows)


def test_every_float16_graph_is_as_exact_as_the_reference_in_float16(checkpoint_3b: Path, tmp_path: Path) -> None:
    options = ExportOptions(bits=16, token2wav_float_type="float16")
    export_bundle(checkpoint_3b, tmp_path / "bundle", options)
    rows = list(verify(tmp_path / "bundle", checkpoint_3b))
    assert [(row.component, row.output) for row in rows] == OUTPUTS
    for row in rows:
        assert row.reference_error is not None
        assert row.reference_error > 1e-5, "the reference did not compute in float16"
        assert row.passed, row
        assert row.error <= FP16_LIMIT, row


@pytest.mark.parametrize("dialect", ["ort", "standard"])
def test_int4_graphs_equal_the_reference_with_the_weights_their_codes_stand_for(
    checkpoint_7b: Path, tmp_path: Path, dialect: Dialect
) -> None:
    export_bundle(checkpoint_7b, tmp_path / "bundle", ExportOptions(bits=4, float_type="float32", dialect=dialect))
    rows = {(row.component, row.output): row for row in verify(tmp_path / "bundle", checkpoint_7b)}
    for name in ("thinker", "talker"):
        row = rows[name, "logits"]  # exported at accuracy level 4, compared at level 1
        assert row.error <= FP32_LIMIT
        assert row.quantization_error is not None
        assert row.quantization_error > 100 * row.error
    assert rows["dit", "velocity"].quantization_error is None


def test_int4_weights_are_read_with_the_scales_the_bundle_stores(checkpoint_3b: Path, tmp_path: Path) -> None:
    manifest = export_bundle(checkpoint_3b, tmp_path / "bundle", ExportOptions(bits=4))  # float16 scales
    rows = list(verify(tmp_path / "bundle", checkpoint_3b))
    assert all(row.passed for row in rows)
    checkpoint = Checkpoint.open(checkpoint_3b)
    for component in ("thinker", "talker"):
        name = f"{component}.model.layers.0.mlp.up_proj.weight"
        read = _reader(checkpoint, manifest.components[component])(name)
        weight = checkpoint.read(name).astype(np.float32)
        np.testing.assert_array_equal(read, round_to_nearest(weight, Grid(scale_dtype=np.float16)).dequantize())
        assert not np.array_equal(read, round_to_nearest(weight, Grid(scale_dtype=np.float32)).dequantize())


@pytest.mark.parametrize("bits", [16, 32])
def test_a_bundle_of_other_weights_fails(checkpoint_7b: Path, tmp_path: Path, bits: Literal[16, 32]) -> None:
    other = write_checkpoint(tmp_path / "other", SMALL_7B, seed=2)
    export_bundle(other, tmp_path / "bundle", ExportOptions(bits=bits))
    rows = list(verify(tmp_path / "bundle", checkpoint_7b))
    assert not any(row.passed for row in rows)


def test_a_bundle_of_another_shape_is_refused(checkpoint_3b: Path, checkpoint_7b: Path, tmp_path: Path) -> None:
    export_bundle(checkpoint_3b, tmp_path / "bundle", ExportOptions(bits=32))
    with pytest.raises(ExportError, match="not of the same checkpoint"):
        list(verify(tmp_path / "bundle", checkpoint_7b))


def test_nan_does_not_pass(checkpoint_3b: Path, tmp_path: Path) -> None:
    export_bundle(checkpoint_3b, tmp_path / "bundle", ExportOptions(bits=32))
    row = next(iter(verify(tmp_path / "bundle", checkpoint_3b)))
    assert row.passed
    assert not replace(row, error=float(np.nan)).passed


def test_a_graph_that_gives_nan_does_not_pass() -> None:
    ones = np.ones((2, 3), np.float32)
    assert _float16_row(_relative_error(ones, ones)).passed
    assert not _float16_row(_relative_error(np.full_like(ones, np.nan), ones)).passed


def test_float16_is_excused_only_for_about_what_the_reference_loses() -> None:
    assert _float16_row(0.02, reference_error=0.019).passed
    assert not _float16_row(0.02, reference_error=1e-3).passed


def _float16_row(error: float, reference_error: float = 1e-3) -> Row:
    return Row("thinker", "logits", error, FP16_LIMIT, reference_error, None)
