"""Large buffers go back to the system, even after others like them were freed; counted by glibc itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import ctypes
import numpy as np
from nearfield.apps.voice.steady_memory import keep_memory_steady

class Usage(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Usage
{first}
for _ in range(3):
    before = libc.mallinfo2().hblks
    buffer = np.ones(2 << 20, np.uint8)
    print(libc.mallinfo2().hblks - before, end=" ")
    del buffer
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told")
@pytest.mark.parametrize(("first", "apart"), [("keep_memory_steady()", "1 1 1"), ("", "1 0 0")], ids=["kept", "not"])
def test_large_buffers_lie_apart_from_what_stays(first: str, apart: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(first=first)], capture_output=True, check=True, encoding="utf-8"
    )
    assert done.stdout.split() == apart.split()
