"""A process that talks for hours keeps the memory it has: large buffers go back to the system when they are freed.

glibc raises the size from which on it does so with every large buffer that is freed, up to 32 MiB (mallopt(3),
M_MMAP_THRESHOLD). From then on a reply's buffers, which are of all sizes, lie among those that stay, and the holes
between them never quite fit the next: with nano 10 MiB more, and 1 to 5 KiB a turn. Setting the threshold keeps it
where it is. And glibc gives threads arenas of their own, up to eight for each core, each of which keeps what it ever
needed; two are enough for the few threads here, whose time goes into matrices. Other systems' allocators do not work
like that.
"""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_THRESHOLD_BYTES = 1 << 20
_ARENAS = 2


def keep_memory_steady() -> None:
    """Have buffers of 1 MiB and more go back to the system, and threads share arenas, where this is glibc.

    To be called before there are threads.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES)
        libc.mallopt(_M_ARENA_MAX, _ARENAS)
