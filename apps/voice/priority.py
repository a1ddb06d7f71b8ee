"""Sound first: its process goes before others where the system allows that."""

from __future__ import annotations

import contextlib
import sys

import psutil

_POSIX_NICENESS = -11  # what sound servers give themselves


def raise_priority() -> None:
    """Ask for more than the usual priority; stay with the usual one where that takes rights this user has not."""
    process = psutil.Process()
    with contextlib.suppress(psutil.AccessDenied):
        if sys.platform == "win32":
            process.nice(psutil.HIGH_PRIORITY_CLASS)
        else:
            process.nice(min(process.nice(), _POSIX_NICENESS))
