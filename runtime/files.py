"""Writing a file so that it is whole under its name, or what was there before is still there.

Inputs: a path and bytes → output: the file. A link is followed: what it points to is replaced. Devices, pipes and
folders are refused, because replacing one would destroy it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Make or replace the file `path`; raises `OSError`, also for what is no regular file, and then leaves nothing."""
    target = _target(path)
    _replace(_beside(target), content, target)


def check_writable(path: Path) -> None:
    """Raise the `OSError` that `write_bytes_atomically` would, as far as can be told without writing `path`."""
    _replace(_beside(_target(path)), b"", None)


def _target(path: Path) -> Path:
    """The file to make or replace, all links followed."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        kind = "a folder" if target.is_dir() else "a device or a pipe"
        raise OSError(errno.EINVAL, f"it is {kind}, not a file")
    return target


def _beside(target: Path) -> Path:
    """A temporary name in the same folder, short, because the target's may be as long as names can be."""
    return target.with_name(f".nearfield-{secrets.token_hex(4)}.partial")


def _replace(partial: Path, content: bytes, target: Path | None) -> None:
    """Write `partial` and give it the target's name, or remove it again if there is no target or something fails."""
    try:
        with partial.open("xb") as file:
            file.write(content)
        if target is not None:
            partial.replace(target)
    finally:
        with contextlib.suppress(OSError):  # what went wrong before says more
            partial.unlink(missing_ok=True)
