"""A bundle: the directory an export writes and the runtime runs from. Opening and checking one.

Inputs: a directory with `manifest.json` → outputs: the typed manifest, the paths of its files, and its arrays:
`thinker_embedding (vocab, D)` and `talker_embedding (Vt, E)` memory-mapped, `dit_modulation` float32
`(times, 6 · layers + 2, width)`, and the voices. `export/bundle_writer.py` writes one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ..errors import BundleError, UnknownVoiceError
from .manifest import MANIFEST_NAME, ComponentName, FileRecord, Manifest, decode

VOICES_NAME, TOKENIZER_NAME, CHAT_TEMPLATE_NAME = "voices.safetensors", "tokenizer.json", "chat_template.jinja"

_HASHED_AT_OPEN_BYTES = 4 << 20  # graphs and small tables: hashing them costs milliseconds
_CHUNK_BYTES = 16 << 20
_EXPORT_AGAIN = "export the bundle again, or download it again"

Progress = Callable[[int], None]
"""Called with the bytes done since the last call."""


@dataclass(frozen=True, eq=False)
class LoadedVoice:
    """A voice as the DiT and the Talker take it (`manifest.Voice`)."""

    cond: npt.NDArray[np.float32]
    """Speaker vector, (1, speaker width)."""
    encoding: npt.NDArray[np.float32]
    """Speaker encoder's output for the reference mel, then for silence: (2, encoder width)."""
    bos_token_id: int


class Bundle:
    """An opened bundle: complete by name and size. Large files are read when asked for, and hashed by `check`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Open the bundle in the directory `path`; small files are hashed, of others the size is compared.

        Raises `BundleError` when this is no bundle, a file is missing or damaged, or a newer Nearfield wrote it.
        """
        manifest_path = path / MANIFEST_NAME
        if not manifest_path.is_file():
            raise BundleError(f"{path} {_why_no_bundle(path)}")
        manifest = decode(manifest_path.read_bytes(), str(manifest_path))
        check_names(manifest, str(manifest_path))
        for name, record in manifest.files.items():
            _check_size(path / name, record)
            if record.size_bytes < _HASHED_AT_OPEN_BYTES:
                _check_hash(path / name, record)
        return cls(path, manifest)

    @property
    def total_bytes(self) -> int:
        """Size of all files, which is what `check` reads."""
        return sum(record.size_bytes for record in self.manifest.files.values())

    def check(self, progress: Progress | None = None) -> None:
        """Hash every file and raise `BundleError` at the first that differs from what was exported."""
        for name, record in self.manifest.files.items():
            _check_size(self.path / name, record)
            _check_hash(self.path / name, record, progress)

    def graph_path(self, component: ComponentName) -> Path:
        """Path of a component's ONNX file; its weights lie beside it."""
        return self.path / self.manifest.components[component].graph

    @property
    def tokenizer_path(self) -> Path:
        """Path of `tokenizer.json`."""
        return self.path / TOKENIZER_NAME

    def chat_template(self) -> str:
        """The checkpoint's chat template, Jinja source."""
        return (self.path / CHAT_TEMPLATE_NAME).read_text(encoding="utf-8")

    def thinker_embedding(self) -> npt.NDArray[Any]:
        """The Thinker's embedding table, `(vocab_size, hidden_size)`, memory-mapped, in the Thinker's float type."""
        thinker = self.manifest.thinker
        dtype = self.manifest.components["thinker"].dtype
        return self._array(thinker.embedding, (thinker.vocab_size, thinker.hidden_size), dtype)

    def talker_embedding(self) -> npt.NDArray[Any]:
        """The Talker's code embedding table, `(vocab_size, embedding_size)`, memory-mapped, in the Talker's type."""
        talker = self.manifest.talker
        dtype = self.manifest.components["talker"].dtype
        return self._array(talker.embedding, (talker.vocab_size, talker.embedding_size), dtype)

    def dit_modulation(self) -> npt.NDArray[np.float32]:
        """The DiT's adaLN modulation at each time of the schedule, float32 `(times, 6 · layers + 2, width)`."""
        token2wav = self.manifest.token2wav
        return np.array(self._array(token2wav.modulation, (len(token2wav.ode.times), None, None), "float32"))

    def voice(self, name: str) -> LoadedVoice:
        """Load the arrays of one voice; raises `UnknownVoiceError`, or `BundleError` when an array is not there."""
        voices = self.manifest.voices
        if name not in voices:
            raise UnknownVoiceError(f"voice {name!r} is not in {self.path}; it has {', '.join(sorted(voices))}")
        path = self.path / VOICES_NAME
        try:
            arrays = load_file(path)
            cond, spoken, silent = (arrays[f"{name}.{key}"] for key in ("cond", "encoding", "null_encoding"))
            encoding = np.concatenate([spoken, silent])  # (2, encoder width)
        except (SafetensorError, KeyError, ValueError) as error:
            raise BundleError(f"{path} does not hold the voice {name!r} ({error}); {_EXPORT_AGAIN}") from error
        if cond.ndim != 2 or len(cond) != 1 or encoding.ndim != 2 or len(encoding) != 2:
            raise BundleError(
                f"{path}: voice {name!r} has shapes {cond.shape}, {spoken.shape} and {silent.shape}; "
                f"expected one row each; {_EXPORT_AGAIN}"
            )
        return LoadedVoice(cond.astype(np.float32), encoding.astype(np.float32), voices[name].bos_token_id)

    def _array(self, name: str, shape: Sequence[int | None], dtype: str) -> npt.NDArray[Any]:
        """Map a `.npy` file and compare it with what the manifest says; None stands for any size."""
        path = self.path / name
        try:
            array: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} cannot be read as an array ({error}); {_EXPORT_AGAIN}") from error
        fits = array.ndim == len(shape) and all(
            want in (None, size) for want, size in zip(shape, array.shape, strict=True)
        )
        if not fits or array.dtype != np.dtype(dtype):
            wanted = tuple("any" if size is None else size for size in shape)
            raise BundleError(
                f"{path} holds {array.dtype} {array.shape}; the manifest says {dtype} {wanted}: {_EXPORT_AGAIN}"
            )
        return array


def check_names(manifest: Manifest, origin: str) -> None:
    """Raise `BundleError` if a component is missing, or a file is not listed or is not a plain name."""
    missing = sorted(set(get_args(ComponentName)) - set(manifest.components))
    if missing:
        raise BundleError(f"{origin} lacks the components {', '.join(missing)}; {_EXPORT_AGAIN}")
    needed = [manifest.thinker.embedding, manifest.talker.embedding, manifest.token2wav.modulation]
    needed += [VOICES_NAME, TOKENIZER_NAME, CHAT_TEMPLATE_NAME]
    needed += [name for component in manifest.components.values() for name in (component.graph, component.data)]
    for name in needed:
        if name not in manifest.files:
            raise BundleError(f"{origin} does not list the file {name}, which its components need; {_EXPORT_AGAIN}")
    for name in manifest.files:
        if name in ("", ".", "..") or any(character in name for character in "/\\:"):
            raise BundleError(f"{origin} lists the file {name!r}; expected names of files in the bundle itself")


def record_of(path: Path, progress: Progress | None = None) -> FileRecord:
    """Size and SHA-256 of a file, read in pieces."""
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
            if progress is not None:
                progress(len(chunk))
    return FileRecord(size_bytes=size_bytes, sha256=digest.hexdigest())


def _check_size(path: Path, record: FileRecord) -> None:
    if not path.is_file():
        raise BundleError(f"{path} is missing; {_EXPORT_AGAIN}")
    found = path.stat().st_size
    if found != record.size_bytes:
        raise BundleError(f"{path} has {found} bytes, the manifest says {record.size_bytes}; {_EXPORT_AGAIN}")


def _check_hash(path: Path, record: FileRecord, progress: Progress | None = None) -> None:
    found = record_of(path, progress)
    if found != record:
        raise BundleError(
            f"{path} is damaged: its SHA-256 is {found.sha256[:12]}…, the manifest says {record.sha256[:12]}…; "
            f"{_EXPORT_AGAIN}"
        )


def _why_no_bundle(path: Path) -> str:
    """The rest of a sentence that begins with the path."""
    if path.is_dir() and (path / "config.json").is_file():
        return f"is a checkpoint, not a bundle; make one of it: nearfield export {path} -o BUNDLE"
    found = f"is a directory without {MANIFEST_NAME}" if path.is_dir() else "is not a directory"
    return f"{found}; expected a bundle: the directory that `nearfield export CHECKPOINT -o BUNDLE` writes"
