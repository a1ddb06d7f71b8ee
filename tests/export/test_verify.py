"""The parity table: it passes for what was exported, and fails for what was not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import SMALL_7B, write_checkpoint
from nearfield.errors import ExportError
from nearfield.export.export import ExportOptions, export_bundle
from nearfield.export.verify import FP16_LIMIT, FP32_LIMIT, verify
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


def test_int4_graphs_equal_the_reference_with_the_weights_their_codes_stand_for(
    checkpoint_7b: Path, tmp_path: Path
) -> None:
    export_bundle(checkpoint_7b, tmp_path / "bundle", ExportOptions(bits=4, float_type="float32"))
    rows = {(row.component, row.output): row for row in verify(tmp_path / "bundle", checkpoint_7b)}
    for name in ("thinker", "talker"):
        row = rows[name, "logits"]  # exported at accuracy level 4, compared at level 1
        assert row.error <= FP32_LIMIT
        assert row.quantization_error is not None
        assert row.quantization_error > 100 * row.error
    assert rows["dit", "velocity"].quantization_error is None


def test_a_bundle_of_other_weights_fails(checkpoint_7b: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", SMALL_7B, seed=2)
    export_bundle(other, tmp_path / "bundle", ExportOptions(bits=32))
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
