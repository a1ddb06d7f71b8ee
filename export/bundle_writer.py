"""Writing a bundle so that it is whole or not there: into a directory beside its target, renamed at the end.

Inputs: files written to `path_of(name)`, and the manifest → outputs: the bundle. A name that begins with a dot is not
yet, or no longer, a bundle: `.<name>.partial-<process>-<random>` while a process writes it, `.<name>.old-<random>` for
the moment in which a new bundle takes an old one's place. What a killed process leaves is removed by the next export.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from ..errors import BundleError
from ..runtime.bundle import check_names, record_of
from ..runtime.manifest import MANIFEST_NAME, FileRecord, Manifest, encode

_log = logging.getLogger(__name__)


class BundleWriter:
    """A context manager in which a bundle is written; leaving it without `finish` leaves nothing behind."""

    def __init__(self, target: Path, *, overwrite: bool = False, needed_bytes: int = 0) -> None:
        """Say where to: `overwrite` allows an older bundle there, `needed_bytes` is the room the export expects."""
        self.target = target.absolute()
        self.directory = self.target.parent / f".{self.target.name}.partial-{os.getpid()}-{secrets.token_hex(4)}"
        """Where files go until the bundle is whole."""
        self._overwrite, self._needed_bytes = overwrite, needed_bytes
        self._records: dict[str, FileRecord] = {}

    def __enter__(self) -> BundleWriter:
        """Create the temporary directory.

        Raises `BundleError` when the target is taken, its folder missing or not writable, or the disk too small.
        """
        if not self.target.name or not self.target.parent.is_dir():
            raise BundleError(f"{self.target}: the folder {self.target.parent} is not there; make it first")
        try:
            return self._begin()
        except OSError as error:
            raise BundleError(f"{self.target} cannot be written ({error}); choose a folder you may write to") from error

    def _begin(self) -> BundleWriter:
        self._clear_leftovers()
        self._check_target()
        free_bytes = shutil.disk_usage(self.target.parent).free
        if free_bytes < self._needed_bytes:
            raise BundleError(
                f"{self.target} needs about {_gigabytes(self._needed_bytes)}, its disk has {_gigabytes(free_bytes)} "
                "free; make room or choose another disk"
            )
        self.directory.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove whatever was not finished; a full disk becomes a `BundleError`."""
        written_bytes = 0
        if self.directory.exists():
            written_bytes = sum(path.stat().st_size for path in self.directory.iterdir())
            self._remove(self.directory, error)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            free_bytes = shutil.disk_usage(self.target.parent).free
            raise BundleError(
                f"the disk of {self.target} is full: {_gigabytes(written_bytes)} were written and more are needed, "
                f"{_gigabytes(free_bytes)} are free now; make room or choose another disk"
            ) from error

    def path_of(self, name: str) -> Path:
        """Where to write the file that the bundle will hold under `name`."""
        return self.directory / name

    def add(self, records: Mapping[str, FileRecord]) -> None:
        """Take the records of files that were hashed while they were written, so that `finish` need not read them."""
        self._records.update(records)

    def write_array(
        self, name: str, shape: Sequence[int], dtype: npt.DTypeLike, blocks: Iterable[npt.NDArray[Any]]
    ) -> None:
        """Write a `.npy` file block of rows by block, for tables larger than memory should hold; hashed on the way.

        Raises `ValueError` when the blocks do not add up to `shape`.
        """
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": tuple(shape)}
        digest, rows = hashlib.sha256(), 0
        with self.path_of(name).open("w+b") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.seek(0)
            digest.update(file.read())
            for block in blocks:
                content = np.ascontiguousarray(block, dtype)
                if content.shape[1:] != tuple(shape[1:]):
                    raise ValueError(f"{name}: a block of shape {content.shape} in an array of shape {tuple(shape)}")
                raw = content.reshape(-1).view(np.uint8).data
                file.write(raw)
                digest.update(raw)
                rows += len(content)
            if rows != shape[0]:
                raise ValueError(f"{name}: {rows} rows in an array of shape {tuple(shape)}")
            size_bytes = file.tell()
        self.add({name: FileRecord(size_bytes=size_bytes, sha256=digest.hexdigest())})

    def finish(self, manifest_of: Callable[[dict[str, FileRecord]], Manifest]) -> Manifest:
        """Hash what is not hashed yet, write the manifest that `manifest_of` makes of the records, and rename.

        Raises `BundleError` when the manifest names a file that was not written, or the target cannot be replaced.
        """
        files = {path.name: self._record(path) for path in sorted(self.directory.iterdir())}
        manifest = manifest_of(files)
        check_names(manifest, f"the manifest of {self.target}")
        (self.directory / MANIFEST_NAME).write_bytes(encode(manifest))
        self._put_in_place()
        return manifest

    def _record(self, path: Path) -> FileRecord:
        record = self._records.get(path.name)
        if record is None:
            return record_of(path)
        if path.stat().st_size != record.size_bytes:
            raise BundleError(
                f"{path} has {path.stat().st_size} bytes after {record.size_bytes} were written; "
                "the disk or another program changed it: export again"
            )
        return record

    def _check_target(self) -> None:
        """Refuse a target that is there, unless it may be replaced and is a bundle of nothing but its own files."""
        if not self.target.exists() or (self.target.is_dir() and not any(self.target.iterdir())):
            return
        if not self._overwrite:
            raise BundleError(f"{self.target} is already there; choose another name, or replace it with --overwrite")
        own = _names_in_bundle(self.target)
        if not own:
            raise BundleError(f"{self.target} is no bundle and will not be overwritten; choose another name")
        foreign = sorted(path.name for path in self.target.iterdir() if path.name not in own)
        if foreign:
            raise BundleError(
                f"{self.target} also holds {', '.join(foreign[:3])}; move them away before it is replaced"
            )

    def _put_in_place(self) -> None:
        """Rename the whole bundle to its target; an old one steps aside and comes back if that fails."""
        self._check_target()
        aside = self.target.with_name(f".{self.target.name}.old-{secrets.token_hex(4)}")
        replacing = self.target.exists()
        try:
            if replacing:
                self.target.rename(aside)
            self.directory.rename(self.target)
        except OSError as error:
            if aside.exists() and not self.target.exists():
                aside.rename(self.target)
            raise BundleError(
                f"{self.target} could not be put in place ({error}); close programs that use it and export again"
            ) from error
        if replacing:
            self._remove(aside, None)

    def _clear_leftovers(self) -> None:
        """Undo what an export that was killed left beside the target."""
        for aside in self.target.parent.glob(f".{_literal(self.target.name)}.old-*"):
            if self.target.exists():
                self._remove(aside, None)
            else:
                aside.rename(self.target)
        for partial in self.target.parent.glob(f".{_literal(self.target.name)}.partial-*"):
            process = partial.name.rsplit("-", 2)[-2]
            if process.isdecimal() and psutil.pid_exists(int(process)):
                _log.warning("%s: process %s is writing this bundle too; left alone", partial, process)
            else:
                self._remove(partial, None)

    @staticmethod
    def _remove(directory: Path, error: BaseException | None) -> None:
        """Delete a directory; if that fails, say so without hiding the error that led here."""
        try:
            shutil.rmtree(directory)
        except OSError as removal:
            message = f"{directory} could not be removed ({removal}); delete it by hand"
            _log.warning(message)
            if error is not None:
                error.add_note(message)


def _names_in_bundle(path: Path) -> set[str]:
    """Names of the files of a bundle, whole or damaged and of any schema; none if it is something else."""
    try:
        manifest = json.loads((path / MANIFEST_NAME).read_bytes())
        return {MANIFEST_NAME, *manifest["files"]} if "nearfield_version" in manifest else set()
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return set()


def _literal(name: str) -> str:
    """Escape a name for `glob`."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
