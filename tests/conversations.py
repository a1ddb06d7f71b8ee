"""Calibration data for tests: conversations of nano's own."""

from __future__ import annotations

import shutil
from pathlib import Path

from nearfield.calibrate.samples import INDEX
from nearfield.nano.calibration import FOLDER


def some_of_nanos(folder: Path, count: int) -> Path:
    """So many of nano's calibration conversations, copied into `folder`: all kinds, but no clips, which take long."""
    lines = (FOLDER / INDEX).read_text(encoding="utf-8").splitlines()
    chosen = [line for line in lines if "video" not in line][:count]
    (folder / INDEX).write_text("\n".join(chosen), encoding="utf-8")
    for file in FOLDER.iterdir():
        if file.name in "".join(chosen):
            shutil.copy(file, folder / file.name)
    return folder
