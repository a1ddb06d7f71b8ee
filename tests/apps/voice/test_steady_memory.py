"""Large buffers go back to the system, even after others like them were freed; threads share arenas. glibc tells."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import glibc
import pytest

BUFFERS = """
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

THREADS = """
import threading
from pathlib import Path
from glibc import arenas
from nearfield.apps.voice.steady_memory import keep_memory_steady

{first}
together = threading.Barrier(6)
def work():
    kept = [bytearray(1000) for _ in range(100)]
    together.wait()
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(arenas(Path({file!r})))
"""

needs_glibc = pytest.mark.skipif(glibc.missing() is not None, reason=str(glibc.missing()))


@pytest.fixture(autouse=True)
def _glibc_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(glibc.__file__).parent))


def printed_by(code: str) -> list[str]:
    """What a Python of its own prints, word by word."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, encoding="utf-8")
    return done.stdout.split()


@needs_glibc
@pytest.mark.parametrize(("first", "apart"), [("keep_memory_steady()", "1 1 1"), ("", "1 0 0")], ids=["kept", "not"])
def test_large_buffers_lie_apart_from_what_stays(first: str, apart: str) -> None:
    assert printed_by(BUFFERS.format(first=first)) == apart.split()


@needs_glibc
@pytest.mark.parametrize(("first", "few"), [("keep_memory_steady()", True), ("", False)], ids=["kept", "not"])
def test_threads_share_arenas(tmp_path: Path, first: str, *, few: bool) -> None:
    (count,) = printed_by(THREADS.format(first=first, file=str(tmp_path / "arenas.xml")))
    assert (int(count) <= 2) == few
