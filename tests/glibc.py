"""What glibc's allocator says of this process: `mallinfo2`, which glibc has from 2.33 on and nothing else has."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else object()


class Allocated(ctypes.Structure):
    """What `mallinfo2` tells."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip

    @property
    def bytes(self) -> int:
        """On the heap and in mappings of their own."""
        return int(self.uordblks + self.hblkhd)

    @property
    def mappings(self) -> int:
        """How many buffers have a mapping of their own."""
        return int(self.hblks)


def missing() -> str | None:
    """Why there is no telling, as a line to read; None when there is."""
    return None if hasattr(_LIBC, "mallinfo2") else "needs glibc's mallinfo2, which counts what is allocated"


def allocated() -> Allocated:
    """What is allocated now."""
    assert isinstance(_LIBC, ctypes.CDLL)
    _LIBC.mallinfo2.restype = Allocated
    told: Allocated = _LIBC.mallinfo2()
    return told


def arenas(file: Path) -> int:
    """How many arenas there are; what glibc writes about them goes to a file."""
    assert isinstance(_LIBC, ctypes.CDLL)
    _LIBC.fopen.restype, _LIBC.fclose.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    _LIBC.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
    stream = _LIBC.fopen(bytes(file), b"w")
    assert stream, f"{file} cannot be written"
    _LIBC.malloc_info(0, stream)
    _LIBC.fclose(stream)
    return file.read_text(encoding="utf-8").count("<heap nr=")
