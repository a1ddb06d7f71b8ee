"""`spk_dict.pt`, the voices of a checkpoint, read without torch and without executing it.

Inputs: a file of `torch.save` → outputs: for each voice a speaker vector `cond` float32 (1, width), a reference mel
`ref_mel` float32 (1, frames, 80) in natural log, and the token that calls the voice. The file is a zip of raw arrays
(`<name>/data/0`, …) and a pickle that arranges them. A pickle can name any function and call it; this reader knows the
few names a dictionary of tensors needs, maps each to a function of its own, and refuses every other.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError

_MEL_BINS = 80

# torch's storage classes → element type in the file; bfloat16 is the upper half of a float32.
_STORAGES = {
    "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "u2", "DoubleStorage": "f8",
    "LongStorage": "i8", "IntStorage": "i4",
}  # fmt: skip

# What a malformed pickle makes the unpickler raise.
_PICKLE_ERRORS = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class VoiceArrays:
    """A voice as the checkpoint has it."""

    cond: npt.NDArray[np.float32]
    """Speaker vector, (1, width)."""
    ref_mel: npt.NDArray[np.float32]
    """Reference recording as a natural-log mel, (1, frames, 80)."""
    bos_token_id: int
    """Token whose embedding tells the Talker which voice to use."""


def read_voices(path: Path) -> dict[str, VoiceArrays]:
    """Read every voice of `spk_dict.pt`.

    Raises `CheckpointError` when the file is missing, damaged, not written by `torch.save` (1.6 or later), names
    anything but tensors, or lacks an entry of a voice.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; it holds the checkpoint's voices: download it again")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_stored(archive, path)
            values = _load(archive, path)
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} {_why_no_zip(path)}; download the file again") from error
    if not isinstance(values, dict) or not values or not all(isinstance(name, str) for name in values):
        raise CheckpointError(f"{path} holds no dictionary of voices by name; download the file again")
    return {name: _voice(entry, f"voice {name!r} in {path}") for name, entry in values.items()}


def _check_stored(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse compression: torch.save does not use it, and a megabyte of it can stand for any amount of memory."""
    for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{path}: {entry.filename} is compressed, torch.save stores; download the file again")


def _why_no_zip(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(b"PK"):
        return "is truncated or damaged"
    if start.startswith(b"\x80"):
        return "is a bare pickle, as torch wrote them before 1.6; expected the zip format torch writes since"
    if start == b"version ":
        return "is a Git LFS pointer, not the file it points to"
    return "is not a file of torch.save"


def _load(archive: zipfile.ZipFile, path: Path) -> object:
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"{path} is a zip without one data.pkl, not a file of torch.save; download it again")
    try:
        return _TensorUnpickler(archive, pickles[0].removesuffix("data.pkl"), path).load()
    except _PICKLE_ERRORS as error:
        raise CheckpointError(f"{path} is damaged: {error}; download the file again") from error


class _TensorUnpickler(pickle.Unpickler):
    """An unpickler of dictionaries of tensors that reaches no function but its own."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str, path: Path) -> None:
        pickled = archive.read(f"{prefix}data.pkl")
        _check_memo(pickled)
        super().__init__(io.BytesIO(pickled))
        self._archive, self._prefix, self._path = archive, prefix, path
        big_endian = f"{prefix}byteorder" in archive.namelist() and archive.read(f"{prefix}byteorder") == b"big"
        self._byte_order = ">" if big_endian else "<"
        self._known: dict[tuple[str, str], str | Callable[..., object]] = {
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("collections", "OrderedDict"): self._backward_hooks,
            **{("torch", storage): storage for storage in _STORAGES},
        }

    def find_class(self, module: str, name: str, /) -> object:
        """Return our stand-in for a global of the pickle."""
        stand_in = self._known.get((module, name))
        if stand_in is None:
            raise CheckpointError(
                f"{self._path} refers to {module}.{name}, which a file of voices has no use for and which could run "
                "code; nothing of it was run. Delete it and download the checkpoint from its publisher"
            )
        return stand_in

    def persistent_load(self, pid: object, /) -> npt.NDArray[Any]:
        """Return the array `("storage", class, key, device, elements)` points to, (elements)."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or pid[1] not in _STORAGES:
            raise ValueError(f"{pid!r} is no storage of tensors")
        _, storage, key, _device, _elements = pid
        raw = self._archive.read(f"{self._prefix}data/{key}")
        array = np.frombuffer(raw, self._byte_order + _STORAGES[storage])
        if storage == "BFloat16Storage":
            return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return array

    @staticmethod
    def _backward_hooks() -> dict[str, object]:
        """Autograd's hooks, which torch writes as an empty OrderedDict with every tensor."""
        return {}

    @staticmethod
    def _tensor(
        storage: npt.NDArray[Any], offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_autograd: object
    ) -> npt.NDArray[Any]:
        """The strided view that the pickle describes, copied; `offset` and `stride` count elements."""
        last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
        items = math.prod(size)
        if min([offset, *size, *stride]) < 0 or items > storage.size or (items and last >= storage.size):
            raise ValueError(f"a tensor of shape {size} and strides {stride} lies outside its {storage.size} elements")
        strides = [step * storage.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()


def _check_memo(pickled: bytes) -> None:
    """Refuse an index that could not come up in so short a pickle: the unpickler would make room for all below it."""
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) < len(pickled):
            raise ValueError(f"its pickle asks for {argument} places of memory")


def _voice(entry: object, where: str) -> VoiceArrays:
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where} is {type(entry).__name__}; expected cond, ref_mel and bos_token")
    cond, ref_mel = _floats(entry, "cond", where), _floats(entry, "ref_mel", where)
    if cond.ndim != 2 or cond.shape[0] != 1:
        raise CheckpointError(f"{where}: cond has shape {cond.shape}; expected (1, width)")
    if ref_mel.ndim != 3 or ref_mel.shape[0] != 1 or ref_mel.shape[1] < 1 or ref_mel.shape[2] != _MEL_BINS:
        raise CheckpointError(f"{where}: ref_mel has shape {ref_mel.shape}; expected (1, frames, {_MEL_BINS})")
    token = entry.get("bos_token")
    if isinstance(token, np.ndarray) and token.size == 1:
        token = token.item()
    if not isinstance(token, int) or isinstance(token, bool) or token < 0:
        raise CheckpointError(f"{where}: bos_token is {token!r}; expected the id of a token")
    return VoiceArrays(cond, ref_mel, token)


def _floats(entry: dict[str, object], name: str, where: str) -> npt.NDArray[np.float32]:
    array = entry.get(name)
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
        raise CheckpointError(f"{where}: {name} is missing or no tensor of floats; download the file again")
    if not np.isfinite(array).all():
        raise CheckpointError(f"{where}: {name} holds NaN or infinity; download the file again")
    return array.astype(np.float32)
