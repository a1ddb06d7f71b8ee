"""Room on the disk: asked for before the work, and said clearly when it runs out.

Inputs: a checkpoint, how its parts are to be stored, the folders → nothing, or an `ExportError`.
"""

from __future__ import annotations

import contextlib
import errno
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import ExportError
from ..export.checkpoint import Checkpoint
from .stack import Stack

_PASSING = ("*.partial", "*.onnx", "*.data")
"""Files of the work that are made anew when it goes on."""
_FLOAT32_BYTES = 4


def needed_bytes(checkpoint: Checkpoint, stacks: Sequence[Stack]) -> int:
    """About what result and work take: the new checkpoint, and the largest part that runs whole in float32."""
    form_of = {
        f"{stack.component.prefix(layer)}{name}.weight": stack.form
        for stack in stacks
        for layer in range(stack.layers)
        for group in stack.component.graph(0).groups
        for name in group.names
    }
    total, whole = 0.0, dict.fromkeys(("thinker.audio_tower.", "thinker.visual.", "talker.", "token2wav."), 0)
    for name in checkpoint.stored_names:
        weights = math.prod(checkpoint.shape(name))
        each: float = 4 if checkpoint.stored_dtype(name) == "F32" else 2
        if (form := form_of.get(name)) is not None:  # a code, and its share of a scale and a zero point
            each = form.bits / 8 + (2 + form.bits / 8) / form.group_size
        total += each * weights
        for prefix in whole:
            whole[prefix] += weights * name.startswith(prefix)
    return int(total) + _FLOAT32_BYTES * max(whole.values())


@contextlib.contextmanager
def room(target: Path, folder: Path, needed: int) -> Iterator[None]:
    """Work in `folder`, which is to become `target`; raises `ExportError` when there is no room, now or later."""
    have, free = _size(folder), shutil.disk_usage(target.absolute().parent).free
    if have + free < needed:
        raise ExportError(
            f"{target} and the work on it need about {_gigabytes(needed - have)}, its disk has {_gigabytes(free)} "
            "free; make room or choose another disk"
        )
    try:
        folder.mkdir(exist_ok=True)
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        for pattern in _PASSING:
            for path in folder.glob(pattern):
                path.unlink()
        more, free = max(0, needed - _size(folder)), shutil.disk_usage(folder).free
        raise ExportError(
            f"the disk of {target} is full: about {_gigabytes(more)} more are needed, {_gigabytes(free)} are free now; "
            f"make room and give the same command again: it goes on where it stopped, from {folder.name}"
        ) from error


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
