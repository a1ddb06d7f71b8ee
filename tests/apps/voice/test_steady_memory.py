"""Large buffers go back to the system, even after others like them were freed; counted by glibc itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import glibc
import pytest

CODE = """
import numpy as np
from glibc import allocated
from nearfield.apps.voice.steady_memory import keep_memory_steady

{first}
for _ in range(3):
    before = allocated().mappings
    buffer = np.ones(2 << 20, np.uint8)
    print(allocated().mappings - before, end=" ")
    del buffer
"""


@pytest.mark.skipif(glibc.missing() is not None, reason=str(glibc.missing()))
@pytest.mark.parametrize(("first", "apart"), [("keep_memory_steady()", "1 1 1"), ("", "1 0 0")], ids=["kept", "not"])
def test_large_buffers_lie_apart_from_what_stays(monkeypatch: pytest.MonkeyPatch, first: str, apart: str) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(glibc.__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(first=first)], capture_output=True, check=True, encoding="utf-8"
    )
    assert done.stdout.split() == apart.split()
