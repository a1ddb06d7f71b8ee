"""The model card: what it says is what the files say."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from nearfield.nano.card import keep_curve, markdown, plot, read_curve, scores_section, training_section
from nearfield.nano.scores import Score, Scores
from PIL import Image

CURVE = [{"step": float(10 * i), "seconds": 36.0 * i, "loss": 2.0} for i in range(1, 101)]


def _scores(right: int) -> Scores:
    score = Score("pictures", "as recorded", "answers", right, 120, 0.98, 3.0, 120)
    return Scores("0" * 64, 1, "a machine", 2, False, True, 600.0, 55.0, 0.25, [score])


def test_a_curve_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "hear.csv").write_text("step,seconds,loss\n10,4.5,3.25\n20,9.0,3.0\n", encoding="utf-8")
    assert read_curve(tmp_path / "hear.csv")[0] == {"step": 10.0, "seconds": 4.5, "loss": 3.25}


def test_what_a_resumed_run_did_twice_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "see.csv").write_text("step,seconds,loss\n10,1,5\n20,2,4\n30,3,3\n20,2.5,2\n30,4,1\n", encoding="utf-8")
    curve = read_curve(tmp_path / "see.csv")
    assert [(row["step"], row["loss"]) for row in curve] == [(10, 5), (20, 2), (30, 1)]


def test_of_a_long_curve_few_rows_are_kept(tmp_path: Path) -> None:
    curve = [{"step": float(10 * i), "seconds": 3.0 * i, "loss": float(i), "exact": 1.0} for i in range(1, 1002)]
    keep_curve(curve, tmp_path / "hear.csv")
    kept = read_curve(tmp_path / "hear.csv")
    assert len(kept) == 112  # of nine rows each, and two more
    assert kept[0] == {"step": 90, "seconds": 27, "loss": 5}
    assert kept[-1] == {"step": 10_010, "seconds": 3003, "loss": 1000}  # of two rows, in four digits


def test_the_plot_is_a_small_picture_with_a_panel_a_stage() -> None:
    content = plot(dict.fromkeys(("text", "hear", "see", "reason", "talker"), CURVE))
    picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert len(content) < 60_000
    assert picture.shape[1] == 960
    assert picture.shape[0] == 2 * 184  # two rows of panels


def test_scores_tell_share_interval_limit_reference_and_miss() -> None:
    (row,) = scores_section(_scores(114)).splitlines()[-1:]
    assert row == (
        "| pictures | as recorded | 114 of 120 answers | **95.0** (too low) | 89.5 – 97.7 | 98.0 | 100.0 | -5.0 |"
    )
    assert scores_section(_scores(114)).startswith("1 of 1 scores are lower than they must be.")
    assert scores_section(_scores(120)).startswith("Every score is what it must be.")


def test_training_tells_steps_hours_and_losses() -> None:
    text = training_section({"hear": CURVE, "see": CURVE})
    assert "| hear | 1000 | 1.00 | 2 |" in text
    assert "in 2 stages, 2.0 hours in all" in text


def test_a_table_has_a_head_and_its_rows() -> None:
    assert markdown([["a", "b"], ["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"
