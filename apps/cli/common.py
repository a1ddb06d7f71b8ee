"""What the commands share: what a command is, the demo's files, how a missing extra is reported, tables and sizes."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ...errors import InputError, NearfieldError
from ...runtime.files import check_writable

if TYPE_CHECKING:
    from ...runtime.manifest import Audio

DEMO_DATA = Path(__file__).with_name("demo_data")
DEMO_BUNDLE = DEMO_DATA / "bundle"
BUNDLE_HELP = "directory of the bundle, or nano: the tiny model that ships with Nearfield"


@dataclass(frozen=True)
class DemoQuestion:
    """A question of the demo: a recording of it, and the picture it is about, if any."""

    words: str
    """What is said in the recording, for people to read; the model gets the recording only."""
    recording: Path
    picture: Path | None = None


DEMO_QUESTIONS = (
    DemoQuestion("What is seven plus four?", DEMO_DATA / "question-1.flac"),
    DemoQuestion("Say that again.", DEMO_DATA / "question-2.flac"),
    DemoQuestion("What do you see?", DEMO_DATA / "question-3.flac", DEMO_DATA / "purple_star.png"),
)
"""In the order they are asked; the second asks for the reply to the first. nano/demo_recordings.py makes the files."""

CONTEXT = 8192
"""Positions the model remembers unless told otherwise: `runtime.parts.CONTEXT`, not imported for a quick help."""
IMAGE_PIXELS = 1280 * 28 * 28
"""Images are scaled down to this many pixels unless told otherwise: 1280 positions. A photograph would take 16 000."""


def bundle_path(name: str) -> Path:
    """The directory of the bundle a user names; ``nano`` is the one in the package, and ``./nano`` a directory."""
    return DEMO_BUNDLE if name == "nano" else Path(name)


class Command(Protocol):
    """A module that is one command of the command line."""

    NAME: str
    SUMMARY: str
    """One line, for the list of commands."""
    DESCRIPTION: str
    """What it does and what it needs, for its own help."""
    EXAMPLES: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Do it; returns the exit code."""
        ...


@contextlib.contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around imports that come with an optional part of the installation: says which part when one is missing.

    Raises `NearfieldError` for a package that is not installed; an error inside Nearfield itself passes through.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None:  # transformers' way to say that a package it tried to load is broken
            raise NearfieldError(
                f"a package this command needs cannot be loaded ({error.__cause__ or error}): "
                f"make a fresh environment and in it, {install_command(extra)}"
            ) from error
        if error.name.partition(".")[0] == "nearfield":
            raise
        raise NearfieldError(
            f"this command needs {error.name}, which is not installed here; {install_command(extra)}"
        ) from error


def install_command(extra: str) -> str:
    """How to get an optional part of the installation."""
    return f'in a clone of the repository: pip install ".[{extra}]"'


def quoted(path: Path) -> str:
    """A path as it must be typed in this machine's command line."""
    return subprocess.list2cmdline([str(path)]) if os.name == "nt" else shlex.quote(str(path))


def table(rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> str:
    """Lay out rows of equal length in columns; those in `right` are flushed right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        lines.append(
            "  ".join(
                cell.rjust(width) if index in right else cell.ljust(width) for index, (cell, width) in enumerate(cells)
            ).rstrip()
        )
    return "\n".join(lines)


def size(size_bytes: float) -> str:
    """A number of bytes for people, in powers of 1000 as disks and file managers of today count."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.2f} GB"


def check_outputs(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None]) -> None:
    """Refuse files that cannot be written where they are asked for, before any work. Keys are options; None is no file.

    Raises `InputError` when the folder is not there or cannot be written, when something else than a file is in the
    way, or when the file is an input or another output.
    """
    taken = {_place(path): option for option, path in inputs.items() if path is not None}
    for option, path in outputs.items():
        if path is None:
            continue
        if not path.absolute().parent.is_dir():
            raise InputError(f"{path} cannot be written: the folder {path.parent} is not there; make it first")
        try:
            check_writable(path)
        except OSError as error:
            raise InputError(f"{path} cannot be written ({error.strerror}); choose another place") from error
        other = taken.setdefault(_place(path), option)
        if other != option:
            raise InputError(f"{option} and {other} are the same file, {path}; give {option} a name of its own")


def heard_seconds(audio: Audio) -> float:
    """Length after which the checkpoint's feature extractor cuts a clip."""
    return audio.max_frames * audio.hop_samples / audio.sample_rate_hz


def _place(path: Path) -> str:
    """Where a path leads, the same for all spellings of it."""
    return os.path.normcase(os.path.realpath(path))
