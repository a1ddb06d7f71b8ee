"""`export --kv-cache` as a user calls it: calibrated, refused early, verified within its limits."""

from __future__ import annotations

from pathlib import Path

import pytest
from conversations import some_of_nanos
from nearfield.apps.cli.main import main
from nearfield.calibrate.samples import FEWEST
from nearfield.runtime.bundle import Bundle


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As few of nano's conversations as will do: all kinds, but no clips."""
    return some_of_nanos(tmp_path_factory.mktemp("calibration"), FEWEST)


def test_export_calibrates_an_int8_cache_and_verify_knows_it(
    checkpoint_3b: Path, calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    options = ["--bits", "32", "--kv-cache", "int8", "--calibration", str(calibration)]
    assert main(["export", str(checkpoint_3b), "-o", str(bundle), *options]) == 0
    manifest = Bundle.open(bundle).manifest
    assert (manifest.thinker.kv_cache.dtype, manifest.talker.kv_cache.dtype) == ("int8", "int8")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"], "nothing it worked with stays"
    capsys.readouterr()
    assert main(["verify", str(bundle), "--against", str(checkpoint_3b)]) == 0
    rows = capsys.readouterr().out.splitlines()
    (line,) = [row for row in rows if row.startswith("talker")]
    assert "5.00e-02" in line


@pytest.mark.parametrize(
    ("command", "options", "expected"),
    [
        ("export", ["--kv-cache", "int8"], "--kv-cache int8 needs --calibration DIR"),
        ("export", ["--kv-cache", "float16", "--dialect", "standard"], "--kv-cache float16 needs --dialect ort"),
        ("build", ["--kv-cache", "int8", "--dialect", "standard", "--calibration", "x"], "needs --dialect ort"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_work(
    command: str, options: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(tmp_path / "no checkpoint"), "-o", str(tmp_path / "bundle"), *options]) == 1
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_calibration_without_a_use_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "checkpoint", "-o", str(tmp_path / "bundle"), "--calibration", "data"])
    assert "--calibration is for --kv-cache int8" in capsys.readouterr().err
