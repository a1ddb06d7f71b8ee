"""What glibc's allocator says of this process: `mallinfo2`, which glibc has from 2.33 on and nothing else has."""

from __future__ import annotations

import ctypes
import sys

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
